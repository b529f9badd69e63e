package celery

import (
	"context"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

const (
	// scanCount is how many buckets one SCAN goes over: about 1 ms of the server.
	scanCount = 1000
	// scanTrim is how many ended records one Scan forgets at most, in steps.
	scanTrim = 1_000_000
)

// Scan finds every artifact and yields what each is of, in batches, until yield
// fails. SCAN may give a key more than once. Between calls it leaves the server
// the part of the time that Options.ScanShare does not take. Patterns are gone
// through one after the other, each over all the keys of the database.
func (s *Store) Scan(ctx context.Context, yield func([]reconciler.Look) error) error {
	for n := 0; n < scanTrim; n += trimEvery {
		if reply, err := trimScript.one(ctx, s.client, []string{recordsKey}, s.remember().Milliseconds(), trimEvery); err != nil {
			return failed("trim records", err)
		} else if reply == int64(0) {
			break
		}
	}
	total, err := s.CountEstimate(ctx)
	if err != nil {
		return err
	}
	patterns := s.Keys.Patterns()
	s.scanned.Store(0)
	s.total.Store(total * int64(len(patterns)))
	for i, pattern := range patterns {
		if err := s.scan(ctx, pattern, yield); err != nil {
			return err
		}
		s.scanned.Store(total * int64(i+1))
	}
	return nil
}

// Scanned is how many keys the newest Scan has gone over, of how many; all of them
// count once for each pattern.
func (s *Store) Scanned() (done, total int64) {
	total = s.total.Load()
	return min(s.scanned.Load(), total), total
}

func (s *Store) scan(ctx context.Context, pattern string, yield func([]reconciler.Look) error) error {
	pace := newPacer(s.options.ScanShare, paceBurst)
	return s.scanKeys(ctx, pattern, pace, func() { s.scanned.Add(scanCount) }, func(keys []string) error {
		looks := make([]reconciler.Look, 0, len(keys))
		for _, key := range keys {
			looks = s.Keys.AppendLooks(looks, key)
		}
		if len(looks) == 0 {
			return nil
		}
		return yield(looks)
	})
}

// scanKeys yields the keys of a pattern, in batches, and calls after each time that it
// has gone over scanCount of all keys.
func (s *Store) scanKeys(ctx context.Context, pattern string, pace *pacer, after func(), yield func(keys []string) error) error {
	var cursor uint64
	for {
		began := time.Now()
		keys, next, err := s.client.Scan(ctx, cursor, pattern, scanCount).Result()
		if err != nil {
			return failed("scan", err)
		}
		pace.owe(time.Since(began))
		if len(keys) > 0 {
			if err := yield(keys); err != nil {
				return err
			}
		}
		after()
		if cursor = next; cursor == 0 {
			return nil
		}
		if err := pace.pay(ctx); err != nil {
			return err
		}
	}
}

// pageTime bounds ScanPage where few of the keys are results.
const pageTime = time.Second

// ScanPage gives about count results from cursor on (see reconciler.Pages).
func (s *Store) ScanPage(ctx context.Context, cursor uint64, count int) ([]reconciler.Look, uint64, error) {
	// COUNT is of all keys: where few are results it takes some steps.
	looks := make([]reconciler.Look, 0, count)
	pace, start := newPacer(s.options.ScanShare, paceBurst), time.Now()
	for step := count; ; {
		began := time.Now()
		keys, next, err := s.client.Scan(ctx, cursor, s.Keys.Patterns()[0], int64(min(max(step, 1), scanCount))).Result()
		if err != nil {
			return nil, 0, failed("scan", err)
		}
		pace.owe(time.Since(began))
		if step *= 2; len(keys) > 0 {
			step = count - len(looks) - len(keys)
		}
		for _, key := range keys {
			if id, ok := s.Keys.ResultID(key); ok {
				looks = append(looks, reconciler.LookFor(reconciler.TaskSubject(id), id))
			}
		}
		if cursor = next; cursor == 0 || len(looks) >= count || time.Since(start) > pageTime {
			return looks, cursor, nil
		}
		if err := pace.pay(ctx); err != nil {
			return nil, 0, err
		}
	}
}

// CountEstimate is how many keys the database holds, ours and foreign ones too.
func (s *Store) CountEstimate(ctx context.Context) (int64, error) {
	n, err := s.client.DBSize(ctx).Result()
	return n, failed("count keys", err)
}
