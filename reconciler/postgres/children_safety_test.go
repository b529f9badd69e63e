package postgres_test

import (
	"context"
	"errors"
	"fmt"
	osexec "os/exec"
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

var tasks = []reconciler.Binding{bound("tasks", "id", "public.logs.task")}

// orphans has n log rows without a task, and living ones with.
func orphans(t testing.TB, living, n int) *household {
	t.Helper()
	return newHousehold(t, tasks,
		`CREATE TABLE tasks (id bigint PRIMARY KEY)`, fmt.Sprintf(`INSERT INTO tasks SELECT generate_series(1, %d)`, living),
		`CREATE TABLE logs (id bigserial PRIMARY KEY, task bigint, note text)`,
		fmt.Sprintf(`INSERT INTO logs (task) SELECT n FROM generate_series(1, %d) n`, living),
		fmt.Sprintf(`INSERT INTO logs (task) SELECT -n FROM generate_series(1, %d) n`, n))
}

func (h *household) refused(c reconciler.Cleanup, reason string) {
	h.Helper()
	before := h.count("logs")
	report, err := h.CleanupDatabase(h.Context(), c)
	var guarded *reconciler.GuardedError
	require.ErrorAs(h, err, &guarded)
	require.Contains(h, guarded.Reason, reason)
	require.Zero(h, report.Total)
	require.Equal(h, before, h.count("logs"))
	c.DryRun = true
	report, err = h.CleanupDatabase(h.Context(), c)
	require.NoError(h, err)
	require.Contains(h, report.Guard, reason, "a dry run says so, and goes on")
	require.Equal(h, before, h.count("logs"))
}

func TestChildrenGuard(t *testing.T) {
	t.Parallel()
	force := reconciler.Cleanup{Force: true}
	t.Run("ratio", func(t *testing.T) {
		t.Parallel()
		h := orphans(t, 49, 50)
		h.refused(reconciler.Cleanup{}, "50 of 99 rows of public.logs have no parent in public.tasks, more than 50 %")
		require.EqualValues(t, 50, h.clean(force).Total)
		require.EqualValues(t, 49, h.count("logs"))
	})
	t.Run("just under", func(t *testing.T) {
		t.Parallel()
		require.EqualValues(t, 50, orphans(t, 50, 50).clean(reconciler.Cleanup{}).Total)
		require.EqualValues(t, 40, orphans(t, 1, 40).clean(reconciler.Cleanup{}).Total)
	})
	t.Run("empty", func(t *testing.T) {
		t.Parallel()
		h := orphans(t, 0, 3)
		h.refused(reconciler.Cleanup{}, "table public.tasks is empty")
		require.EqualValues(t, 3, h.clean(force).Total)
	})
	t.Run("another database", func(t *testing.T) {
		t.Parallel()
		h := orphans(t, 10, 3)
		h.identity = "7/other"
		h.refused(reconciler.Cleanup{}, "this is not the database of the first start")
		h.refused(force, "this is not the database of the first start")
	})
	t.Run("tripped", func(t *testing.T) {
		t.Parallel()
		h := orphans(t, 10, 3)
		h.Guard.Load(&reconciler.Trip{Reason: "9 of 9 tasks look orphaned"})
		h.refused(reconciler.Cleanup{}, "it has tripped: 9 of 9 tasks look orphaned")
		require.EqualValues(t, 3, h.clean(force).Total)
	})
}

// during calls f once, when the first rows have been removed.
func during(f func()) reconciler.Cleanup {
	var once sync.Once
	return reconciler.Cleanup{Progress: func(p reconciler.Progress) {
		if p.Done > 0 {
			once.Do(f)
		}
	}}
}

// What the guard judges can change in the middle.
func TestChildrenGuardMidway(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ sql, reason string }{
		{`TRUNCATE tasks`, "table public.tasks is empty"},
		{`DELETE FROM tasks`, "table public.tasks is empty"},
		{`DELETE FROM tasks WHERE id < 30000`, "more rows of public.logs have lost their parent meanwhile than were counted"},
	} {
		h := orphans(t, 30_000, 0)
		exec(t, h.conn, `DELETE FROM tasks WHERE id <= 3000`)
		h.settle()
		report, err := h.CleanupDatabase(t.Context(), during(func() { exec(t, h.conn, tt.sql) }))
		var guarded *reconciler.GuardedError
		require.ErrorAs(t, err, &guarded, tt.sql)
		require.Contains(t, guarded.Reason, tt.reason)
		require.Equal(t, 30_000-h.count("logs"), report.Total)
		require.Less(t, report.Total, int64(3000+300+10+4000), "and one batch")
	}
}

