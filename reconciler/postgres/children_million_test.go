package postgres_test

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
)

var million = flag.Bool("million", false, "let TestMillionOrphans measure")

// TestMillionOrphans removes 1,000,000 child rows whose parent is gone, from among
// 1,100,000 others, while a writer inserts. It holds the cleanup every two seconds for
// as long, between two batches, and compares how long inserts take with and without:
// whatever else the machine does is in both.
//
//	go test ./reconciler/postgres -run TestMillionOrphans -million -v
func TestMillionOrphans(t *testing.T) {
	if !*million {
		return
	}
	const orphaned, living = 1_000_000, 1_100_000
	pg := sandbox.NewPostgres(t, sandbox.PostgresOptions{Settings: map[string]string{"max_wal_size": "4GB"}})
	h := &household{TB: t, url: pg.URL(), conn: connect(t, pg.URL())}
	exec(t, h.conn,
		`CREATE TABLE tasks (id uuid PRIMARY KEY)`, `INSERT INTO tasks SELECT gen_random_uuid() FROM generate_series(1, 100000)`,
		`CREATE TABLE logs (id bigserial PRIMARY KEY, task uuid NOT NULL, line text)`,
		fmt.Sprintf(`INSERT INTO logs (task, line) SELECT t.id, repeat('x', 80) FROM tasks t, generate_series(1, %d) ORDER BY random()`, living/100_000),
		fmt.Sprintf(`INSERT INTO logs (task, line) SELECT gen_random_uuid(), repeat('x', 80) FROM generate_series(1, %d)`, orphaned),
		`CREATE INDEX ON logs (task)`, `ALTER TABLE logs ADD FOREIGN KEY (task) REFERENCES tasks ON DELETE CASCADE NOT VALID`,
		`VACUUM (ANALYZE)`, `CHECKPOINT`)
	h.settle()
	h.as(h.url, bound("tasks", "id"))
	h.policy.Grace = 5 * time.Second
	h.build([]reconciler.Binding{bound("tasks", "id")})

	w := startWriter(t, h.url)
	var with, without []time.Duration
	var removing atomic.Bool
	longest := longestTransaction(t, h.url, &removing)
	var memory runtime.MemStats
	var heap uint64
	var window time.Time
	var worked time.Duration
	began := time.Now()
	report := h.clean(reconciler.Cleanup{Progress: func(p reconciler.Progress) {
		switch ran := time.Since(window); {
		case !strings.HasPrefix(p.Stage, "removing"):
			if removing.Swap(false) {
				with, worked = append(with, w.reset()...), worked+ran
			}
			return
		case !removing.Swap(true):
			w.reset()
		case ran < 2*time.Second:
			return
		default:
			with, worked = append(with, w.reset()...), worked+ran
			time.Sleep(2 * time.Second) // that is what is measured
			without = append(without, w.reset()...)
			runtime.ReadMemStats(&memory)
			heap = max(heap, memory.HeapInuse)
		}
		window = time.Now()
	}})
	took := time.Since(began)
	inserted := w.stop()
	t.Logf("with:    %s", summary(with))
	t.Logf("without: %s", summary(without))
	t.Logf("%d removed within %v, longest transaction seen %v, heap %d MiB; in all %v with the grace, two counts and %d inserted meanwhile",
		report.Total, worked.Round(100*time.Millisecond), longest().Round(time.Millisecond), heap>>20, took.Round(100*time.Millisecond), inserted)
	require.EqualValues(t, orphaned, report.Total)
	require.Empty(t, report.Left)
	require.EqualValues(t, living+inserted, h.count("logs"))
	slices.Sort(with)
	slices.Sort(without)
	require.Less(t, with[len(with)*99/100], 2*without[len(without)*99/100], "the writer's p99")
}

func summary(took []time.Duration) string {
	slices.Sort(took)
	at := func(q float64) time.Duration {
		return took[int(q*float64(len(took)-1))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d inserts, p50 %v, p99 %v, p99.9 %v, max %v", len(took), at(0.5), at(0.99), at(0.999), at(1))
}

// writer inserts one row every two milliseconds, of a living task.
type writer struct {
	mu       sync.Mutex
	took     []time.Duration
	inserted int
	stopped  context.CancelFunc
	ended    chan error
	t        *testing.T
}

func startWriter(t *testing.T, url string) *writer {
	ctx, cancel := context.WithCancel(t.Context())
	w := &writer{t: t, stopped: cancel, ended: make(chan error, 1)}
	conn := connect(t, url)
	rows, err := conn.Query(ctx, `SELECT id::text FROM tasks LIMIT 1000`)
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				w.ended <- nil
				return
			case <-tick.C:
			}
			began := time.Now()
			if _, err := conn.Exec(context.Background(), `INSERT INTO logs (task, line) VALUES ($1::text::uuid, 'new')`, ids[n%len(ids)]); err != nil {
				w.ended <- err
				return
			}
			w.mu.Lock()
			w.took = append(w.took, time.Since(began))
			w.inserted++
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *writer) reset() []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	took := w.took
	w.took = nil
	return took
}

func (w *writer) stop() int {
	w.stopped()
	require.NoError(w.t, <-w.ended)
	return w.inserted
}

// longestTransaction looks every 25 ms how old our transaction is.
func longestTransaction(t *testing.T, url string, when *atomic.Bool) (longest func() time.Duration) {
	ctx, cancel := context.WithCancel(t.Context())
	conn := connect(t, url)
	var seen atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			time.Sleep(25 * time.Millisecond)
			var microseconds int64
			err := conn.QueryRow(ctx, `SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start) * 1000000), 0)::bigint
				FROM pg_stat_activity WHERE application_name = 'orphanwatch'`).Scan(&microseconds)
			if err == nil && when.Load() {
				seen.Store(max(seen.Load(), microseconds))
			}
		}
	}()
	return func() time.Duration {
		cancel()
		<-ended
		return time.Duration(seen.Load()) * time.Microsecond
	}
}
