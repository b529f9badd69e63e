package wiring_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// A row that was deleted while the daemon was away may be on its way in again when
// it first looks.
func TestALateFirstLookWaitsForARowOnItsWayInAgain(t *testing.T) {
	t.Parallel()
	w, rows := watched(t, 20)
	w.daemon.stop()
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[:2])
	waitFor(t, 2*grace) // longer than a delete is prompt
	tx, done := w.begin()
	defer done()
	_, err := tx.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", rows[0])
	require.NoError(t, err)
	w.results(rows[:2]...) // the new row's, and one that is just late
	w.run()
	w.stays(4*grace, rows[:2]...)
	require.NoError(t, tx.Commit(t.Context()))
	w.gone(recovery, rows[1])
	w.stays(2*grace, rows[0])
}

// waitFor lets time pass, where that is what is tested.
func waitFor(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
}

// A key that is written again is as new as the last write, even with the same value.
func TestAKeyWrittenAgainWithTheSameValueIsNew(t *testing.T) {
	t.Parallel()
	w, _ := watched(t, 10, "ORPHANWATCH_POLICY_GRACE=2s")
	id := ids(1)
	w.results(id...)
	w.stays(1500*time.Millisecond, id...)
	tx, done := w.begin()
	defer done()
	_, err := tx.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", id[0])
	require.NoError(t, err)
	w.results(id...)
	w.stays(3*time.Second, id...)
	require.NoError(t, tx.Commit(t.Context()))
	w.stays(time.Second, id...)
}

// What is remembered of deletions is nothing where the rows were inserted again,
// and nothing of another database.
func TestOldDeletionsAreNoEvidenceForNewRows(t *testing.T) {
	t.Parallel()
	w, rows := watched(t, 100)
	w.sql("DELETE FROM scan_tasks")
	w.gone(recovery, rows...)
	w.daemon.stop()
	// Inserted again while nobody watches, so that the records still say deleted.
	w.sql("INSERT INTO scan_tasks (id) SELECT unnest($1::uuid[])", rows)
	w.results(rows...)
	other, err := w.sb.Postgres.NewExampleDatabase(t.Context())
	require.NoError(t, err)
	require.NoError(t, w.sb.Postgres.RunScript(t.Context(), other, setupSQL))
	wrong := w.run("DATABASE_URL="+sandbox.As(other, role, password), "ORPHANWATCH_REPLICATION_SLOT=other")
	w.awaitStatus(recovery, "the guard to trip", func(s wiring.DaemonStatus) bool { return s.Guard != nil && s.Guard.All })
	w.stays(4*grace, rows...)
	wrong.stop()

	// In the right database, they live; and are told so to the records.
	w.run()
	w.results(rows...)
	w.firstPass()
	sandbox.AwaitTB(t, recovery, "the records to be revived", func() error {
		n, err := w.redis.HExists(t.Context(), "orphanwatch:record:task:"+rows[0], "revived_at").Result()
		if err == nil && !n {
			err = fmt.Errorf("not yet")
		}
		return err
	})
	w.stays(grace, rows...)
}

func TestAHoldEndsWhenTheRowExists(t *testing.T) {
	t.Parallel()
	w, rows := watched(t, 10)
	w.sql("DELETE FROM scan_tasks WHERE id = $1", rows[0])
	w.gone(recovery, rows[0])
	_, err := w.store.Restore(t.Context(), rows[:1], time.Hour)
	require.NoError(t, err)
	w.sql("INSERT INTO scan_tasks (id) VALUES ($1)", rows[0])
	w.results(rows[0])
	sandbox.AwaitTB(t, recovery, "the hold to end", sandbox.Until(func() bool {
		return !w.redis.HExists(t.Context(), "orphanwatch:record:task:"+rows[0], "hold_until").Val()
	}))
	w.sql("DELETE FROM scan_tasks WHERE id = $1", rows[0])
	w.gone(recovery, rows[0])
}

