package wiring_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

func ids(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = uuid.NewString()
	}
	return out
}

func TestDeletesAreFollowed(t *testing.T) {
	w := newWorld(t)
	living := w.rows(100)
	victims := w.rows(300)
	w.results(living...)
	w.results(victims...)
	d := w.run()

	lags := make([]time.Duration, 0, len(victims))
	for _, id := range victims {
		w.sql("DELETE FROM scan_tasks WHERE id = $1", id)
		start := time.Now()
		for w.have(id) > 0 {
			require.Less(t, time.Since(start), recovery)
		}
		lags = append(lags, time.Since(start))
	}
	slices.Sort(lags)
	t.Logf("commit acknowledged to key gone, as a client sees it: p50 %v p99 %v max %v",
		lags[len(lags)/2], lags[len(lags)*99/100], lags[len(lags)-1])
	w.stays(100*time.Millisecond, living...)
	require.EqualValues(t, len(victims), d.metric("orphanwatch_removed_total", `kind="results"`))
	require.EqualValues(t, len(victims), d.metric("orphanwatch_lag_seconds_count", `trigger="pg_delete"`, `outcome="removed"`))
	require.Less(t, d.stop(), 10*time.Second)
}

func TestUUIDsInAnySpellingAndCompanions(t *testing.T) {
	w := newWorld(t)
	row := w.rows(3)
	hex := strings.ReplaceAll(row[0], "-", "")
	mixed := strings.ToUpper(row[1][:5]) + row[1][5:]
	w.results(hex, strings.ToUpper(row[0]), row[0], mixed)
	require.NoError(t, w.redis.Set(t.Context(), "task_created:"+row[0], "x", 0).Err())
	require.NoError(t, w.redis.Set(t.Context(), "task_created:"+row[2], "x", 0).Err())
	const companions = "ORPHANWATCH_COMPANIONS=task_created:{key}"
	w.permit(companions)
	w.run(companions)
	w.sql("DELETE FROM scan_tasks WHERE id = $1", row[0])
	w.gone(recovery, hex, strings.ToUpper(row[0]), row[0])
	sandbox.AwaitTB(t, recovery, "the companion to be gone", sandbox.Until(func() bool {
		return w.redis.Exists(t.Context(), "task_created:"+row[0]).Val() == 0
	}))
	require.EqualValues(t, 1, w.redis.Exists(t.Context(), "task_created:"+row[2]).Val())
	w.sql("DELETE FROM scan_tasks WHERE id = $1", row[1])
	require.NoError(t, w.redis.Set(t.Context(), "task_created:"+uuid.NewString(), "x", 0).Err())
	require.NoError(t, w.store.Resume(t.Context())) // asks for a pass, which sees what only a scan can tell
	w.gone(recovery, mixed)
	sandbox.AwaitTB(t, recovery, "the orphaned companion to be gone", sandbox.Until(func() bool {
		return w.redis.Keys(t.Context(), "task_created:*").Val()[0] == "task_created:"+row[2] && len(w.redis.Keys(t.Context(), "task_created:*").Val()) == 1
	}))
}

func TestAnOrphanKeyGoesAfterTheGrace(t *testing.T) {
	w, living := watched(t, 10)
	orphan := ids(1)
	start := time.Now()
	w.results(orphan...)
	w.gone(recovery, orphan...)
	require.GreaterOrEqual(t, time.Since(start), grace)
	require.Less(t, time.Since(start), grace+5*time.Second)
	// Later writes of living rows are looked at, and left.
	w.results(living...)
	w.stays(2*grace, living...)
}

func TestABacklogIsEvidenceDeleted(t *testing.T) {
	w := newWorld(t)
	all := w.rows(6000)
	w.results(all...)
	w.run().stop()
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", all[:5000])
	d := w.run()
	w.gone(recovery, all[:5000]...)
	w.firstPass()
	require.Equal(t, 1000, w.have(all[5000:]...))
	require.Zero(t, d.metric("orphanwatch_guard_tripped"))
}

