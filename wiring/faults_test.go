package wiring_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// Each fault comes while rows are being deleted. Afterwards every result of a
// deleted row goes within 30 s, none of a living one does, and the daemon runs.
func TestFaults(t *testing.T) {
	for _, fault := range []struct {
		name   string
		inject func(w *world)
		// killed: the fault is the daemon's end, and another start its recovery.
		killed bool
	}{
		{"kill -9", func(w *world) { w.daemon.kill() }, true},
		{"CLIENT KILL", func(w *world) {
			require.NoError(w.t, w.redis.Do(w.t.Context(), "CLIENT", "KILL", "TYPE", "pubsub").Err())
			require.NoError(w.t, w.redis.Do(w.t.Context(), "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Err())
		}, false},
		{"pg_terminate_backend", func(w *world) {
			w.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'orphanwatch%'")
		}, false},
		{"notify-keyspace-events is emptied", func(w *world) {
			require.NoError(w.t, w.redis.ConfigSet(w.t.Context(), "notify-keyspace-events", "").Err())
		}, false},
		{"a Redis restart", func(w *world) { require.NoError(w.t, w.sb.Redis.Restart(w.t.Context())) }, false},
		{"Redis is killed", func(w *world) {
			require.NoError(w.t, w.sb.Redis.Kill(w.t.Context()))
			require.NoError(w.t, w.sb.Redis.Start(w.t.Context()))
		}, false},
		{"a PostgreSQL restart", func(w *world) { require.NoError(w.t, w.sb.Postgres.Restart(w.t.Context())) }, false},
		{"PostgreSQL is killed", func(w *world) {
			require.NoError(w.t, w.sb.Postgres.Kill(w.t.Context()))
			require.NoError(w.t, w.sb.Postgres.Start(w.t.Context()))
		}, false},
		{"the slot is dropped", func(w *world) {
			w.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'orphanwatch'")
			sandbox.AwaitTB(w.t, recovery, "the slot to be dropped", func() error {
				_, err := w.db.Exec(w.t.Context(), "SELECT pg_drop_replication_slot('orphanwatch')")
				if err != nil && strings.Contains(err.Error(), "does not exist") {
					err = nil
				}
				if err != nil {
					_, _ = w.db.Exec(w.t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'orphanwatch'")
				}
				return err
			})
		}, false},
		{"the publication is dropped", func(w *world) {
			w.sql("DROP PUBLICATION orphanwatch") // and its owner makes it anew, when the log has said so
			w.awaitStatus(recovery, "it to be missed", func(s wiring.DaemonStatus) bool { return strings.Contains(s.Ended, "orphanwatch") })
			w.setup()
		}, false},
		{"scripts are flushed", func(w *world) { require.NoError(w.t, w.redis.ScriptFlush(w.t.Context()).Err()) }, false},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			w, rows := watched(t, 2000)
			w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[:300])
			fault.inject(w)
			// The stores may be away for the application too: it retries.
			sandbox.AwaitTB(t, recovery, "a delete", func() error {
				_, err := w.db.Exec(t.Context(), "DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[300:600])
				return err
			})
			orphans := ids(40) // fewer than policy.min_sample: the guard is not what is tested
			w.results(orphans...)
			if fault.killed {
				w.run()
			}
			w.gone(recovery, slices.Concat(rows[:600], orphans)...)
			require.Equal(t, 1400, w.have(rows[600:]...))
			require.True(t, w.daemon.alive())
			w.daemon.ready(recovery)
			w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[600:700])
			w.gone(recovery, rows[600:700]...)
			w.stays(grace, rows[700:]...)
		})
	}
}

func TestRedisHangs(t *testing.T) {
	t.Parallel()
	w, rows := watched(t, 1000)
	require.NoError(t, w.sb.Redis.Pause(t.Context()))
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[:300])
	// The hang itself is what is tested: it is long enough for every timeout.
	hang, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	<-hang.Done()
	code, why, err := w.daemon.get("/readyz")
	require.NoError(t, err)
	require.Equal(t, 503, code, why)
	w.sb.Redis.Resume()
	w.gone(recovery, rows[:300]...)
	w.stays(grace, rows[300:]...)
	require.True(t, w.daemon.alive())
	w.daemon.ready(recovery)

	require.NoError(t, w.sb.Redis.Pause(t.Context()))
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[300:400])
	require.Less(t, w.daemon.stop(), 10*time.Second, "SIGTERM while Redis hangs")
	w.sb.Redis.Resume()
	w.run()
	w.gone(recovery, rows[300:400]...)
}

func TestConnectionsAreCutAndStalled(t *testing.T) {
	for _, broken := range []string{"redis", "postgres"} {
		t.Run(broken, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			rows := w.rows(1000)
			w.results(rows...)
			redisProxy, pgProxy := sandbox.NewProxy(t, w.sb.Redis.Addr()), sandbox.NewProxy(t, w.sb.Postgres.Addr())
			w.run("REDIS_URL="+redisProxy.URL(w.redisURL()), "DATABASE_URL="+pgProxy.URL(w.watchURL()))
			w.firstPass()
			proxy := map[string]*sandbox.Proxy{"redis": redisProxy, "postgres": pgProxy}[broken]
			from := 0
			for _, fault := range []func(){proxy.Cut, proxy.Stall, proxy.Drop} {
				w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[from:from+50])
				fault()
				w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[from+50:from+100])
				orphan := ids(1)
				w.results(orphan...)
				w.stays(2*grace, rows[from+100:]...)
				require.NoError(t, proxy.Heal())
				w.gone(recovery, append(orphan, rows[from:from+100]...)...)
				from += 100
			}
			w.stays(grace, rows[from:]...)
			require.True(t, w.daemon.alive())
		})
	}
}

