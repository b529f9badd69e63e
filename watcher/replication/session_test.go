package replication

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
)

// rows inserts n rows; purge deletes all, each in its own transaction.
func (r *rig) rows(n int) {
	r.tb.Helper()
	r.exec(fmt.Sprintf("INSERT INTO scan_tasks (id) SELECT gen_random_uuid() FROM generate_series(1, %d)", n))
}

func (r *rig) purge() {
	r.tb.Helper()
	r.exec(`DO $$ DECLARE k uuid; BEGIN FOR k IN SELECT id FROM scan_tasks LOOP DELETE FROM scan_tasks WHERE id = k; COMMIT; END LOOP; END $$`)
}

// lost tells whether the rig's n deletions arrived, each at least once.
func (r *rig) arrived(n int) bool {
	seen := map[string]bool{}
	for _, s := range r.sink.offered() {
		seen[s] = true
	}
	return len(seen) == n
}

// TestTerminated: a killed backend is a new session, and nothing is lost.
func TestTerminated(t *testing.T) {
	for name, where := range map[string]string{
		"walsender": "backend_type = 'walsender'", "monitor": "application_name LIKE 'orphanwatch-%' AND backend_type = 'client backend'",
	} {
		t.Run(name, func(t *testing.T) {
			r := example(t)
			r.rows(50)
			r.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND " + where)
			r.purge()
			r.await("the second session's deletes", func() bool { return r.arrived(50) && r.sessions.Load() >= 2 })
			require.Empty(t, r.sink.gaps)
			require.NotEqual(t, Identity{}, r.src.Identity())
		})
	}
}

// TestUnconfirmedComesAgain: what was not done when the session ended is offered anew.
func TestUnconfirmedComesAgain(t *testing.T) {
	r := example(t)
	r.sink.set(1<<30, true, 0)
	r.rows(10)
	r.purge()
	r.await("deletes", func() bool { return r.arrived(10) })
	start := r.confirmed()
	r.sink.set(1<<30, true, 3)
	r.await("partial confirmation", func() bool { return r.confirmed() > start })
	r.exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '" + r.src.opts.Slot + "'")
	r.await("the seven again", func() bool { return len(r.sink.offered()) == 17 })
	require.Equal(t, r.sink.offered()[3:10], r.sink.offered()[10:])
}

// TestFinish: at the end all that is done is confirmed, and the slot is free.
func TestFinish(t *testing.T) {
	r := example(t)
	r.sink.set(1<<30, true, 0)
	r.rows(10)
	r.purge()
	r.await("deletes", func() bool { return r.arrived(10) })
	r.settle() // else the last commit's end may not have been read: its delete would come again
	sess := r.session.Load()
	sess.Quiesce()
	r.rows(5)
	r.purge()
	r.sink.set(1<<30, true, 10)
	require.NoError(t, r.stop())
	require.Equal(t, sess.ledger.Confirmed(), r.confirmed())
	require.False(t, scalar[bool](r, "SELECT active FROM pg_replication_slots WHERE slot_name = $1", r.src.opts.Slot))
	require.Len(t, r.sink.offered(), 10, "nothing is read after Quiesce")

	again := newRig(t, r.src.opts).run()
	again.await("the rest", func() bool { return again.arrived(5) })
}

// TestFinishInATransaction: one that Quiesce cuts is not confirmed, though all that
// was read of it is done; it comes again, whole.
func TestFinishInATransaction(t *testing.T) {
	r := example(t)
	const before, large = 3, 2000 // several reads of the stream
	r.rows(before)
	r.purge()
	r.await("deletes", func() bool { return r.arrived(before) })
	r.settle()
	r.sink.set(100, true, 0) // it stops in the middle
	r.rows(large)
	r.exec("DELETE FROM scan_tasks")
	r.await("full queue", func() bool { return r.session.Load().blocked.Load() })
	sess := r.session.Load()
	sess.Quiesce()
	r.sink.set(1<<30, false, 100)
	require.NoError(t, r.stop())
	require.Equal(t, sess.ledger.Confirmed(), r.confirmed())
	require.Less(t, len(r.sink.offered()), before+large)

	again := newRig(t, r.src.opts).run()
	again.await("the whole transaction", func() bool { return again.arrived(large) })
}