// The report is of what was done, when the work is interrupted.
func TestChildrenCancelled(t *testing.T) {
	t.Parallel()
	h := orphans(t, 20_000, 20_000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	report, err := h.CleanupDatabase(ctx, during(cancel))
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, reconciler.ErrUnreachable)
	require.Positive(t, report.Total)
	require.Equal(t, 40_000-h.count("logs"), report.Total)
	require.EqualValues(t, 20_000, h.count("logs WHERE task > 0"))
	require.Equal(t, 20_000-report.Total, h.clean(reconciler.Cleanup{}).Total)
}

// Rows that a writer holds are left, and met again; what it changes is its own.
func TestChildrenLocked(t *testing.T) {
	t.Parallel()
	h := orphans(t, 20_000, 20_000)
	short, long := connect(t, h.url), connect(t, h.url)
	// They must not be open when the cleanup waits for what runs.
	report, err := h.CleanupDatabase(t.Context(), during(func() {
		exec(t, short, `BEGIN`, `SELECT * FROM logs WHERE task = -19900 FOR UPDATE`)
		exec(t, long, `BEGIN`, `SELECT * FROM logs WHERE task = -20000 FOR SHARE`, `UPDATE logs SET note = 'mine' WHERE task = -19950`)
		time.AfterFunc(800*time.Millisecond, func() { _, _ = short.Exec(context.Background(), `COMMIT`) })
	}))
	require.NoError(t, err)
	require.EqualValues(t, 19_998, report.Total)
	require.Equal(t, map[string]int64{"public.logs": 2}, report.Left)
	exec(t, long, `COMMIT`)
	require.EqualValues(t, 20_002, h.count("logs"))
	require.EqualValues(t, 1, h.count("logs WHERE note = 'mine'"))
	h.settle()
	require.EqualValues(t, 2, h.clean(reconciler.Cleanup{}).Total)
}

// A transaction that is open at the start may be writing a parent.
func TestChildrenWaitForParents(t *testing.T) {
	t.Parallel()
	h := orphans(t, 100, 20)
	writer := connect(t, h.url)
	exec(t, writer, `BEGIN`, `INSERT INTO tasks VALUES (-7)`)
	waits := make(chan string, 1000)
	go func() {
		for stage := range waits {
			if strings.Contains(stage, "waiting for transaction") {
				_, _ = writer.Exec(context.Background(), `COMMIT`)
				return
			}
		}
	}()
	report := h.clean(reconciler.Cleanup{Progress: func(p reconciler.Progress) {
		select {
		case waits <- p.Stage:
		default:
		}
	}})
	close(waits)
	require.EqualValues(t, 19, report.Total)
	require.EqualValues(t, 1, h.count("logs WHERE task = -7"))

	exec(t, writer, `BEGIN`, `INSERT INTO tasks VALUES (-8)`)
	exec(t, h.conn, `INSERT INTO logs (task) VALUES (-8)`)
	h.policy.InflightLimit = 100 * time.Millisecond
	h.build(tasks)
	_, err := h.CleanupDatabase(t.Context(), reconciler.Cleanup{})
	require.ErrorContains(t, err, "still open after 100ms: transaction")
	require.ErrorContains(t, err, fmt.Sprint(writer.PgConn().PID()))
	require.EqualValues(t, 101+1, h.count("logs"))
}