func TestTheGuardHoldsWhatLooksWrong(t *testing.T) {
	for _, n := range []int{5, 500} {
		t.Run(fmt.Sprintf("an empty table and %d keys", n), func(t *testing.T) {
			w := newWorld(t)
			keys := ids(n)
			w.results(keys...)
			d := w.run()
			w.awaitStatus(recovery, "the guard to trip", func(s wiring.DaemonStatus) bool {
				return s.Guard != nil && strings.Contains(s.Guard.Reason, "public.scan_tasks is empty")
			})
			d.awaitLog(recovery, "is empty")
			w.stays(3*grace, keys...)
			later := ids(1)
			w.results(later...)
			w.stays(3*grace, append(later, keys...)...)

			// A kill does not clear it; re-arming judges anew; accepting lets it pass, once.
			d.kill()
			w.run()
			require.NoError(t, w.store.Resume(t.Context()))
			w.awaitPass(recovery)
			w.stays(3*grace, keys...)
			require.NoError(t, w.store.AcceptAbsent(t.Context()))
			w.gone(recovery, append(later, keys...)...)
			again := ids(3)
			w.results(again...)
			w.stays(3*grace, again...)
		})
	}
	t.Run("another database", func(t *testing.T) {
		w := newWorld(t)
		keys := w.rows(20)
		w.results(keys...)
		w.run().stop()
		var err error
		w.dbURL, err = w.sb.Postgres.NewExampleDatabase(t.Context())
		require.NoError(t, err)
		w.setup()
		w.connect()
		w.rows(1000) // not empty, and the ratio says nothing
		w.run("ORPHANWATCH_REPLICATION_SLOT=other")
		w.awaitStatus(recovery, "the guard to trip", func(s wiring.DaemonStatus) bool {
			return s.Guard != nil && strings.Contains(s.Guard.Reason, "not the database")
		})
		w.stays(3*grace, keys...)
	})
	t.Run("too many look orphaned", func(t *testing.T) {
		w := newWorld(t)
		living, dead := w.rows(40), ids(60)
		w.results(living...)
		w.results(dead...)
		d := w.run()
		w.awaitStatus(recovery, "the guard to trip", func(s wiring.DaemonStatus) bool { return s.Guard != nil })
		w.stays(3*grace, dead...)
		// Evidence deleted is never stopped by it.
		w.sql("DELETE FROM scan_tasks WHERE id = $1", living[0])
		w.gone(recovery, living[0])
		require.EqualValues(t, 1, d.metric("orphanwatch_guard_tripped"))
		require.NoError(t, w.store.AcceptAbsent(t.Context()))
		w.gone(recovery, dead...)
		w.stays(grace, living[1:]...)
	})
}

func TestAnInsertUnderWayIsWaitedFor(t *testing.T) {
	w, _ := watched(t, 10)

	writing, closeWriting := w.begin()
	defer closeWriting()
	wrote := uuid.NewString()
	_, err := writing.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", wrote)
	require.NoError(t, err)

	// This one has written nothing, and has no xid, when the key appears.
	idle, closeIdle := w.begin()
	defer closeIdle()
	_, err = idle.Exec(t.Context(), "SELECT 1")
	require.NoError(t, err)
	late := uuid.NewString()

	w.results(wrote, late)
	w.awaitStatus(recovery, "the open transactions to be named", func(s wiring.DaemonStatus) bool { return len(s.Transactions) >= 2 })
	w.stays(4*grace, wrote, late)
	_, err = idle.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", late)
	require.NoError(t, err)
	require.NoError(t, idle.Commit(t.Context()))
	require.NoError(t, writing.Commit(t.Context()))
	w.awaitStatus(recovery, "nothing to wait", func(s wiring.DaemonStatus) bool { return s.Queue.Pending == 0 })
	w.stays(2*grace, wrote, late)

	// A rollback makes it an orphan.
	failing, closeFailing := w.begin()
	defer closeFailing()
	lost := uuid.NewString()
	_, err = failing.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", lost)
	require.NoError(t, err)
	w.results(lost)
	w.stays(3*grace, lost)
	require.NoError(t, failing.Rollback(t.Context()))
	w.gone(recovery, lost)
}

