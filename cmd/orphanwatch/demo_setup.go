package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// setUp starts the servers, fills them and starts the daemon.
func (d *demo) setUp(ctx context.Context) (err error) {
	if d.sb, err = sandbox.Start(ctx, sandbox.Options{}); err != nil {
		return err
	}
	if d.database, err = d.sb.Postgres.NewExampleDatabase(ctx); err != nil {
		return err
	}
	d.world = newWorld(d.sb.Redis.Client(0))
	d.screen.say("PostgreSQL on %s, Redis on %s, in %s", d.sb.Postgres.Addr(), d.sb.Redis.Addr(), d.sb.Dir())

	db, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, db)
	if err := d.addHistory(ctx, db, historyRows/2); err != nil {
		return err
	}
	// Never to be touched: what is not a result, and what only looks a bit like one.
	d.strangers = map[string]string{
		"session:" + newUUID(): "a web session", "cache:front-page": "<html>",
		resultPrefix + "report-2025":       `{"status": "SUCCESS", "result": "no UUID, so no row of this table"}`,
		"celery-taskset-meta-" + newUUID(): `{"result": [null, []]}`,
	}
	for key, value := range d.strangers {
		if err := d.redis.Set(ctx, key, value, time.Hour).Err(); err != nil {
			return fmt.Errorf("write %s: %w", key, err)
		}
	}
	d.screen.say("%d rows in scan_tasks with a result key each, and %d keys of others", len(d.history), len(d.strangers))

	if d.daemon, err = newDaemon(d.environ, d.sb, d.database, demoGrace); err != nil {
		return err
	}
	if err := d.daemon.start(); err != nil {
		return err
	}
	d.startCelery(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.daemon.ready(ctx); err != nil {
		return err
	}
	d.screen.say("the daemon watches (http://%s/metrics), grace %v", d.daemon.addr, demoGrace)
	if err := d.addHistory(ctx, db, historyRows/2); err != nil {
		return err
	}
	d.screen.say("%d more rows with a result key each", historyRows/2)
	return nil
}

// addHistory makes rows with results.
func (d *demo) addHistory(ctx context.Context, db *pgx.Conn, n int) error {
	ids := newUUIDs(n)
	results := resultsOf(ids)
	if err := d.insert(ctx, db, ids); err != nil {
		return err
	}
	if err := d.finish(ctx, ids, results); err != nil {
		return err
	}
	d.live(ids, results)
	d.history = append(d.history, ids...)
	return nil
}

// startCelery starts a worker and a producer side by side; without them the demo
// writes the results itself, and says so.
func (d *demo) startCelery(ctx context.Context) {
	var worker *sandbox.Worker
	var producer *sandbox.Producer
	var workerErr, producerErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		worker, workerErr = d.sb.StartWorker(ctx, sandbox.WorkerOptions{Celery: d.celery(), Pool: "threads", Concurrency: 4})
	})
	wg.Go(func() { producer, producerErr = d.sb.StartProducer(ctx, d.celery()) })
	wg.Wait()
	for _, err := range []error{workerErr, producerErr} {
		if err != nil {
			why, _, _ := strings.Cut(err.Error(), "\n")
			d.screen.say("no Celery here (%s)", why)
			d.screen.say("so the demo simulates: it writes the results itself, as Celery does (SETEX and PUBLISH)")
			return
		}
	}
	d.worker, d.producer = worker, producer
	d.screen.say("a real Celery worker takes tasks (%s)", worker.Name())
}

func (d *demo) connect(ctx context.Context) (*pgx.Conn, error) {
	db, err := pgx.Connect(ctx, d.database)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", d.database, err)
	}
	return db, nil
}

func hangUp(ctx context.Context, db *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = db.Close(ctx) // the sandbox ends anyway
}

func resultsOf(ids []string) []string {
	results := make([]string, len(ids))
	for i, id := range ids {
		results[i] = resultOf(id)
	}
	return results
}
