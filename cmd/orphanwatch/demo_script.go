package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// How much the demo does.
const (
	historyRows  = 8000 // rows with results, half of them there before the daemon starts
	bulkRows     = 5000
	deadFor      = 2 * time.Second
	orphanCount  = 20
	lateRows     = 10
	runningRows  = 30
	taskEvery    = 50 * time.Millisecond
	deleteEvery  = 40 * time.Millisecond
	taskTakes    = 100 * time.Millisecond
	bulkPause    = 5 * time.Millisecond
	goneWithin   = 20 * time.Second
	settleWithin = 20 * time.Second
)

// script is what happens, while rows are inserted and their tasks run all the time.
func (d *demo) script(ctx context.Context) (err error) {
	db, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, db)

	feeding, stopFeeding := context.WithCancel(ctx)
	var side sync.WaitGroup
	var feedErr, lateErr, orphanErr error
	side.Go(func() { feedErr = d.feed(ctx, feeding) })
	defer func() {
		stopFeeding()
		side.Wait()
		for _, e := range []error{feedErr, lateErr, orphanErr} {
			if err == nil {
				err = e
			}
		}
	}()

	d.screen.say("rows are deleted one by one, while others are inserted and their tasks run")
	side.Go(func() { orphanErr = d.setOrphans(ctx) })
	side.Go(func() { lateErr = d.commitLate(ctx) })
	if err := d.deleteOneByOne(ctx, db, 0.35); err != nil {
		return err
	}
	if err := d.deleteBulk(ctx, db); err != nil {
		return err
	}
	if err := d.deleteRunning(ctx, db); err != nil {
		return err
	}
	if err := d.deleteWaiting(ctx, db); err != nil {
		return err
	}
	if err := d.killDaemon(ctx, db); err != nil {
		return err
	}
	d.screen.say("rows are deleted one by one again")
	return d.deleteOneByOne(ctx, db, 0.85)
}

// feed inserts rows and runs their tasks until feeding ends.
func (d *demo) feed(ctx, feeding context.Context) error {
	db, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, db)
	var simulated sync.WaitGroup
	defer simulated.Wait()
	for sleep(feeding, taskEvery) == nil {
		id := newUUID()
		if err := d.insert(ctx, db, []string{id}); err != nil {
			return err
		}
		d.live([]string{id}, nil)
		d.mu.Lock()
		d.tasks = append(d.tasks, id)
		d.mu.Unlock()
		if d.producer == nil {
			simulated.Go(func() {
				if sleep(ctx, taskTakes) == nil {
					_ = d.finish(ctx, []string{id}, resultsOf([]string{id})) // the judge misses the result
				}
			})
			continue
		}
		_, err := d.producer.Send(ctx, sandbox.Task{
			ID: id, Name: sandbox.ScanTask, Args: []any{id, "user-1", "example.org"},
			Kwargs: map[string]any{"sleep": taskTakes.Seconds()},
		})
		if err != nil {
			return fmt.Errorf("send a task: %w", err)
		}
	}
	return nil
}

// deleteOneByOne deletes rows until a part of the demo's time has passed, and times
// how long each result outlives the commit.
func (d *demo) deleteOneByOne(ctx context.Context, db *pgx.Conn, part float64) error {
	until := d.screen.begin.Add(time.Duration(part * float64(d.length)))
	for n := 0; n < 20 || time.Now().Before(until); n++ {
		ids := d.pick(1, oneByOne, true)
		if err := d.deleteRows(ctx, db, ids); err != nil {
			return err
		}
		lag, err := d.timeGone(ctx, ids, 0) // no pause: sleeping takes a millisecond at least
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.lags = append(d.lags, lag)
		d.mu.Unlock()
		if lag >= goneWithin {
			return nil // the judge tells
		}
		if err := sleep(ctx, deleteEvery); err != nil {
			return err
		}
	}
	return nil
}

