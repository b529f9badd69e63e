package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// A batch is a transaction over a range of the primary key.
const (
	// batchRows is how many rows it reads at first. After one whose statement took over
	// batchTime it reads half as many, but minBatchRows; after a quick one twice as many.
	// Short ones keep a writer's p99 low where both compete for the same cores; see
	// TestMillionOrphans.
	batchRows    = 50
	minBatchRows = 50
	maxBatchRows = 150
	batchTime    = 1500 * time.Microsecond
	// batchShare is the part of the time in which one is under way.
	batchShare = 0.25
	// maxStuck is how many rows that cannot be removed are passed over, before their
	// table is given up.
	maxStuck = 50
	// maxAgain is how many ranges with rows that others had locked are read again, up
	// to lockedRounds times, a second apart.
	maxAgain     = 10_000
	lockedRounds = 3
	// askEvery is how often it is asked whether it may go on.
	askEvery = time.Second
)

// written tells whether a version of a row was written by a transaction that had
// ended before the mark, $1 being the mark modulo 2^32 and $2 the length of the
// window behind it in which ids are newer.
//
// xmin is the low half of the id of the transaction that wrote the version. All that
// have written since the mark lie in the window [mark, now + slack): whoever is to write
// a version that this statement meets runs now, or begins within its timeout, and
// 2^24 ids are not used up in that. Everything outside of the window is older, frozen
// rows too, however often ids have wrapped around since: PostgreSQL keeps their xmin,
// or a constant below 3. An ancient row whose id lies in the window by chance is kept.
const (
	written     = "(c.xmin::text::bigint < 3 OR ((c.xmin::text::bigint - $1::bigint) & 4294967295) >= $2::bigint)"
	windowSlack = 1 << 24
)

// walk removes the orphans of one child table.
type walk struct {
	s   *Store
	c   child
	how reconciler.ChildRemoval

	size    int
	asked   time.Time // when MayGoOn was
	removed int64
	stuck   int
	first   error // why the first of them is stuck
	// again are ranges in which rows were locked.
	again []keyRange
}

// keyRange is all keys over from, up to to; nil for no bound. Values are text.
type keyRange struct{ from, to []string }

// RemoveOrphans walks over the child table by its primary key. Each batch is one
// transaction, that decides, locks without waiting and deletes in one statement, so
// in one snapshot; writers wait for it at most as long as it takes.
//
// No row that is written meanwhile is met: see written. An UPDATE makes a new version,
// so a row that was moved by its key is not missed either.
func (s *Store) RemoveOrphans(ctx context.Context, t reconciler.ChildTable, how reconciler.ChildRemoval) (int64, error) {
	c, err := s.child(ctx, &t)
	if err != nil {
		return 0, err
	}
	w := &walk{s: s, c: c, how: how, size: batchRows}
	err = w.span(ctx, keyRange{})
	for round := 0; err == nil && len(w.again) > 0 && round < lockedRounds; round++ {
		if err = rest(ctx, time.Second); err != nil {
			break
		}
		again := w.again
		w.again = nil
		for _, r := range again {
			if err = w.span(ctx, r); err != nil {
				break
			}
		}
	}
	if err == nil && w.first != nil {
		err = w.stuckError()
	}
	return w.removed, failed("remove orphans of "+t.Name(), err)
}

// span removes the orphans of a range, batch by batch.
func (w *walk) span(ctx context.Context, r keyRange) error {
	for {
		if err := w.mayGoOn(ctx); err != nil {
			return err
		}
		began := time.Now()
		done, err := w.batch(ctx, r)
		took := time.Since(began)
		switch {
		case err == nil:
			w.account(done)
		case !done.read || !ofRows(err):
			return err
		case w.size > 1:
			w.size /= 2 // the same once more, by fewer
			done.last, done.to = false, r.from
		default:
			if w.stuck++; w.first == nil {
				w.first = err
			}
			if w.stuck == maxStuck {
				return w.stuckError()
			}
		}
		if done.last {
			return nil
		}
		r.from = done.to
		if err := rest(ctx, time.Duration(float64(took)*(1-batchShare)/batchShare)); err != nil {
			return err
		}
	}
}

