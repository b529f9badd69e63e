package celery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// The fields of the control hash.
const (
	fieldEpoch    = "epoch"
	fieldPaused   = "paused"
	fieldPausedBy = "paused_by"
	fieldAccept   = "accept"
	fieldResync   = "resync"
	fieldIdentity = "identity"
	fieldGuard    = "guard"
	fieldFull     = "full_cleanup"
)

// State is what the control hash says.
type State struct {
	// Epoch is the newest leader's, 0 before the first.
	Epoch  uint64 `json:"epoch"`
	Paused bool   `json:"paused"`
	// PausedSince and PausedBy tell when removals were paused, and who did it.
	PausedSince time.Time `json:"paused_since,omitzero"`
	PausedBy    string    `json:"paused_by,omitempty"`
	// Accept and Resync are tokens that wait for the daemon, "" for none.
	Accept string `json:"accept,omitempty"`
	Resync string `json:"resync,omitempty"`
	// Identity is the database that was recorded at first start.
	Identity string `json:"identity,omitempty"`
	// Guard is what SaveGuard stored.
	Guard []byte `json:"-"`
}

// ClaimEpoch makes the caller the newest leader: its epoch is higher than any
// before and than atLeast, and from then on no other leader removes anything.
func (s *Store) ClaimEpoch(ctx context.Context, atLeast uint64) (uint64, error) {
	reply, err := claimScript.one(ctx, s.client, []string{controlKey}, strconv.FormatUint(atLeast, 10))
	if err != nil {
		return 0, failed("claim epoch", err)
	}
	text, _ := reply.(string)
	epoch, err := strconv.ParseUint(text, 10, 64)
	return epoch, failed("claim epoch", err)
}

// Clock is the server's own time.
func (s *Store) Clock(ctx context.Context) (time.Time, error) {
	now, err := s.client.Time(ctx).Result()
	return now, failed("read the time", err)
}

// Epoch is the newest leader's, 0 before the first.
func (s *Store) Epoch(ctx context.Context) (uint64, error) {
	text, err := s.field(ctx, fieldEpoch)
	if err != nil || text == "" {
		return 0, err
	}
	epoch, err := strconv.ParseUint(text, 10, 64)
	return epoch, failed("read epoch", err)
}

// Pause stops all removals, by any copy, until Resume. A second call keeps the
// first one's time and name.
func (s *Store) Pause(ctx context.Context, by string) error { return pause(ctx, s.client, by) }

func pause(ctx context.Context, client redis.UniversalClient, by string) error {
	now, err := client.Time(ctx).Result()
	if err != nil {
		return failed("pause", err)
	}
	_, err = client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HSetNX(ctx, controlKey, fieldPaused, now.UnixMilli())
		p.HSetNX(ctx, controlKey, fieldPausedBy, by)
		return nil
	})
	return failed("pause", err)
}

// Resume lets removals go on, and asks the daemon for a pass.
func (s *Store) Resume(ctx context.Context) error {
	_, err := s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HDel(ctx, controlKey, fieldPaused, fieldPausedBy)
		p.HSet(ctx, controlKey, fieldResync, rand.Text())
		return nil
	})
	return failed("resume", err)
}

// AskResync asks the daemon for a pass.
func (s *Store) AskResync(ctx context.Context) error {
	return failed("ask for a pass", s.client.HSet(ctx, controlKey, fieldResync, rand.Text()).Err())
}

// AcceptAbsent asks the daemon to let through, once, what its guard holds.
func (s *Store) AcceptAbsent(ctx context.Context) error {
	return failed("accept", s.client.HSet(ctx, controlKey, fieldAccept, rand.Text()).Err())
}

// TakeAccept is the token of AcceptAbsent, which is then used up; "" for none. It fails
// with reconciler.ErrStale where epoch is not the newest leader's, as do the others here
// that take one: nothing is changed then.
func (s *Store) TakeAccept(ctx context.Context, epoch uint64) (string, error) {
	return s.note(ctx, epoch, fieldAccept, "")
}

// TakeResync is the token of Resume, which is then used up; "" for none.
func (s *Store) TakeResync(ctx context.Context, epoch uint64) (string, error) {
	return s.note(ctx, epoch, fieldResync, "")
}

// note sets a field of the control hash, "" to delete it, and gives its value before.
func (s *Store) note(ctx context.Context, epoch uint64, field, value string) (before string, err error) {
	reply, err := noteScript.one(ctx, s.client, []string{controlKey}, epoch, field, value)
	if err != nil {
		return "", failed("write "+field, err)
	}
	answer, _ := reply.([]any)
	switch {
	case len(answer) == 0:
		return "", fmt.Errorf("note.lua: unexpected reply %v", reply)
	case answer[0] == int64(0):
		return "", reconciler.ErrStale
	case len(answer) > 1:
		before, _ = answer[1].(string)
	}
	return before, nil
}

