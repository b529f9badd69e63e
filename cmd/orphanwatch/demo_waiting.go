package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

const (
	waitingRows = 40 // half of them queued, half held by the worker for their ETA
	waitingFor  = 6 * time.Second
	laterQueue  = "later" // no worker consumes it before the rows are deleted
	runsDB      = 9       // where tasks record that they start
)

// deleteWaiting deletes rows whose tasks wait: they must not run. Every fourth row
// stays, and its task must.
func (d *demo) deleteWaiting(ctx context.Context, db *pgx.Conn) error {
	if d.producer == nil {
		d.note(whileWaiting, "not shown: there is no Celery here")
		return nil
	}
	ids := newUUIDs(waitingRows + waitingRows/3)
	doomed, living := ids[:waitingRows], ids[waitingRows:]
	if err := d.insert(ctx, db, ids); err != nil {
		return err
	}
	d.live(living, nil)
	d.mu.Lock()
	d.waves[whileWaiting].ids = doomed
	d.mu.Unlock()
	var tasks []sandbox.Task
	for i, id := range ids {
		options := map[string]any{"queue": laterQueue}
		if i%2 == 0 {
			options = map[string]any{"countdown": waitingFor.Seconds()}
		}
		tasks = append(tasks, sandbox.Task{ID: id, Name: sandbox.ScanTask, Args: []any{id, "user-1", "example.org"}, Options: options})
	}
	if _, err := d.producer.Send(ctx, tasks...); err != nil {
		return fmt.Errorf("send tasks: %w", err)
	}
	await := func(what string, of []string, want int) error {
		within, cancel := context.WithTimeout(ctx, goneWithin)
		defer cancel()
		return sandbox.Await(within, what, func() error {
			n, err := d.waiting(ctx, of)
			if err == nil && n != want {
				err = fmt.Errorf("%d of %d wait", n, len(of))
			}
			return err
		})
	}
	if err := await("tasks to wait in a queue and with the worker", ids, len(ids)); err != nil {
		return err
	}
	d.screen.say("%d rows are deleted while their tasks wait, queued or held by the worker: none may run", len(doomed))
	if err := d.deleteRows(ctx, db, doomed); err != nil {
		return err
	}
	begin := time.Now()
	if err := await("the messages of deleted rows to be gone", doomed, 0); err != nil {
		return err
	}
	d.note(whileWaiting, "the last message gone %d ms after the commit", time.Since(begin).Milliseconds())
	var err error
	d.later, err = d.sb.StartWorker(ctx, sandbox.WorkerOptions{Celery: d.celery(), Pool: "solo", Queues: []string{laterQueue}})
	if err != nil {
		return fmt.Errorf("consume the queue %s: %w", laterQueue, err)
	}
	return nil
}

// waiting counts those of the tasks that have a message, queued or held.
func (d *demo) waiting(ctx context.Context, ids []string) (int, error) {
	queued, err := d.redis.LRange(ctx, laterQueue, 0, -1).Result()
	if err != nil {
		return 0, fmt.Errorf("read queue: %w", err)
	}
	held, err := d.redis.HVals(ctx, "unacked").Result()
	if err != nil {
		return 0, fmt.Errorf("read unacked: %w", err)
	}
	all := strings.Join(append(queued, held...), "\n")
	n := 0
	for _, id := range ids {
		if strings.Contains(all, `"id": "`+id+`"`) {
			n++
		}
	}
	return n, nil
}

// celery is the application of the workers and the producer.
func (d *demo) celery() sandbox.Celery { return sandbox.Celery{Runs: d.sb.Redis.DB(runsDB)} }

// ran are those of the rows deleted while their tasks waited whose tasks have run.
func (d *demo) ran(ctx context.Context) ([]string, error) {
	client := d.sb.Redis.Client(runsDB)
	defer func() { _ = client.Close() }()
	runs, err := sandbox.ReadRuns(ctx, client, 0)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	doomed := map[string]bool{}
	for _, id := range d.waves[whileWaiting].ids {
		doomed[id] = true
	}
	var out []string
	for _, r := range runs {
		if doomed[r.Row] {
			out = append(out, r.Row)
		}
	}
	return out, nil
}
