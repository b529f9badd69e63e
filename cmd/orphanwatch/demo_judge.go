package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// look compares the books with Redis once: it learns the results that Celery has
// written meanwhile, counts what is left of each wave, and notes what is wrong.
func (w *world) look(ctx context.Context) error {
	w.mu.Lock()
	living, strangers := maps.Clone(w.living), w.strangers
	var waves [numWaves][]string
	for i := range waves {
		waves[i] = slices.Clone(w.waves[i].ids)
	}
	w.mu.Unlock()

	for i, ids := range waves {
		left := 0
		for chunk := range slices.Chunk(ids, 500) {
			n, err := w.exists(ctx, chunk)
			if err != nil {
				return err
			}
			left += n
		}
		w.mu.Lock()
		w.waves[i].left = left
		w.mu.Unlock()
	}
	want := maps.Clone(strangers)
	for id, value := range living {
		want[resultPrefix+id] = value
	}
	for keys := range slices.Chunk(slices.Collect(maps.Keys(want)), 500) {
		values, err := w.redis.MGet(ctx, keys...).Result()
		if err != nil {
			return fmt.Errorf("read results: %w", err)
		}
		w.mu.Lock()
		for i, key := range keys {
			got, there := values[i].(string)
			w.compare(key, want[key], got, there)
		}
		w.mu.Unlock()
	}
	return nil
}

// compare notes one key of which the books say that it must be there. w.mu is held.
func (w *world) compare(key, want, got string, there bool) {
	id := key[min(len(key), len(resultPrefix)):]
	_, lives := w.living[id]
	_, strange := w.strangers[key]
	switch {
	case !lives && !strange: // deleted since
	case want == "" && there:
		w.living[id] = got
	case want != "" && !there:
		w.wrong[key] = "it is gone"
	case want != "" && got != want:
		w.wrong[key] = fmt.Sprintf("it is %q and was %q", got, want)
	}
}

// verdict is the end of the demo.
type verdict struct {
	removed, kept int
	lost          []string          // result keys without a row
	wrong         map[string]string // result keys that went or changed, and must not
	ran           []string          // rows whose waiting tasks ran after they were deleted
}

// judge compares both stores as they are, and the books with both: a result key
// without a row is lost; a row without its result, or with another one, is wrong.
func (w *world) judge(ctx context.Context, db *pgx.Conn) (verdict, error) {
	var v verdict
	if err := w.look(ctx); err != nil {
		return v, err
	}
	rows, err := db.Query(ctx, "SELECT id::text FROM scan_tasks")
	if err != nil {
		return v, fmt.Errorf("read rows: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return v, fmt.Errorf("read rows: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	v.wrong = maps.Clone(w.wrong)
	exists := make(map[string]bool, len(ids))
	for _, id := range ids {
		exists[resultPrefix+id] = true
		switch value, known := w.living[id]; {
		case !known:
			return v, errors.New("the demo's books are wrong: row " + id + " is not in them")
		case value == "":
			v.wrong[resultPrefix+id] = "its task has ended, and no result was ever seen"
		case v.wrong[resultPrefix+id] == "":
			v.kept++
		}
	}
	if len(ids) != len(w.living) {
		return v, fmt.Errorf("the demo's books are wrong: %d rows, %d in them", len(ids), len(w.living))
	}
	found := w.redis.Scan(ctx, 0, resultPrefix+"*", 1000).Iterator()
	for found.Next(ctx) {
		if key := found.Val(); !exists[key] && w.strangers[key] == "" {
			v.lost = append(v.lost, key)
		}
	}
	slices.Sort(v.lost)
	v.lost = slices.Compact(v.lost) // SCAN may tell a key twice
	for i := range w.waves {
		v.removed += len(w.waves[i].ids) - w.waves[i].left
	}
	if err := found.Err(); err != nil {
		return v, fmt.Errorf("list results: %w", err)
	}
	return v, nil
}

// settle lets every task end, gives the daemon time for what came last, and judges.
func (d *demo) settle(ctx context.Context) (v verdict, err error) {
	d.screen.say("no more work; the last tasks end")
	if d.worker != nil {
		err := sandbox.Await(ctx, "Celery's queue is empty", func() error {
			waiting, err := d.redis.LLen(ctx, "celery").Result()
			later, err2 := d.redis.LLen(ctx, laterQueue).Result()
			taken, err3 := d.redis.HLen(ctx, "unacked").Result()
			err = errors.Join(err, err2, err3)
			if err == nil && waiting+later+taken > 0 {
				err = fmt.Errorf("%d messages wait, %d are with the workers", waiting+later, taken)
			}
			return err
		})
		if err != nil {
			return v, err
		}
		for _, w := range []*sandbox.Worker{d.worker, d.later} {
			if _, err := w.Stop(ctx); err != nil { // waits for the tasks that run
				return v, err
			}
		}
	}
	db, err := d.connect(ctx)
	if err != nil {
		return v, err
	}
	defer hangUp(ctx, db)
	until := time.Now().Add(settleWithin)
	for {
		if v, err = d.judge(ctx, db); err != nil || len(v.lost) == 0 || time.Now().After(until) {
			break
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return v, err
		}
	}
	if err != nil {
		return v, err
	}
	// Once more, when a late mistake would have shown.
	if err := sleep(ctx, demoGrace/2); err != nil {
		return v, err
	}
	if v, err = d.judge(ctx, db); err != nil {
		return v, err
	}
	v.ran, err = d.ran(ctx)
	return v, err
}