func TestRowSecurityNeverMakesRowsLookGone(t *testing.T) {
	w := newWorld(t)
	keys := w.rows(20)
	w.results(keys...)
	d := w.run()
	w.firstPass()
	w.sql("ALTER TABLE scan_tasks ENABLE ROW LEVEL SECURITY")
	w.results(keys...)
	w.awaitStatus(recovery, "the status to say why", func(s wiring.DaemonStatus) bool { return strings.Contains(s.Failing, "row-level security") })
	d.awaitLog(recovery, "row-level security")
	w.stays(3*grace, keys...)
	w.sql("ALTER TABLE scan_tasks DISABLE ROW LEVEL SECURITY")
	w.awaitStatus(recovery, "all to be well again", func(s wiring.DaemonStatus) bool { return s.Failing == "" && s.Queue.Pending == 0 })
	w.stays(grace, keys...)
}

func TestNamesTellWhoseAResultIs(t *testing.T) {
	w := newWorld(t)
	extended := func(id, name string) {
		require.NoError(t, w.redis.Set(t.Context(), resultKey(id), extendedValue(id, name), time.Hour).Err())
	}
	living, dead, others, unnamed := w.rows(50), ids(10), ids(40), ids(5)
	for _, id := range slices.Concat(living, dead) {
		extended(id, "scan_domain_task")
	}
	for _, id := range others {
		extended(id, "send_mail")
	}
	w.results(unnamed...)
	w.run("ORPHANWATCH_NAMES=scan_domain_task")
	w.gone(recovery, dead...)
	w.stays(3*grace, slices.Concat(living, others, unnamed)...)
	w.awaitStatus(recovery, "the unknown to be counted", func(s wiring.DaemonStatus) bool { return s.Pass.Unknown == int64(len(unnamed)) })
	// A delete is proof for its own id, whatever else is there.
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", living[:5])
	w.gone(recovery, living[:5]...)
	w.stays(grace, slices.Concat(living[5:], others, unnamed)...)
}

// extendedValue is a result with result_extended.
func extendedValue(id, name string) string {
	return fmt.Sprintf(`{"status": "SUCCESS", "result": null, "traceback": null, "children": [], "date_done": "2026-11-23T13:30:13+00:00", "name": %q, "args": [], "kwargs": {}, "worker": "w", "retries": 0, "queue": "celery", "task_id": %q}`, name, id)
}

func TestColumnsAndSeveralBindings(t *testing.T) {
	w := newWorld(t)
	w.sql(`CREATE TABLE builds (id bigint PRIMARY KEY, celery_task_id text UNIQUE NOT NULL)`)
	w.setup("table=builds", "columns=id,celery_task_id", "replica_identity=full")
	scans := w.rows(10)
	var tasks, strangers []string
	for i := range 10 {
		tasks = append(tasks, fmt.Sprintf("build-%d", i))
		strangers = append(strangers, fmt.Sprintf("stranger-%d", i))
	}
	w.sql("INSERT INTO builds SELECT ordinality, t FROM unnest($1::text[]) WITH ORDINALITY AS t (t, ordinality)", tasks)
	config := writeConfig(t, `
tasks:
  - { table: scan_tasks, names: [scan] }
  - { table: builds, match: ["column:celery_task_id"] }
`)
	w.results(slices.Concat(scans, tasks, strangers)...)
	w.run("ORPHANWATCH_CONFIG=" + config)
	w.sql("DELETE FROM builds WHERE id <= 3")
	w.gone(recovery, tasks[:3]...)
	// A change of the column is no evidence; a changed key is.
	w.sql("UPDATE builds SET celery_task_id = 'another' WHERE id = 4")
	w.sql("UPDATE builds SET id = 500 WHERE id = 5")
	w.stays(2*grace, tasks[3])
	w.stays(2*grace, tasks[4]) // its row, under another key, still holds the task id
	w.stays(2*grace, slices.Concat(scans, tasks[5:], strangers)...)
}

