package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

const resultPrefix = "celery-task-meta-"

// A wave is what the demo does on purpose to rows or keys.
const (
	oneByOne = iota
	inBulk
	whileDead
	whileRunning
	whileWaiting
	orphanKeys
	numWaves
)

var waveNames = [numWaves]string{"deleted one by one", "deleted in bulk", "deleted around a kill -9", "deleted while the task ran", "deleted while it waited", "orphan keys, no row"}

type wave struct {
	ids  []string
	left int    // result keys still there at the last look
	note string // what was measured
}

// world keeps the books that the daemon is judged by: what must be there, byte for
// byte, and what must not. It talks to the stores through connections of its own.
type world struct {
	redis *redis.Client

	mu sync.Mutex
	// living are the rows, with the result that each must keep; "" while its task
	// has not ended.
	living map[string]string
	// history and tasks are those of them that may be deleted: whose results were
	// there at the start, and whose tasks run now.
	history, tasks []string
	// strangers are keys that are no business of orphanwatch.
	strangers map[string]string
	waves     [numWaves]wave
	lags      []time.Duration
	// wrong is what was ever missing or changed and must not, by key.
	wrong map[string]string
}

func newWorld(client *redis.Client) *world {
	return &world{redis: client, living: map[string]string{}, strangers: map[string]string{}, wrong: map[string]string{}}
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func newUUIDs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = newUUID()
	}
	return ids
}

// resultOf is a result as Celery's JSON serializer writes it.
func resultOf(id string) string {
	return fmt.Sprintf(`{"status": "SUCCESS", "result": {"task_id": %q, "target": "example.org", "status": "done"}, "traceback": null, "children": [], "date_done": %q, "task_id": %q}`,
		id, time.Now().UTC().Format("2006-01-02T15:04:05.000000+00:00"), id)
}

// insert adds rows.
func (w *world) insert(ctx context.Context, db *pgx.Conn, ids []string) error {
	_, err := db.Exec(ctx, "INSERT INTO scan_tasks (id, target) SELECT id, 'example.org' FROM unnest($1::text[]::uuid[]) id", ids)
	if err != nil {
		return fmt.Errorf("insert rows: %w", err)
	}
	return nil
}

// live puts rows into the books. Their results are known, or their tasks are to run.
func (w *world) live(ids, results []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, id := range ids {
		w.living[id] = ""
		if results != nil {
			w.living[id] = results[i]
		}
	}
}

// finish writes results the way Celery does: SETEX and PUBLISH within MULTI.
func (w *world) finish(ctx context.Context, ids, results []string) error {
	for from := 0; from < len(ids); from += 100 {
		_, err := w.redis.TxPipelined(ctx, func(p redis.Pipeliner) error {
			for i := from; i < min(from+100, len(ids)); i++ {
				p.SetEx(ctx, resultPrefix+ids[i], results[i], 24*time.Hour)
				p.Publish(ctx, resultPrefix+ids[i], results[i])
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("write results: %w", err)
		}
	}
	return nil
}

// pick takes rows for a deletion out of the books of the living: those whose result
// is known (ended), or whose task is still to end. Celery's own come first, as long as
// enough of them stay.
func (w *world) pick(n int, to int, ended bool) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ids []string
	take := func(from *[]string, keep int) {
		kept := (*from)[:0]
		for i, id := range *from {
			if len(ids) < n && len(*from)-i > keep && (w.living[id] != "") == ended {
				ids = append(ids, id)
				delete(w.living, id)
			} else {
				kept = append(kept, id)
			}
		}
		*from = kept
	}
	if ended && n == 1 {
		take(&w.tasks, 50)
	} else if !ended {
		take(&w.tasks, 0)
	}
	if ended {
		take(&w.history, 1000)
	}
	w.waves[to].ids = append(w.waves[to].ids, ids...)
	return ids
}

func (w *world) deleteRows(ctx context.Context, db *pgx.Conn, ids []string) error {
	tag, err := db.Exec(ctx, "DELETE FROM scan_tasks WHERE id = ANY ($1::text[]::uuid[])", ids)
	if err == nil && tag.RowsAffected() != int64(len(ids)) {
		err = fmt.Errorf("%d rows went instead of %d", tag.RowsAffected(), len(ids))
	}
	if err != nil {
		return fmt.Errorf("delete rows: %w", err)
	}
	return nil
}

// awaitGone asks again and again until no result of these ids is left.
func (w *world) awaitGone(ctx context.Context, ids []string, pause time.Duration) error {
	for len(ids) > 0 {
		n := min(500, len(ids))
		left, err := w.exists(ctx, ids[:n])
		switch {
		case err != nil:
			return err
		case left == 0:
			ids = ids[n:]
		case pause > 0:
			if err := sleep(ctx, pause); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) exists(ctx context.Context, ids []string) (int, error) {
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = resultPrefix + id
	}
	n, err := w.redis.Exists(ctx, keys...).Result()
	if err != nil {
		return 0, fmt.Errorf("look for results: %w", err)
	}
	return int(n), nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// percentile is the p-th of sorted values.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}