// SaveGuard keeps the guard's state over restarts; empty means nothing to keep.
func (s *Store) SaveGuard(ctx context.Context, epoch uint64, state []byte) error {
	_, err := s.note(ctx, epoch, fieldGuard, string(state))
	return err
}

// LoadGuard is what SaveGuard kept; nil for nothing.
func (s *Store) LoadGuard(ctx context.Context) ([]byte, error) {
	text, err := s.field(ctx, fieldGuard)
	if text == "" {
		return nil, err
	}
	return []byte(text), err
}

// FullCleanupDue tells whether the last full cleanup began longer ago than every, and
// notes that one begins now. The first time it only notes the time.
func (s *Store) FullCleanupDue(ctx context.Context, every time.Duration) (bool, error) {
	now, err := s.client.Time(ctx).Result()
	if err != nil {
		return false, failed("read the time", err)
	}
	text, err := s.field(ctx, fieldFull)
	if err != nil {
		return false, err
	}
	last := millis(text)
	if !last.IsZero() && now.Sub(last) < every {
		return false, nil
	}
	return !last.IsZero(), failed("note the full cleanup", s.client.HSet(ctx, controlKey, fieldFull, now.UnixMilli()).Err())
}

// FullCleanupAgain makes the next full cleanup due in so long.
func (s *Store) FullCleanupAgain(ctx context.Context, every, in time.Duration) error {
	now, err := s.client.Time(ctx).Result()
	if err == nil {
		err = s.client.HSet(ctx, controlKey, fieldFull, now.Add(in-every).UnixMilli()).Err()
	}
	return failed("note the full cleanup", err)
}

// RecordIdentity keeps the database's identity at first start; stored is what
// was recorded then, be it value or another.
func (s *Store) RecordIdentity(ctx context.Context, value string) (stored string, err error) {
	if err := s.client.HSetNX(ctx, controlKey, fieldIdentity, value).Err(); err != nil {
		return "", failed("record identity", err)
	}
	return s.field(ctx, fieldIdentity)
}

// SetIdentity replaces the recorded identity: an operator says that the database
// is the right one.
func (s *Store) SetIdentity(ctx context.Context, epoch uint64, value string) error {
	_, err := s.note(ctx, epoch, fieldIdentity, value)
	return err
}

// State reads the control hash.
func (s *Store) State(ctx context.Context) (State, error) {
	fields, err := s.client.HGetAll(ctx, controlKey).Result()
	if err != nil {
		return State{}, failed("read state", err)
	}
	state := State{
		PausedBy: fields[fieldPausedBy], Accept: fields[fieldAccept], Resync: fields[fieldResync],
		Identity: fields[fieldIdentity],
	}
	if guard := fields[fieldGuard]; guard != "" {
		state.Guard = []byte(guard)
	}
	state.Epoch, _ = strconv.ParseUint(fields[fieldEpoch], 10, 64)
	if since, ok := fields[fieldPaused]; ok {
		state.Paused, state.PausedSince = true, millis(since)
	}
	return state, nil
}

func (s *Store) field(ctx context.Context, field string) (string, error) {
	text, err := s.client.HGet(ctx, controlKey, field).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return text, failed("read "+field, err)
}

// PublishStatus tells the CLI what a running copy says of itself, for ttl.
func (s *Store) PublishStatus(ctx context.Context, instance string, status []byte, ttl time.Duration) error {
	now := time.Now()
	_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, statusPrefix+instance, status, ttl)
		p.ZAdd(ctx, instancesKey, redis.Z{Score: float64(now.Add(ttl).UnixMilli()), Member: instance})
		p.ZRemRangeByScore(ctx, instancesKey, "-inf", "("+strconv.FormatInt(now.Add(-time.Hour).UnixMilli(), 10))
		return nil
	})
	return failed("publish status", err)
}

// ReadStatus is what each running copy last said of itself, by instance.
func (s *Store) ReadStatus(ctx context.Context) (map[string][]byte, error) {
	instances, err := s.client.ZRange(ctx, instancesKey, 0, -1).Result()
	if err != nil || len(instances) == 0 {
		return nil, failed("read status", err)
	}
	keys := make([]string, len(instances))
	for i, instance := range instances {
		keys[i] = statusPrefix + instance
	}
	values, err := s.client.MGet(ctx, keys...).Result()
	if err != nil {
		return nil, failed("read status", err)
	}
	out := make(map[string][]byte, len(values))
	for i, value := range values {
		if text, ok := value.(string); ok {
			out[instances[i]] = []byte(text)
		}
	}
	return out, nil
}