func TestAKeyThatChangesIsGone(t *testing.T) {
	w := newWorld(t)
	rows := w.rows(2)
	w.results(rows...)
	w.run()
	w.sql("UPDATE scan_tasks SET target = 'x'")
	w.sql("UPDATE scan_tasks SET id = $2 WHERE id = $1", rows[0], uuid.NewString())
	w.gone(recovery, rows[0])
	w.stays(grace, rows[1])
}

func TestInsertedAgainIsALivingRow(t *testing.T) {
	w := newWorld(t)
	rows := w.rows(200)
	w.results(rows...)
	w.run()
	for _, id := range rows {
		tx, err := w.db.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "DELETE FROM scan_tasks WHERE id = $1", id)
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", id)
		require.NoError(t, err)
		require.NoError(t, tx.Commit(t.Context()))
	}
	w.stays(2*grace, rows...)
}

func TestPauseAndRestore(t *testing.T) {
	w := newWorld(t)
	rows := w.rows(60)
	w.results(rows...)
	w.run()
	require.NoError(t, w.store.Pause(t.Context(), "test"))
	w.sql("DELETE FROM scan_tasks WHERE id = $1", rows[0])
	w.awaitStatus(recovery, "it to wait", func(s wiring.DaemonStatus) bool { return s.Queue.Waiting["pause"] == 1 })
	w.stays(grace, rows[0])
	require.NoError(t, w.store.Resume(t.Context()))
	w.gone(recovery, rows[0])

	restored, err := w.store.Restore(t.Context(), []string{rows[0]}, time.Hour)
	require.NoError(t, err)
	require.Len(t, restored, 1)
	w.stays(3*grace, rows[0])
	require.Equal(t, resultValue(rows[0]), w.redis.Get(t.Context(), resultKey(rows[0])).Val())
	require.Greater(t, w.redis.TTL(t.Context(), resultKey(rows[0])).Val(), 23*time.Hour)
	history, err := w.store.History(t.Context(), rows[0])
	require.NoError(t, err)
	require.EqualValues(t, "deleted", history[0].Evidence)
	require.NotZero(t, history[0].XID)
}

func TestShadowModeRemovesNothing(t *testing.T) {
	w := newWorld(t)
	rows := w.rows(60)
	w.results(rows...)
	d := w.run("ORPHANWATCH_POLICY_REMOVE=none")
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[:10])
	sandbox.AwaitTB(t, recovery, "the deletes to be decided on", sandbox.Until(func() bool {
		return d.metric("orphanwatch_reconciliations_total", `trigger="pg_delete"`, `outcome="reported"`) == 10
	}))
	w.stays(grace, rows...)
}

// A delete that waits for a synchronous standby is in the log, and its row still
// seems to be there.
func TestADeleteHeldInSynchronousReplication(t *testing.T) {
	w, rows := watched(t, 5)
	release, err := w.sb.Postgres.HoldCommits(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	deleted := make(chan error, 1)
	go func() {
		_, err := w.db.Exec(ctx, "DELETE FROM scan_tasks WHERE id = $1", rows[0])
		deleted <- err
	}()
	defer cancel()
	w.awaitStatus(recovery, "the delete to wait for its commit", func(s wiring.DaemonStatus) bool { return s.Queue.Waiting["commit"] == 1 || s.Queue.Strong == 1 })
	w.stays(2*grace, rows...)
	before := w.confirmed()
	require.NoError(t, release(t.Context()))
	require.NoError(t, <-deleted)
	w.gone(recovery, rows[0])
	w.stays(grace, rows[1:]...)
	sandbox.AwaitTB(t, recovery, "the position to be confirmed", sandbox.Until(func() bool { return w.confirmed() != before }))
}