// TestStandby: the second copy waits, says for whom, and takes over.
func TestStandby(t *testing.T) {
	first := example(t)
	second := newRig(t, first.src.opts)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- second.lead(ctx) }()
	second.await("standby", func() bool { return second.standbys.Load() > 1 })
	require.Contains(t, second.holder.Load(), "orphanwatch-")
	require.Zero(t, second.sessions.Load())

	first.rows(3)
	require.NoError(t, first.stop())
	second.purge()
	second.await("takeover", func() bool { return second.arrived(3) })
	cancel()
	require.NoError(t, <-done)
}

// TestRestart: a restart of the server is survived.
func TestRestart(t *testing.T) {
	pg := sandbox.NewPostgres(t)
	r := ownServer(t, pg)
	r.rows(20)
	require.NoError(t, pg.Restart(t.Context()))
	r.purge()
	r.await("deletes after the restart", func() bool { return r.arrived(20) && r.sink.last().Connected })
	require.NoError(t, pg.Kill(t.Context()))
	require.NoError(t, pg.Start(t.Context()))
	r.rows(20)
	r.purge()
	r.await("deletes after the crash", func() bool { return r.arrived(40) })
	require.Empty(t, r.sink.gaps)
}

func ownServer(t *testing.T, pg *sandbox.Postgres) *rig {
	t.Helper()
	dsn, err := pg.NewExampleDatabase(t.Context())
	require.NoError(t, err)
	return newRig(t, options(dsn)).run()
}