// TestChildBeforeParent: writers insert a child first, and its parent later, in another
// transaction, in every way there is; others update. None of their rows is ever hit.
func TestChildBeforeParent(t *testing.T) {
	t.Parallel()
	t.Run("locking", func(t *testing.T) { childBeforeParent(t, orphans(t, 60_000, 50_000)) })
	t.Run("without the right to lock", func(t *testing.T) {
		h := orphans(t, 60_000, 50_000)
		h.as(plainRole(t, h.conn, h.url, "GRANT SELECT (id) ON tasks TO %s"), tasks...)
		exec(t, h.conn, "GRANT SELECT, DELETE ON logs TO "+roleOf(t, h.conn))
		childBeforeParent(t, h)
	})
}

func childBeforeParent(t *testing.T, h *household) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var written, next atomic.Int64
	var wg sync.WaitGroup
	next.Store(1_000_000)
	writer := func(n int) error {
		conn, err := pgx.Connect(context.Background(), h.url)
		if err != nil {
			return err
		}
		defer conn.Close(context.Background())
		for ctx.Err() == nil {
			id := next.Add(1)
			// One in three frees the key of an orphan, so that the walk has yet to come there.
			child := fmt.Sprintf(`INSERT INTO logs (task, note) VALUES (%d, 'new')`, id)
			switch n % 3 {
			case 1:
				child = fmt.Sprintf(`BEGIN; SAVEPOINT a; INSERT INTO logs (task, note) VALUES (%d, 'new'); RELEASE a; COMMIT`, id)
			case 2:
				child = fmt.Sprintf(`UPDATE logs SET task = %d, note = 'new' WHERE id = %d AND note IS NULL`, id, 60_000+1+id%50_000)
			}
			tag, err := conn.Exec(context.Background(), child)
			if err != nil {
				return err
			}
			time.Sleep(time.Duration(id%5) * time.Millisecond)
			if n%3 == 2 && tag.RowsAffected() == 0 {
				continue // the orphan was gone
			}
			if _, err := conn.Exec(context.Background(), fmt.Sprintf(`INSERT INTO tasks VALUES (%d)`, id)); err != nil {
				return err
			}
			written.Add(1)
		}
		return nil
	}
	errs := make(chan error, 6)
	for n := range 6 {
		wg.Add(1)
		go func() { defer wg.Done(); errs <- writer(n) }()
	}
	sandbox.AwaitTB(t, 10*time.Second, "writers", sandbox.Until(func() bool { return written.Load() > 20 }))
	report := h.clean(reconciler.Cleanup{})
	during := written.Load()
	stop()
	wg.Wait()
	for range 6 {
		require.NoError(t, <-errs)
	}
	t.Logf("removed %d, left %v, while %d children were written", report.Total, report.Left, during)
	require.Greater(t, during, int64(100))
	require.Equal(t, written.Load(), h.count("logs WHERE note = 'new'"), "a row that was written meanwhile is gone")
	require.EqualValues(t, 60_000, h.count("logs WHERE note IS NULL AND task > 0"), "a living row is gone")
	require.Zero(t, h.count("logs WHERE note IS NULL AND task < 0"), "an orphan is left")
}

// TestChildrenWraparound: 32 bits of an id say what is newer, also where they begin
// again in the middle, and of rows that were frozen ages ago.
func TestChildrenWraparound(t *testing.T) {
	t.Parallel()
	pg := sandbox.NewPostgres(t)
	h := &household{TB: t, url: pg.URL()}
	reconnect := func() { h.conn = connect(t, pg.URL()) }
	jump(t, pg, 50_000_000)
	reconnect()
	exec(t, h.conn, `CREATE TABLE tasks (id bigint PRIMARY KEY)`, `INSERT INTO tasks SELECT generate_series(1, 3000)`,
		`CREATE TABLE logs (id bigserial PRIMARY KEY, task bigint)`, `INSERT INTO logs (task) SELECT n FROM generate_series(1, 3000) n`,
		`INSERT INTO logs (task) SELECT -n FROM generate_series(1, 1000) n`)

	// 2^31 and more transactions later the ids of frozen rows look as if they were of
	// the future. A moment later they begin anew.
	jump(t, pg, 1<<32-300)
	reconnect()
	var old int64
	require.NoError(t, h.conn.QueryRow(t.Context(), `SELECT max(age(xmin)) FROM logs`).Scan(&old))
	require.Negative(t, old)
	exec(t, h.conn, `INSERT INTO logs (task) SELECT -n FROM generate_series(1001, 2000) n`)
	h.settle()
	h.as(h.url, tasks...)
	burn := func(n int) {
		for range n {
			exec(t, h.conn, `SELECT pg_current_xact_id()`)
		}
	}
	burn(100)
	once := false
	report := h.clean(reconciler.Cleanup{Progress: func(p reconciler.Progress) {
		if strings.HasPrefix(p.Stage, "waiting for the grace") && !once {
			once = true
			exec(t, h.conn, `INSERT INTO logs (task) VALUES (-5000)`) // before the ids begin anew
			burn(300)
			exec(t, h.conn, `INSERT INTO logs (task) VALUES (-5001)`) // and after
		}
	}})
	var now uint64
	require.NoError(t, h.conn.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&now))
	require.Greater(t, now, uint64(1<<32))
	require.EqualValues(t, 2000, report.Total)
	require.Equal(t, map[string]int64{"public.logs": 2}, report.Left)
	h.settle()
	require.EqualValues(t, 2, h.clean(reconciler.Cleanup{}).Total)
	require.EqualValues(t, 3000, h.count("logs"))
}

