package celery

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

const (
	// removeCalls go in one pipeline.
	removeCalls = 500
	// trimEvery so many records the set of records is trimmed, by up to twice as many.
	trimEvery = 1000
)

// Remove takes out the artifacts that are still what their stamps say, each
// subject's in one atomic step, and remembers them. After an error some may have
// been removed: asking again is right.
func (s *Store) Remove(ctx context.Context, epoch uint64, removals []reconciler.Removal) ([]reconciler.RemoveResult, error) {
	results := make([]reconciler.RemoveResult, 0, len(removals))
	fixed := []any{epoch, s.options.Quarantine.Milliseconds(), s.remember().Milliseconds()}
	for len(removals) > 0 {
		now := removals[:min(removeCalls, len(removals))]
		removals = removals[len(now):]
		deadline, err := s.clock.deadlines(ctx, s.client)
		if err != nil {
			return nil, failed("remove", err)
		}
		calls := make([]call, len(now))
		for i, r := range now {
			calls[i] = s.removal(fixed, r, deadline(r.Looked))
		}
		replies, err := removeScript.run(ctx, s.client, calls)
		if err != nil {
			return nil, failed("remove", err)
		}
		for i, r := range now {
			result, err := removed(r, replies[i])
			if err != nil {
				return nil, failed("remove", err)
			}
			if result.Status == reconciler.Late {
				s.clock.forget()
			}
			results = append(results, result)
		}
		if s.records.Add(int64(len(now))) >= trimEvery {
			s.records.Store(0)
			if err := s.trim(ctx, 2*trimEvery); err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

// Revive tells of subjects whose row exists (see revive.lua).
func (s *Store) Revive(ctx context.Context, epoch uint64, revivals []reconciler.Revival) (late []bool, err error) {
	late, err = revive(ctx, s.client, &s.clock, epoch, revivals, func(of reconciler.Subject) string {
		return recordPrefix + s.Keys.recordID(of)
	})
	return late, failed("revive", err)
}

func revive(ctx context.Context, client redis.UniversalClient, c *clock, epoch uint64, revivals []reconciler.Revival, record func(reconciler.Subject) string) ([]bool, error) {
	at, err := c.read(ctx, client)
	if err != nil {
		return nil, err
	}
	calls := make([]call, len(revivals))
	for i, r := range revivals {
		calls[i] = call{[]string{controlKey, record(r.Subject)}, []any{epoch, at(r.Looked).UnixMilli()}}
	}
	replies, err := reviveScript.run(ctx, client, calls)
	if err != nil {
		return nil, err
	}
	late := make([]bool, len(revivals))
	for i, reply := range replies {
		switch reply {
		case string(reconciler.Stale):
			return nil, reconciler.ErrStale
		case string(reconciler.Late):
			late[i] = true
			c.forget()
		}
	}
	return late, nil
}

// remember is how long a record lasts: the place of a quarantined value is in it.
func (s *Store) remember() time.Duration { return max(s.options.Remember, s.options.Quarantine) }

func (s *Store) removal(fixed []any, r reconciler.Removal, deadline int64) call {
	id := s.Keys.recordID(r.Subject)
	keys := make([]string, 0, 3+len(r.Artifacts))
	keys = append(keys, controlKey, recordPrefix+id, recordsKey)
	args := make([]any, 0, 23+4*len(r.Artifacts))
	args = append(args, fixed...)
	args = append(args, id, string(r.Record.Evidence), nil)
	args = appendFields(args, r.Subject.ID, r.Record)
	args[5] = len(args) - 6
	for _, a := range r.Artifacts {
		keys = append(keys, a.Key)
		args = append(args, string(a.Kind), a.Stamp.Len, a.Stamp.Head, a.Stamp.Tail)
	}
	return call{keys, append(args, deadline)}
}

// appendFields writes what is known of a removal, each field under its name in
// the record; what is empty is left out, and so is a key that is the id itself.
func appendFields(args []any, id string, r reconciler.Record) []any {
	args = append(args, "trigger", string(r.Trigger))
	if r.Table != "" {
		args = append(args, "table", r.Table)
	}
	if r.Key != "" && r.Key != id {
		args = append(args, "key", r.Key)
	}
	if r.LSN != "" {
		args = append(args, "lsn", r.LSN)
	}
	if r.XID != 0 {
		args = append(args, "xid", strconv.FormatUint(uint64(r.XID), 10))
	}
	if !r.CommitTime.IsZero() {
		args = append(args, "commit_time", r.CommitTime.UTC().Format(time.RFC3339Nano))
	}
	if r.TraceID != "" {
		args = append(args, "trace_id", r.TraceID)
	}
	if r.Ended { // the last one: see remove.lua
		args = append(args, "ended", "1")
	}
	return args
}

// removed reads a reply of remove.lua.
func removed(r reconciler.Removal, reply any) (reconciler.RemoveResult, error) {
	text, ok := reply.(string)
	status, letters, _ := strings.Cut(text, " ")
	if !ok || len(letters) > len(r.Artifacts) {
		return reconciler.RemoveResult{}, fmt.Errorf("remove.lua: unexpected reply %v", reply)
	}
	result := reconciler.RemoveResult{Status: reconciler.RemoveStatus(status)}
	for i := range letters {
		if letters[i] == '1' {
			if result.Count == nil {
				result.Count = make(map[reconciler.ArtifactKind]int, 1)
			}
			result.Count[r.Artifacts[i].Kind]++
		}
	}
	return result, nil
}

// trim forgets records of the set that have ended, n at most.
func (s *Store) trim(ctx context.Context, n int) error {
	_, err := trimScript.one(ctx, s.client, []string{recordsKey}, s.remember().Milliseconds(), n)
	return failed("trim records", err)
}