// setOrphans writes results of rows that never were.
func (d *demo) setOrphans(ctx context.Context) error {
	ids := newUUIDs(orphanCount)
	d.screen.say("%d results are written whose rows never were: they go after the grace", len(ids))
	d.mu.Lock()
	d.waves[orphanKeys].ids = ids
	d.mu.Unlock()
	if err := d.finish(ctx, ids, resultsOf(ids)); err != nil {
		return err
	}
	took, err := d.timeGone(ctx, ids, bulkPause)
	if err == nil {
		d.note(orphanKeys, "all gone %.1f s after they were set (grace %v)", took.Seconds(), demoGrace)
	}
	return err
}

// commitLate writes results long before their rows are committed, which must keep them.
func (d *demo) commitLate(ctx context.Context) error {
	db, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, db)
	ids := newUUIDs(lateRows)
	results := resultsOf(ids)
	d.live(ids, results)
	tx, err := db.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := d.insert(ctx, tx.Conn(), ids); err != nil {
		return err
	}
	if err := d.finish(ctx, ids, results); err != nil {
		return err
	}
	open := demoGrace + time.Second
	d.screen.say("%d results are written whose rows are committed only %v later: they must stay", len(ids), open)
	if err := sleep(ctx, open); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

func (d *demo) deleteBulk(ctx context.Context, db *pgx.Conn) error {
	ids := d.pick(bulkRows, inBulk, true)
	d.screen.say("%d rows are deleted by one statement", len(ids))
	if err := d.deleteRows(ctx, db, ids); err != nil {
		return err
	}
	took, err := d.timeGone(ctx, ids, bulkPause)
	if err == nil {
		d.note(inBulk, "the last key gone %.2f s after the commit", took.Seconds())
	}
	return err
}

// deleteRunning deletes rows whose tasks wait or run: their results come afterwards.
func (d *demo) deleteRunning(ctx context.Context, db *pgx.Conn) error {
	n := 0
	for tries := 0; n < runningRows && tries < 5*runningRows; tries++ {
		if ids := d.pick(5, whileRunning, false); len(ids) > 0 {
			if err := d.deleteRows(ctx, db, ids); err != nil {
				return err
			}
			n += len(ids)
		}
		if err := sleep(ctx, taskEvery/2); err != nil {
			return err
		}
	}
	d.screen.say("%d rows are deleted while their tasks run: their results come later, and go", n)
	d.note(whileRunning, "results that came after the row had gone")
	return nil
}

// killDaemon deletes rows before, during and after a time without a daemon.
func (d *demo) killDaemon(ctx context.Context, db *pgx.Conn) error {
	var all []string
	deleteFor := func(t time.Duration) error {
		for until := time.Now().Add(t); time.Now().Before(until); {
			ids := d.pick(10, whileDead, true)
			if err := d.deleteRows(ctx, db, ids); err != nil {
				return err
			}
			all = append(all, ids...)
			if err := sleep(ctx, deleteEvery); err != nil {
				return err
			}
		}
		return nil
	}
	if err := deleteFor(200 * time.Millisecond); err != nil {
		return err
	}
	d.screen.say("kill -9 of the daemon (pid %d); rows are deleted meanwhile", d.daemon.kill())
	if err := deleteFor(deadFor); err != nil {
		return err
	}
	if err := d.daemon.start(); err != nil {
		return err
	}
	d.screen.say("the daemon starts again: %d rows were deleted around its death", len(all))
	took, err := d.timeGone(ctx, all, bulkPause)
	if err == nil {
		d.note(whileDead, "the last key gone %.2f s after the restart", took.Seconds())
	}
	return err
}

// timeGone is how long it takes until all results are gone. It gives up after a
// while: what is left then, or comes again, the judge finds.
func (d *demo) timeGone(ctx context.Context, ids []string, pause time.Duration) (time.Duration, error) {
	within, cancel := context.WithTimeout(ctx, goneWithin)
	defer cancel()
	begin := time.Now()
	err := d.awaitGone(within, ids, pause)
	if within.Err() != nil && ctx.Err() == nil {
		err = nil
	}
	return time.Since(begin), err
}

func (d *demo) note(wave int, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waves[wave].note = fmt.Sprintf(format, args...)
}