// jump freezes all that there is, and makes next the id of the next transaction.
func jump(t *testing.T, pg *sandbox.Postgres, next uint64) {
	t.Helper()
	conn := connect(t, pg.URL())
	exec(t, conn, `ALTER DATABASE template0 ALLOW_CONNECTIONS true`)
	for _, db := range []string{"postgres", "template1", "template0"} {
		c := connect(t, pg.DSN(db))
		exec(t, c, `VACUUM (FREEZE)`)
		require.NoError(t, c.Close(t.Context()))
	}
	var data, bin string
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT current_setting('data_directory'), (SELECT setting FROM pg_config() WHERE name = 'BINDIR')`).Scan(&data, &bin))
	require.NoError(t, conn.Close(t.Context()))
	_, err := pg.Stop(t.Context())
	require.NoError(t, err)
	runAsOwner(t, data, bin+"/pg_resetwal", "-x", fmt.Sprint(next), "-u", fmt.Sprint(next-1000), "-D", data)
	// The status of 2^20 transactions is in one file of pg_xact; nobody has made it.
	runAsOwner(t, data, "dd", "if=/dev/zero", fmt.Sprintf("of=%s/pg_xact/%04X", data, next>>20), "bs=262144", "count=1")
	require.NoError(t, pg.Start(t.Context()))
}

// runAsOwner runs a program as the owner of the cluster's files.
func runAsOwner(t *testing.T, data string, args ...string) {
	t.Helper()
	owner, err := osexec.Command("stat", "-c", "%U", data).Output()
	require.NoError(t, err)
	name := strings.TrimSpace(string(owner))
	if name != "root" {
		args = append([]string{"runuser", "-u", name, "--"}, args...)
	}
	out, err := osexec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// A server that is restarted may be another, with other transaction ids.
func TestChildrenRestarted(t *testing.T) {
	t.Parallel()
	pg := sandbox.NewPostgres(t)
	h := &household{TB: t, url: pg.URL(), conn: connect(t, pg.URL())}
	exec(t, h.conn, `CREATE TABLE tasks (id bigint PRIMARY KEY)`, `INSERT INTO tasks VALUES (1)`,
		`CREATE TABLE logs (id bigserial PRIMARY KEY, task bigint)`, `INSERT INTO logs (task) SELECT -n FROM generate_series(1, 40) n`)
	h.settle()
	h.as(h.url, tasks...)
	restarted := false
	report, err := h.CleanupDatabase(t.Context(), reconciler.Cleanup{Progress: func(p reconciler.Progress) {
		if strings.HasPrefix(p.Stage, "waiting for the grace") {
			restarted = true
			_, err := pg.Stop(t.Context())
			require.NoError(t, err)
			require.NoError(t, pg.Start(t.Context()))
			h.store.Reset()
		}
	}})
	require.True(t, restarted)
	switch {
	case err == nil:
		require.Contains(t, report.Errors["public.logs"], "begin anew")
	case !errors.Is(err, reconciler.ErrUnreachable):
		t.Fatal(err)
	}
	require.Zero(t, report.Total)
}