func TestTruncateAndARecreatedTable(t *testing.T) {
	t.Parallel()
	w, rows := watched(t, 100)
	// Most rows come back at once: what does not is an orphan, evidence absent.
	tx, err := w.db.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "TRUNCATE scan_tasks CASCADE")
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "INSERT INTO scan_tasks (id) SELECT unnest($1::uuid[])", rows[:90])
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	w.gone(recovery, rows[90:]...)
	w.stays(grace, rows[:90]...)

	w.sql(`DROP TABLE scan_tasks CASCADE`)
	w.sql(sandbox.ExampleSchema[:strings.Index(sandbox.ExampleSchema, "CREATE TABLE task_logs")])
	w.setup() // a new table has neither rights nor a place in the publication
	w.sql("INSERT INTO scan_tasks (id) SELECT unnest($1::uuid[])", rows[:80])
	w.gone(recovery, rows[80:90]...)
	w.sql("DELETE FROM scan_tasks WHERE id = $1", rows[0])
	w.gone(recovery, rows[0])
	w.stays(grace, rows[1:80]...)
	require.True(t, w.daemon.alive())
}

func TestAStoppedDatabaseRemovesNothing(t *testing.T) {
	t.Parallel()
	w, rows := watched(t, 100)
	_, err := w.sb.Postgres.Stop(t.Context())
	require.NoError(t, err)
	w.results(rows...) // events, which cannot be judged
	orphan := ids(1)
	w.results(orphan...)
	w.awaitStatus(recovery, "the status to say why", func(s wiring.DaemonStatus) bool {
		return s.Role == "starting" && s.Ended != ""
	})
	w.daemon.awaitLog(recovery, "not leading")
	w.stays(4*grace, append(orphan, rows...)...)
	code, why, err := w.daemon.get("/readyz")
	require.NoError(t, err)
	require.Equal(t, 503, code, why)
	require.NoError(t, w.sb.Postgres.Start(t.Context()))
	w.gone(recovery, orphan...)
	w.stays(grace, rows...)
	require.True(t, w.daemon.alive())
}

func TestAFastStopOfPostgresIsFast(t *testing.T) {
	t.Parallel()
	w, rows := watched(t, 5000)
	require.NoError(t, w.sb.Redis.Pause(t.Context()))
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[:4000])
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	took, err := w.sb.Postgres.Stop(ctx)
	require.NoError(t, err)
	t.Logf("pg_ctl -m fast stop with a backlog pending took %v", took)
	require.Less(t, took, 10*time.Second)
	w.sb.Redis.Resume()
	require.NoError(t, w.sb.Postgres.Start(t.Context()))
	w.gone(recovery, rows[:4000]...)
	w.stays(grace, rows[4000:]...)
}

func TestWhatAnOperatorMustMendEndsTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.results(w.rows(1)...)
	refused := func(text string, env ...string) {
		t.Helper()
		d := w.start(env...)
		select {
		case <-d.done:
		case <-time.After(recovery):
			t.Fatalf("still running:\n%s", d.log)
		}
		require.Error(t, d.err)
		require.Contains(t, d.log.String(), text)
	}
	w.sql("DROP PUBLICATION orphanwatch; ALTER TABLE scan_tasks REPLICA IDENTITY NOTHING")
	refused("REPLICA IDENTITY DEFAULT")
	w.sql("DELETE FROM scan_tasks") // the application's DELETE still works
	w.sql("ALTER TABLE scan_tasks REPLICA IDENTITY DEFAULT")
	refused("public.nowhere", "ORPHANWATCH_TABLE=nowhere")
	refused("unknown", "ORPHANWATCH_POLICY_GRAZE=1s")
	refused("listen", "ORPHANWATCH_HTTP_ADDR=192.0.2.1:1", "ORPHANWATCH_HTTP_INSECURE=true")
	require.NoError(t, w.sb.Postgres.Reconfigure(t.Context(), map[string]string{"wal_level": "replica"}))
	refused("ALTER SYSTEM SET wal_level")
}

// A writer of results and a deleter of rows, as real Celery workers are.
func TestWithRealCeleryWorkers(t *testing.T) {
	t.Parallel()
	w := newApplication(t, variant{match: byID})
	w.work(2, nil)
	w.run()
	rows := w.rows(300)
	w.send(unjudged, w.scans(rows, nil, nil)...)
	deleted := rows[:100]
	for i, id := range deleted {
		if i%10 == 0 { // some before their task ran, some after
			sandbox.AwaitTB(t, recovery, "tasks to run", sandbox.Until(func() bool { return w.have(rows...) >= i }))
		}
		w.sql("DELETE FROM scan_tasks WHERE id = $1", id)
	}
	sandbox.AwaitTB(t, 2*recovery, "all living tasks to have run", func() error {
		if n := w.have(rows[100:]...); n < 200 {
			return fmt.Errorf("%d of 200", n)
		}
		return nil
	})
	w.gone(recovery, deleted...)
	w.stays(3*grace, rows[100:]...)
}