// TestFastStop: a server that shuts down does not wait for us, even with a backlog
// behind a full queue.
func TestFastStop(t *testing.T) {
	pg := sandbox.NewPostgres(t)
	r := ownServer(t, pg)
	r.rows(2000)
	r.sink.set(10, true, 0)
	r.purge()
	r.await("full queue", func() bool { return r.session.Load().blocked.Load() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	took, err := pg.Stop(ctx)
	require.NoError(t, err)
	require.Less(t, took, 5*time.Second)
	t.Logf("fast stop took %s", took)
	require.NoError(t, pg.Start(t.Context()))
	r.sink.set(1<<30, false, 10)
	r.await("all deletes", func() bool { return r.arrived(2000) })
}

// TestFastStopWhileReading: the same with the work unfinished and the queue not full.
func TestFastStopWhileReading(t *testing.T) {
	pg := sandbox.NewPostgres(t)
	r := ownServer(t, pg)
	r.sink.set(1<<30, true, 0)
	r.rows(100)
	r.purge()
	r.await("deletes", func() bool { return r.arrived(100) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	took, err := pg.Stop(ctx)
	require.NoError(t, err)
	require.Less(t, took, 5*time.Second)
	t.Logf("fast stop took %s", took)
}

// TestLostSlot: a slot that the server gave up is made anew, with a gap.
func TestLostSlot(t *testing.T) {
	pg := sandbox.NewPostgres(t, sandbox.PostgresOptions{Settings: map[string]string{
		"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB",
	}})
	r := ownServer(t, pg)
	require.NoError(t, r.stop())
	r.rows(1)
	for range 8 {
		r.exec("SELECT pg_logical_emit_message(false, 'bulk', repeat('x', 20000000))", "SELECT pg_switch_wal()", "CHECKPOINT")
		if scalar[string](r, "SELECT wal_status FROM pg_replication_slots") == "lost" {
			break
		}
	}
	require.Equal(t, "lost", scalar[string](r, "SELECT wal_status FROM pg_replication_slots"))
	r.run()
	r.await("gap", func() bool { return r.sink.gapped("slot lost") })
	r.purge()
	r.await("deletes through the new slot", func() bool { return r.arrived(1) })
}

// TestDroppedSlot: somebody drops the slot between two sessions.
func TestDroppedSlot(t *testing.T) {
	r := example(t)
	slot := r.src.opts.Slot
	conn := r.connect()
	defer closeConn(conn)
	sandbox.AwaitTB(t, patience, "drop of the slot", func() error {
		_, _ = conn.Exec(t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", slot)
		_, err := conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", slot)
		return err
	})
	r.await("gap", func() bool { return r.sink.gapped("slot recreated") })
	r.await("streaming", func() bool { return r.sink.last().Connected })
	r.rows(2)
	r.purge()
	r.await("deletes", func() bool { return r.arrived(2) })
}

// TestRecreatedTable: it is outside of the publication, silently.
func TestRecreatedTable(t *testing.T) {
	r := example(t)
	r.exec("DROP TABLE task_logs, scan_tasks", sandbox.ExampleSchema)
	r.await("gap", func() bool { return r.sink.gapped(gapRecreated) })
	r.rows(2)
	r.purge()
	r.await("deletes of the new table", func() bool { return r.arrived(2) })
}

// TestRecreatedTableWithoutIdentity: it is not published, and its DELETE works.
func TestRecreatedTableWithoutIdentity(t *testing.T) {
	r := example(t)
	r.exec("BEGIN", "DROP TABLE task_logs, scan_tasks", "CREATE TABLE scan_tasks (id uuid)", "COMMIT")
	err := <-r.fail
	var hinted *reconciler.Hinted
	require.ErrorAs(t, err, &hinted)
	require.Contains(t, hinted.Hint, "ALTER TABLE scan_tasks REPLICA IDENTITY FULL")
	r.rows(1)
	r.purge()
}

// TestDroppedPublication: it is made anew; what was written without it cannot be
// decoded, so the slot is, too.
func TestDroppedPublication(t *testing.T) {
	r := example(t)
	require.NoError(t, r.stop())
	r.exec("DROP PUBLICATION " + r.src.opts.Publication)
	r.rows(5)
	r.purge()
	r.sink = newSink()
	r.run()
	r.await("gap", func() bool { return r.sink.gapped("slot undecodable") })
	r.rows(2)
	r.purge()
	r.await("deletes", func() bool { return r.arrived(2) })
}

// TestAlteredPublication: a table that somebody took out of it comes back.
func TestAlteredPublication(t *testing.T) {
	r := example(t)
	r.exec("ALTER PUBLICATION " + r.src.opts.Publication + " DROP TABLE scan_tasks")
	r.await("gap", func() bool { return r.sink.gapped(gapPublication) })
	r.exec("ALTER PUBLICATION " + r.src.opts.Publication + " SET (publish = 'insert')")
	r.await("mending", func() bool {
		return scalar[bool](r, "SELECT pubdelete AND pubupdate AND pubtruncate FROM pg_publication WHERE pubname = $1", r.src.opts.Publication)
	})
	r.rows(2)
	r.purge()
	r.await("deletes", func() bool { return r.arrived(2) })
}

// TestIdentityChanged: another server behind the same address is a gap.
func TestIdentityChanged(t *testing.T) {
	s := New(Options{})
	a := Identity{SystemID: "1", Timeline: 1, Database: "db"}
	require.Empty(t, s.setIdentity(a))
	require.Empty(t, s.setIdentity(a))
	require.Equal(t, []string{"timeline changed"}, s.setIdentity(Identity{SystemID: "1", Timeline: 2, Database: "db"}))
	require.Equal(t, []string{"system id changed"}, s.setIdentity(Identity{SystemID: "2", Timeline: 1, Database: "db"}))
}

// TestIdleWAL: the slot follows a log that has nothing of ours.
func TestIdleWAL(t *testing.T) {
	r := example(t)
	r.exec("CREATE TABLE bulk (x text)", "INSERT INTO bulk SELECT repeat(md5(n::text), 30) FROM generate_series(1, 60000) n")
	at := reconciler.LSN(scalar[int64](r, "SELECT (pg_current_wal_lsn() - '0/0')::bigint"))
	require.Greater(t, at-r.session.Load().start, reconciler.LSN(50<<20))
	r.await("confirmed position", func() bool { return r.confirmed() >= at })
	require.Empty(t, r.sink.gaps)
}

// TestBudget: behind a full queue the log is held back up to the budget only.
func TestBudget(t *testing.T) {
	opts := options(sandbox.NewExampleDatabase(t))
	opts.MaxWAL = 1 << 20
	r := newRig(t, opts).run()
	r.sink.set(10, true, 0)
	r.rows(200)
	start := r.confirmed()
	r.purge()
	r.await("full queue", func() bool { return r.session.Load().blocked.Load() })
	require.LessOrEqual(t, r.confirmed(), start+1<<20)
	r.exec("SELECT pg_logical_emit_message(false, 'bulk', repeat('x', 3000000))")
	at := reconciler.LSN(scalar[int64](r, "SELECT (pg_current_wal_lsn() - '0/0')::bigint"))
	r.await("release", func() bool { return r.confirmed() >= at-1<<20 })
	r.await("gap", func() bool { return r.sink.gapped(gapBudget) })
	r.sink.set(1<<30, false, 10)
	r.await("within budget", func() bool { return r.sink.gapCount() == 2 }) // at the episode's start and at its end
	r.rows(5)
	before := len(r.sink.offered())
	r.purge()
	r.await("normal work", func() bool { return len(r.sink.offered()) == before+5 })
	require.Equal(t, int32(1), r.sessions.Load())
}

// TestFullQueueKeepsTheSlot: longer than wal_sender_timeout behind a full queue.
func TestFullQueueKeepsTheSlot(t *testing.T) {
	t.Parallel() // it waits for a timeout
	r := example(t)
	r.sink.set(10, true, 0)
	r.rows(5000)
	r.purge()
	r.await("full queue", func() bool { return r.session.Load().blocked.Load() })
	until := time.Now().Add(senderTimeout + 3*time.Second)
	r.await("time", func() bool { return time.Now().After(until) })
	r.sink.set(1<<30, false, 10)
	r.await("all deletes", func() bool { return r.arrived(5000) })
	require.Equal(t, int32(1), r.sessions.Load())
}

// TestCut: a connection that brings nothing is noticed, and one that is cut.
func TestCut(t *testing.T) {
	t.Parallel() // it waits for a timeout
	dsn := sandbox.NewExampleDatabase(t)
	proxy, err := sandbox.StartProxy(sandbox.SharedPostgres(t).Addr())
	require.NoError(t, err)
	defer proxy.Close()
	opts := options(proxy.URL(dsn))
	r := newRig(t, opts).run()
	r.dsn = dsn
	r.rows(10)
	proxy.Cut()
	r.purge()
	r.await("unreachable", func() bool { return !r.sink.last().Connected })
	require.NoError(t, proxy.Heal())
	r.await("deletes", func() bool { return r.arrived(10) })

	r.rows(10)
	proxy.Stall()
	r.purge()
	r.await("silence", func() bool { return !r.sink.last().Connected })
	require.NoError(t, proxy.Heal())
	r.await("deletes", func() bool { return r.arrived(20) })
}

// TestUnreachable: no server is an error that may pass.
func TestUnreachable(t *testing.T) {
	for name, url := range map[string]string{
		"nobody": "postgres://postgres@127.0.0.1:1/x", "no database": sandbox.SharedPostgres(t).DSN("missing"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(options(url)).Acquire(t.Context(), func(string) {})
			require.ErrorIs(t, err, reconciler.ErrUnreachable)
		})
	}
	_, err := New(options("postgres://%zz")).Acquire(t.Context(), func(string) {})
	require.Error(t, err)
	require.False(t, errors.Is(err, reconciler.ErrUnreachable))
}
