package replication

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// TestConfirmedIsDone: while a random application deletes, a random worker finishes
// and connections break, the server never holds a position beyond what is done, and
// in the end nothing is lost.
func TestConfirmedIsDone(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	r := example(t)
	r.sink.set(300, true, 0)
	conn := r.connect()
	defer closeConn(conn)
	_, err := conn.Exec(t.Context(), "SET synchronous_commit = off")
	require.NoError(t, err)
	deleted := 0
	for step := range 400 {
		switch n := random.IntN(100); {
		case n < 50:
			deleted += randomTransaction(t, conn, random)
		case n < 90:
			finishSome(r.sink, random, 1+random.IntN(12))
		case n < 93 && step < 350:
			_, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
			                                   WHERE slot_name = $1 AND active_pid IS NOT NULL`, r.src.opts.Slot)
			require.NoError(t, err)
		default:
			_, err := conn.Exec(t.Context(), "INSERT INTO task_logs (line) VALUES ('x')")
			require.NoError(t, err)
		}
		assertConfirmedIsDone(t, r)
	}
	r.await("everything", func() bool {
		finishSome(r.sink, random, 1000)
		return r.arrived(deleted)
	})
	at := reconciler.LSN(scalar[int64](r, "SELECT (pg_current_wal_lsn() - '0/0')::bigint"))
	r.await("confirmation", func() bool {
		finishSome(r.sink, random, 1000)
		return r.confirmed() >= at
	})
	t.Logf("%d rows, %d sessions", deleted, r.sessions.Load())
}

// randomTransaction deletes some rows, in a transaction that may hold a savepoint
// that is rolled back, be rolled back, or be prepared; it tells how many are gone.
func randomTransaction(t *testing.T, conn *pgx.Conn, random *rand.Rand) (gone int) {
	t.Helper()
	n := 1 + random.IntN(5)
	exec := func(sql string, args ...any) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql, args...)
		require.NoError(t, err, sql)
	}
	exec("INSERT INTO scan_tasks (id) SELECT gen_random_uuid() FROM generate_series(1, $1::int)", n)
	exec("BEGIN")
	if random.IntN(4) == 0 {
		exec("SAVEPOINT s")
		exec("DELETE FROM scan_tasks")
		exec("ROLLBACK TO s")
	}
	exec("DELETE FROM scan_tasks")
	switch random.IntN(6) {
	case 0:
		exec("ROLLBACK")
		exec("DELETE FROM scan_tasks")
	case 1:
		name := fmt.Sprintf("'replication_%d'", random.Uint64())
		exec("PREPARE TRANSACTION " + name)
		exec("COMMIT PREPARED " + name)
	default:
		exec("COMMIT")
	}
	return n
}

// finishSome finishes up to n held events, in random order.
func finishSome(s *sink, random *rand.Rand, n int) {
	s.mu.Lock()
	random.Shuffle(len(s.held), func(i, j int) { s.held[i], s.held[j] = s.held[j], s.held[i] })
	n = min(n, len(s.held))
	done := s.held[:n:n]
	s.held = append([]watcher.Event(nil), s.held[n:]...)
	close(s.room)
	s.room = make(chan struct{})
	s.mu.Unlock()
	for _, e := range done {
		e.Done()
	}
}

// assertConfirmedIsDone compares the server's position with what is unfinished: every
// commit of an event that is held ends behind it. Commit.LSN is where the commit
// record starts, so a confirmed position must not be beyond that.
func assertConfirmedIsDone(t *testing.T, r *rig) {
	t.Helper()
	r.sink.mu.Lock()
	held := append([]watcher.Event(nil), r.sink.held...)
	r.sink.mu.Unlock()
	confirmed := r.confirmed()
	for _, e := range held {
		if e.Deletion.Commit.LSN < confirmed && !finishedSince(r, e) {
			t.Fatalf("confirmed %s, and %s of commit %s is not done", confirmed, e.Subject.ID, e.Deletion.Commit.LSN)
		}
	}
}

// finishedSince tells whether the same row was offered by an earlier session, and
// finished there: after a cut it comes twice, and once is enough.
func finishedSince(r *rig, held watcher.Event) bool {
	r.sink.mu.Lock()
	defer r.sink.mu.Unlock()
	times := 0
	for _, e := range r.sink.events {
		if e.Subject == held.Subject {
			times++
		}
	}
	return times > 1
}