// Rows that are only not committed yet do not look orphaned to the guard.
func TestUncommittedRowsDoNotTripTheGuard(t *testing.T) {
	t.Parallel()
	w, _ := watched(t, 10)
	tx, done := w.begin()
	defer done()
	batch := ids(60)
	_, err := tx.Exec(t.Context(), "INSERT INTO scan_tasks (id) SELECT unnest($1::uuid[])", batch)
	require.NoError(t, err)
	w.results(batch...)
	w.stays(2*grace, batch...)
	require.NoError(t, tx.Commit(t.Context()))
	w.awaitStatus(recovery, "all to be judged", func(s wiring.DaemonStatus) bool { return s.Queue.Pending == 0 })
	s, err := w.status()
	require.NoError(t, err)
	require.Nil(t, s.Guard)
	w.stays(grace, batch...)

	// Those that really have no row do; and to end a pause is not to accept them.
	bad := ids(100)
	w.results(bad...)
	w.awaitStatus(recovery, "the guard to trip", func(s wiring.DaemonStatus) bool { return s.Guard != nil })
	w.awaitStatus(recovery, "all to be judged", func(s wiring.DaemonStatus) bool { return s.Queue.Pending == 0 })
	held := w.have(bad...)
	require.GreaterOrEqual(t, held, 50, "no more go than the guard needs to see")
	require.NoError(t, w.store.Pause(t.Context(), "test"))
	require.NoError(t, w.store.Resume(t.Context()))
	w.awaitPass(recovery)
	waitFor(t, 4*grace)
	require.Equal(t, held, w.have(bad...))
	require.NoError(t, w.store.AcceptAbsent(t.Context()))
	w.gone(recovery, bad...)
}

// More orphans than the queue holds neither stop the pass that submits them nor
// the deletes.
func TestMoreOrphansThanTheQueueHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandbox.Options{})
	rows, orphans := w.rows(45_000), ids(40_000)
	w.results(rows...)
	w.results(orphans...)
	w.run()
	w.gone(60*time.Second, orphans...)
	w.sql("DELETE FROM scan_tasks WHERE id = $1", rows[0])
	w.gone(recovery, rows[0])
	require.Equal(t, len(rows)-1, w.have(rows[1:]...))
}

// More results of other tasks than a pass holds suspects hide no orphan, and do
// not look like orphans.
func TestAnyNumberOfOtherTasks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandbox.Options{})
	living, dead, others := w.rows(100), ids(10), ids(120_000)
	write := func(name string, ids []string) {
		for len(ids) > 0 {
			page := ids[:min(1000, len(ids))]
			ids = ids[len(page):]
			_, err := w.redis.Pipelined(t.Context(), func(p redis.Pipeliner) error {
				for _, id := range page {
					p.Set(t.Context(), resultKey(id), extendedValue(id, name), time.Hour)
				}
				return nil
			})
			require.NoError(t, err)
		}
	}
	write("send_mail", others)
	write("scan", slices.Concat(living, dead))
	d := w.run("ORPHANWATCH_NAMES=scan")
	w.gone(recovery, dead...)
	require.Zero(t, d.metric("orphanwatch_guard_tripped"))
	require.Equal(t, len(others)+len(living), w.have(slices.Concat(others, living)...))
}

// Connections whose other end does not answer any more, though the server does.
func TestLookupsThatAreNeverAnswered(t *testing.T) {
	t.Parallel()
	w, rows := watched(t, 100)
	w.results(rows...)
	w.awaitStatus(recovery, "all to be judged", func(s wiring.DaemonStatus) bool { return s.Queue.Pending == 0 })
	pids, err := w.db.Query(t.Context(), "SELECT pid FROM pg_stat_activity WHERE application_name = 'orphanwatch'")
	require.NoError(t, err)
	for pids.Next() {
		var pid int
		require.NoError(t, pids.Scan(&pid))
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	}
	require.NoError(t, pids.Err())
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows[:10])
	w.gone(recovery+15*time.Second, rows[:10]...)
	w.stays(grace, rows[10:]...)
}

// cleanup_on_startup: false makes the first pass only count.
func TestObserveAtStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.results(w.rows(100)...)
	orphans := ids(10)
	w.results(orphans...)
	w.run("ORPHANWATCH_POLICY_CLEANUP_ON_STARTUP=false")
	w.awaitStatus(recovery, "them to be counted", func(s wiring.DaemonStatus) bool {
		return s.Pass.Orphans == 10 && strings.HasSuffix(s.Pass.Stage, "done") && s.Pass.Submitted == 0
	})
	w.stays(3*grace, orphans...)
	require.NoError(t, w.store.Resume(t.Context())) // asks for a pass
	w.gone(recovery, orphans...)
}