func (w *walk) mayGoOn(ctx context.Context) error {
	if w.how.Limit > 0 && w.removed >= w.how.Limit {
		return &reconciler.GuardedError{Reason: fmt.Sprintf("more rows of %s have lost their parent meanwhile than were counted", w.c.t.Name())}
	}
	if now := time.Now(); w.how.MayGoOn != nil && now.Sub(w.asked) > askEvery {
		w.asked = now
		if err := w.how.MayGoOn(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (w *walk) account(done batchDone) {
	w.removed += done.removed
	if done.orphans > done.removed && len(w.again) < maxAgain {
		w.again = append(w.again, done.keyRange)
	}
	if w.how.Progress != nil && done.removed > 0 {
		w.how.Progress(w.removed)
	}
	switch {
	case w.size < minBatchRows || done.took < batchTime/2:
		w.size = min(maxBatchRows, 2*w.size)
	case done.took > batchTime:
		w.size = max(minBatchRows, w.size/2)
	}
}

func (w *walk) stuckError() error {
	return fmt.Errorf("%d rows cannot be removed, the first: %w", w.stuck, w.first)
}

func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ofRows tells whether an error may come from single rows: what references them,
// triggers, locks, a batch that takes too long.
func ofRows(err error) bool {
	var server *pgconn.PgError
	if !errors.As(err, &server) {
		return false
	}
	switch server.Code[:2] {
	case "22", "23", "27", "38", "39", "40", "P0": // data, integrity, triggers, routines, rollback, RAISE
		return true
	}
	return server.Code == "55P03" || server.Code == "57014" // lock_timeout, statement_timeout
}

// batchDone is what a batch did in its range.
type batchDone struct {
	keyRange
	// read: the range is known. last: it reaches to the end of what was asked for.
	read, last       bool
	orphans, removed int64
	// took is the time of its statement: of the rest, reading fewer rows saves nothing.
	took time.Duration
}

// batchSettings are those of its transaction. The planner knows neither how few rows a
// batch reads nor, where the table has just grown, how large it is.
var batchSettings = []string{"plan_cache_mode = force_custom_plan", "enable_seqscan = off", "jit = off"}

// batch removes the orphans among the first rows of a range. It is not cancelled with
// ctx: it would not be known whether it was done.
func (w *walk) batch(ctx context.Context, r keyRange) (done batchDone, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*batchTimeout+answerSlack)
	defer cancel()
	err = w.s.inTransaction(ctx, batchTimeout, batchSettings, func(tx pgx.Tx, now session) error {
		mark := w.how.Mark
		if now.identity != mark.Identity || now.started != mark.Started || now.snapshot.Xmax < mark.Before {
			return errors.New("the server was restarted, or is another, since the cleanup began; begin anew")
		}
		if done.to, err = w.page(ctx, tx, r); err != nil {
			return err
		}
		done.from, done.read, done.last = r.from, true, done.to == nil
		if done.last {
			done.to = r.to
		}
		window := now.snapshot.Xmax - mark.Before + windowSlack
		if window >= 1<<31 {
			return errors.New("2^31 transactions have passed since the cleanup began; begin anew")
		}
		var parents bool
		args := append([]any{int64(mark.Before & (1<<32 - 1)), int64(window)}, done.values()...)
		began := time.Now()
		if err := tx.QueryRow(ctx, w.sql(done.keyRange), args...).Scan(&done.orphans, &done.removed, &parents); err != nil {
			return err
		}
		done.took = time.Since(began)
		if !parents && !w.how.AllowEmpty {
			return &reconciler.GuardedError{Reason: "table " + w.c.parent.Name() + " is empty"}
		}
		return nil
	})
	return done, err
}

// page is the key of the last row of the next batch of a range, nil where there are
// fewer left.
func (w *walk) page(ctx context.Context, tx pgx.Tx, r keyRange) (to []string, err error) {
	key := make([]string, len(w.c.key))
	for i, name := range w.c.key {
		key[i] = "c." + pgx.Identifier{name}.Sanitize()
	}
	sql := fmt.Sprintf("SELECT ARRAY[%s::text] FROM %s WHERE %s ORDER BY %s OFFSET $1 LIMIT 1",
		strings.Join(key, "::text, "), w.c.from(), w.c.within(r, 2), strings.Join(key, ", "))
	err = tx.QueryRow(ctx, sql, append([]any{w.size - 1}, r.values()...)...).Scan(&to)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return to, err
}

// sql decides and deletes in one snapshot. Rows that a transaction has locked are left,
// where we may lock rows ourselves; else they are waited for until the lock's timeout.
// A row that was changed since the snapshot is judged anew by the server, and is newer
// than the mark. Whether the parent has any row at all is asked each time: TRUNCATE shows
// in older snapshots, too.
func (w *walk) sql(r keyRange) string {
	c := w.c
	here := func(in string) string {
		return fmt.Sprintf("c.ctid = ANY (ARRAY(SELECT tid FROM %[1]s)) AND (c.tableoid, c.ctid) IN (SELECT tab, tid FROM %[1]s)", in)
	}
	from, lock := c.from(), ""
	if c.locks {
		lock = " FOR UPDATE OF c SKIP LOCKED"
	}
	return fmt.Sprintf(`WITH orphan AS MATERIALIZED (SELECT c.tableoid AS tab, c.ctid AS tid FROM %s WHERE %s AND %s AND %s),
	free AS MATERIALIZED (SELECT c.tableoid AS tab, c.ctid AS tid FROM %s WHERE %s AND %s%s),
	gone AS (DELETE FROM %s WHERE %s AND %s AND %s RETURNING 1)
	SELECT (SELECT count(*) FROM orphan), (SELECT count(*) FROM gone), EXISTS (SELECT 1 FROM %s)`,
		from, c.within(r, 3), written, c.orphaned(true),
		from, here("orphan"), written, lock,
		from, here("free"), written, c.orphaned(true), qualified(c.parent))
}

// within is the condition of a range, whose values are the parameters from n on.
func (c child) within(r keyRange, n int) string {
	key := make([]string, len(c.key))
	for i, name := range c.key {
		key[i] = "c." + pgx.Identifier{name}.Sanitize()
	}
	parts := []string{"true"}
	bound := func(than string, values []string) {
		if values == nil {
			return
		}
		params := make([]string, len(values))
		for i := range values {
			params[i] = fmt.Sprintf("CAST($%d::text AS %s)", n+i, c.types[i])
		}
		n += len(values)
		parts = append(parts, fmt.Sprintf("(%s) %s (%s)", strings.Join(key, ", "), than, strings.Join(params, ", ")))
	}
	bound(">", r.from)
	bound("<=", r.to)
	return strings.Join(parts, " AND ")
}

func (r keyRange) values() (all []any) {
	for _, v := range append(r.from[:len(r.from):len(r.from)], r.to...) {
		all = append(all, v)
	}
	return all
}
