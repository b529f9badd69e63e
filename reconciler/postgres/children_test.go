package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/postgres"
)

// household is a database with parents, children, and who cleans them up.
type household struct {
	testing.TB
	*reconciler.Reconciler
	store *postgres.Store
	url   string
	conn  *pgx.Conn
	// identity is what the first start has recorded, "" for that of now.
	identity string
	policy   reconciler.Policy
}

// newHousehold has parents 1 to 3, or what the statements make instead; foreign keys
// are not enforced while they run.
func newHousehold(t testing.TB, bindings []reconciler.Binding, statements ...string) *household {
	t.Helper()
	h := &household{TB: t}
	h.url, h.conn = database(t, append([]string{`SET session_replication_role = replica`}, statements...)...)
	exec(t, h.conn, `RESET session_replication_role`)
	h.settle()
	h.as(h.url, bindings...)
	return h
}

// settle waits until what was written is older than any transaction of the server.
func (h *household) settle() {
	h.Helper()
	var mine uint64
	require.NoError(h, h.conn.QueryRow(h.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&mine))
	sandbox.AwaitTB(h, 30*time.Second, "the end of older transactions", sandbox.Until(func() bool {
		var oldest uint64
		err := h.conn.QueryRow(h.Context(), `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint`).Scan(&oldest)
		return err == nil && oldest > mine
	}))
}

func (h *household) as(url string, bindings ...reconciler.Binding) {
	h.Helper()
	h.store = open(h, url, bindings...)
	h.policy = reconciler.Policy{Grace: 10 * time.Millisecond, InflightLimit: 20 * time.Second, MaxAbsentRatio: 0.5, MinSample: 50}
	h.build(bindings)
}

func (h *household) build(bindings []reconciler.Binding) {
	h.Helper()
	r, err := reconciler.New(reconciler.Options{
		Bindings: bindings, Policy: h.policy, Rows: h.store, Tables: h.store, Children: h.store,
		RecordIdentity: func(_ context.Context, identity string) (string, error) {
			if h.identity != "" {
				return h.identity, nil
			}
			return identity, nil
		},
		Guard: reconciler.NewGuard(h.policy, nil, time.Now), Memory: reconciler.NewMemory(10), Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(h, err)
	h.Reconciler = r
}

func (h *household) clean(c reconciler.Cleanup) reconciler.DatabaseReport {
	h.Helper()
	report, err := h.CleanupDatabase(h.Context(), c)
	require.NoError(h, err)
	return report
}

// count gives the number that a query answers.
func (h *household) count(from string) (n int64) {
	h.Helper()
	require.NoError(h, h.conn.QueryRow(h.Context(), "SELECT count(*) FROM "+from).Scan(&n))
	return n
}

func bound(table, key string, children ...string) reconciler.Binding {
	return reconciler.Binding{Schema: "public", Table: table, Key: key, CeleryID: true, Children: children}
}

func TestChildTables(t *testing.T) {
	t.Parallel()
	const parents = `CREATE TABLE tasks (id int PRIMARY KEY); INSERT INTO tasks VALUES (1), (2), (3)`
	tasks := []reconciler.Binding{bound("tasks", "id")}
	type counts = map[string]int64
	for _, tt := range []struct {
		name     string
		bindings []reconciler.Binding
		setup    string
		found    counts
		// keep are the rows that are left, by table.
		keep    counts
		skipped map[string]string
		errors  map[string]string
	}{
		{
			name: "foreign key", bindings: tasks,
			setup: `CREATE TABLE logs (id serial PRIMARY KEY, task_id int REFERENCES tasks ON DELETE CASCADE);
				INSERT INTO logs (task_id) VALUES (1), (9), (NULL), (9), (2)`,
			found: counts{"public.logs": 2}, keep: counts{"logs": 3},
		},
		{
			name: "not valid", bindings: tasks,
			setup: `CREATE TABLE logs (id serial PRIMARY KEY, task_id bigint); INSERT INTO logs (task_id) VALUES (1), (9), (8);
				ALTER TABLE logs ADD FOREIGN KEY (task_id) REFERENCES tasks NOT VALID`,
			found: counts{"public.logs": 2}, keep: counts{"logs": 1},
		},
		{
			name: "configured, instead of the key", bindings: []reconciler.Binding{bound("tasks", "id", "public.logs.task", "app.findings.task_id")},
			setup: `CREATE TABLE other (id serial PRIMARY KEY, task_id int REFERENCES tasks); INSERT INTO other (task_id) VALUES (9);
				CREATE TABLE logs (id serial PRIMARY KEY, task bigint); INSERT INTO logs (task) VALUES (1), (9), (NULL), (3);
				CREATE SCHEMA app; CREATE TABLE app.findings (id serial PRIMARY KEY, task_id int); INSERT INTO app.findings (task_id) VALUES (1), (7)`,
			found: counts{"public.logs": 1, "app.findings": 1}, keep: counts{"logs": 3, "app.findings": 1, "other": 1},
		},
		{
			name: "uuid, nothing to do, a composite primary key", bindings: []reconciler.Binding{bound("u", "id")},
			setup: `CREATE TABLE u (id uuid PRIMARY KEY); INSERT INTO u SELECT gen_random_uuid() FROM generate_series(1, 5);
				CREATE TABLE clean (id serial PRIMARY KEY, u uuid REFERENCES u); INSERT INTO clean (u) SELECT id FROM u;
				CREATE TABLE logs (u uuid REFERENCES u, day date, n text, PRIMARY KEY (day, n));
				INSERT INTO logs SELECT id, '2026-01-01', id FROM u; INSERT INTO logs SELECT gen_random_uuid(), '2026-01-02', n FROM generate_series(1, 3) n`,
			found: counts{"public.clean": 0, "public.logs": 3}, keep: counts{"clean": 5, "logs": 5},
		},
		{
			name: "text, and its collations", bindings: []reconciler.Binding{bound("x", "id", "public.logs.x"), bound("y", "id")},
			setup: `CREATE TABLE x (id text COLLATE "C" PRIMARY KEY); INSERT INTO x VALUES ('a'), ('é'), ('it''s');
				CREATE TABLE logs (id varchar(8) COLLATE "POSIX" PRIMARY KEY, x varchar(20) COLLATE "POSIX"); INSERT INTO logs VALUES ('1', 'a'), ('2', 'A'), ('é', 'é'), ('x''y', 'b');
				CREATE TABLE y (id text PRIMARY KEY); INSERT INTO y VALUES ('a');
				CREATE TABLE more (id "char" PRIMARY KEY, y text COLLATE "C" REFERENCES y); INSERT INTO more VALUES ('1', 'a'), ('2', 'A')`,
			found: counts{"public.logs": 2, "public.more": 1}, keep: counts{"logs": 2, "more": 1},
		},
		{
			name: "composite key, two keys", bindings: []reconciler.Binding{bound("jobs", "id")},
			setup: `CREATE TABLE jobs (id int PRIMARY KEY, tenant text, UNIQUE (tenant, id)); INSERT INTO jobs VALUES (1, 'a'), (2, 'b');
				CREATE TABLE logs (id serial PRIMARY KEY, job int, tenant text, other int REFERENCES jobs,
					FOREIGN KEY (tenant, job) REFERENCES jobs (tenant, id));
				INSERT INTO logs (job, tenant, other) VALUES (1, 'a', NULL), (1, 'b', NULL), (7, NULL, NULL), (NULL, 'z', 2), (2, 'b', 7)`,
			found: counts{"public.logs": 2}, keep: counts{"logs": 3},
		},
		{
			name: "never of a bound table", bindings: []reconciler.Binding{bound("tasks", "id"), bound("steps", "id")},
			setup: `ALTER TABLE tasks ADD parent int REFERENCES tasks; INSERT INTO tasks VALUES (4, 99);
				CREATE TABLE steps (id int PRIMARY KEY, task int REFERENCES tasks); INSERT INTO steps VALUES (1, 99);
				CREATE TABLE kept (id int PRIMARY KEY, task int REFERENCES tasks ON DELETE SET NULL); INSERT INTO kept VALUES (1, 99)`,
			found: counts{}, keep: counts{"tasks": 4, "steps": 1, "kept": 1},
			skipped: map[string]string{
				"public.tasks": "it is bound itself (public.tasks)", "public.steps": "it is bound itself (public.steps)",
				"public.kept": "ON DELETE SET NULL",
			},
		},
		{
			name: "partitions, inheritance", bindings: []reconciler.Binding{bound("p", "id", "public.logs.p", "public.base.p")},
			setup: `CREATE TABLE p (id int PRIMARY KEY) PARTITION BY HASH (id); CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 1, REMAINDER 0);
				INSERT INTO p VALUES (1), (2);
				CREATE TABLE logs (id int, day int, p int, PRIMARY KEY (id, day)) PARTITION BY LIST (day);
				CREATE TABLE logs1 PARTITION OF logs FOR VALUES IN (1); CREATE TABLE logs2 PARTITION OF logs DEFAULT;
				INSERT INTO logs SELECT n, 1 + n % 3, n FROM generate_series(1, 40) n;
				CREATE TABLE base (id int PRIMARY KEY, p int); CREATE TABLE heir () INHERITS (base); INSERT INTO base VALUES (1, 9), (2, 1); INSERT INTO heir VALUES (3, 9)`,
			found: counts{"public.logs": 38, "public.base": 1}, keep: counts{"logs": 2, "base": 2},
		},
		{
			name: "partitions with a foreign key", bindings: []reconciler.Binding{bound("p", "id")},
			setup: `CREATE TABLE p (id int PRIMARY KEY) PARTITION BY HASH (id); CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);
				CREATE TABLE p1 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO p VALUES (1), (2);
				CREATE TABLE logs (id int PRIMARY KEY, p int REFERENCES p) PARTITION BY HASH (id); CREATE TABLE logs0 PARTITION OF logs FOR VALUES WITH (MODULUS 1, REMAINDER 0);
				INSERT INTO logs SELECT n, n FROM generate_series(1, 40) n`,
			found: counts{"public.logs": 38}, keep: counts{"logs": 2},
		},
		{
			name: "odd names", bindings: []reconciler.Binding{bound(`Odd "tasks".%s`, "the id")},
			setup: `CREATE TABLE "Odd ""tasks"".%s" ("the id" int PRIMARY KEY); INSERT INTO "Odd ""tasks"".%s" VALUES (1);
				CREATE SCHEMA "a.b"; CREATE TABLE "a.b"."select %d"" ;--" ("p k" text PRIMARY KEY, "from" int REFERENCES "Odd ""tasks"".%s" ("the id"));
				INSERT INTO "a.b"."select %d"" ;--" VALUES ('a''b', 1), ('\', 2), ('', 3)`,
			found: counts{`a.b.select %d" ;--`: 2}, keep: counts{`"a.b"."select %d"" ;--"`: 1},
		},
		{
			name: "wrong configuration", bindings: []reconciler.Binding{
				bound("tasks", "id", "public.gone.task", "public.logs.gone", "public.logs.note", "public.v.task", "public.bare.task", "public.logs.task"),
			},
			setup: `CREATE TABLE logs (id int PRIMARY KEY, task int, note text); INSERT INTO logs VALUES (1, 1), (2, 9);
				CREATE VIEW v AS SELECT * FROM logs; CREATE TABLE bare (task int); INSERT INTO bare VALUES (9)`,
			found: counts{"public.logs": 1}, keep: counts{"logs": 1, "bare": 1},
			errors: map[string]string{
				"public.gone": "table public.gone does not exist\n  fix: correct tasks.children (public.gone.task)",
				"public.logs": "table public.logs has no column gone\n  fix: correct tasks.children (public.logs.gone)",
				"public.v":    "public.v is not a table\n  fix: ",
				"public.bare": "public.bare has no primary key, by which it could be read in batches\n  fix: ALTER TABLE \"public\".\"bare\" ADD PRIMARY KEY",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHousehold(t, tt.bindings, parents, tt.setup)
			before := map[string]int64{}
			for table := range tt.keep {
				before[table] = h.count(table)
			}
			for _, dry := range []bool{true, false} {
				report := h.clean(reconciler.Cleanup{DryRun: dry})
				require.Equal(t, tt.found, report.Tables)
				total := int64(0)
				for _, n := range tt.found {
					total += n
				}
				require.Equal(t, total, report.Total)
				require.Empty(t, report.Left)
				require.Empty(t, report.Guard)
				requireHints(t, tt.skipped, report.Skipped)
				requireHints(t, tt.errors, report.Errors)
				want := tt.keep
				if dry {
					want = before
				}
				for table, n := range want {
					require.Equal(t, n, h.count(table), "%s, dry %v", table, dry)
				}
			}
			for table, n := range h.clean(reconciler.Cleanup{}).Tables {
				require.Zero(t, n, "%s: twice is once", table)
			}
		})
	}
}

func requireHints(t *testing.T, want, got map[string]string) {
	t.Helper()
	require.Len(t, got, len(want), "%v", got)
	for table, text := range want {
		require.Contains(t, got[table], text)
	}
}

// The error of one table does not keep the others from being cleaned.
func TestChildrenWithErrors(t *testing.T) {
	t.Parallel()
	h := newHousehold(t, []reconciler.Binding{bound("tasks", "id")},
		`CREATE TABLE tasks (id int PRIMARY KEY)`, `INSERT INTO tasks SELECT generate_series(1, 2000)`,
		`CREATE TABLE a_logs (id int PRIMARY KEY, task int REFERENCES tasks)`,
		`CREATE TABLE lines (id int PRIMARY KEY, log int REFERENCES a_logs)`,
		`CREATE TABLE b_logs (id int PRIMARY KEY, task int REFERENCES tasks)`,
		`CREATE TABLE c_logs (id int PRIMARY KEY, task int REFERENCES tasks)`,
		`INSERT INTO a_logs SELECT n, n + 1000 FROM generate_series(1, 1500) n`,
		`INSERT INTO b_logs SELECT n, n + 1800 FROM generate_series(1, 400) n`,
		`INSERT INTO c_logs SELECT n, n + 1800 FROM generate_series(1, 400) n`,
		`INSERT INTO lines VALUES (1, 1100), (2, 1499)`, // the first log is no orphan's
		`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not me'; END $$`,
		`CREATE TRIGGER no BEFORE DELETE ON b_logs FOR EACH ROW EXECUTE FUNCTION no()`)
	report := h.clean(reconciler.Cleanup{})
	require.Equal(t, map[string]int64{"public.a_logs": 498, "public.b_logs": 0, "public.c_logs": 200}, report.Tables)
	require.EqualValues(t, 698, report.Total)
	require.EqualValues(t, 1002, h.count("a_logs"))
	require.EqualValues(t, 400, h.count("b_logs"))
	require.EqualValues(t, 200, h.count("c_logs"))
	requireHints(t, map[string]string{"public.a_logs": `2 rows cannot be removed, the first: `, "public.b_logs": "not me"}, report.Errors)
	require.Contains(t, report.Errors["public.a_logs"], "lines_log_fkey")
}

func TestChildrenRights(t *testing.T) {
	t.Parallel()
	h := newHousehold(t, nil,
		`CREATE TABLE tasks (id int PRIMARY KEY, secret text)`, `INSERT INTO tasks VALUES (1)`,
		`CREATE TABLE logs (id int PRIMARY KEY, task int REFERENCES tasks)`, `INSERT INTO logs VALUES (1, 1), (2, 2)`,
		`CREATE TABLE more (id int PRIMARY KEY, task int REFERENCES tasks)`, `INSERT INTO more VALUES (1, 1), (2, 2)`)
	h.as(plainRole(t, h.conn, h.url, "GRANT SELECT (id) ON tasks TO %s"), bound("tasks", "id"))
	// Each table tells a fix; all of them are applied, and then it works.
	for table, text := range h.clean(reconciler.Cleanup{DryRun: true}).Errors {
		_, fix, _ := strings.Cut(text, "\n  fix: ")
		require.Contains(t, fix, "GRANT SELECT, DELETE ON", "%s", table)
		exec(t, h.conn, strings.TrimSpace(fix))
	}
	exec(t, h.conn, `ALTER TABLE more ENABLE ROW LEVEL SECURITY`, `CREATE POLICY none ON more USING (false)`)
	blocker := connect(t, h.url)
	done := make(chan error, 1)
	watch, held := connect(t, h.url), blocker.PgConn().PID()
	release := func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := sandbox.Await(ctx, "a batch to wait for the row", func() error {
			waits := false
			err := watch.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE $1::int = ANY (pg_blocking_pids(pid)))`, held).Scan(&waits)
			if err == nil && !waits {
				err = errors.New("none does")
			}
			return err
		})
		_, committed := blocker.Exec(context.Background(), `COMMIT`)
		done <- errors.Join(err, committed)
	}
	// It is locked when the cleanup has waited for what was open before: without UPDATE
	// a batch then waits for it, for a moment.
	lock := sync.OnceFunc(func() {
		exec(t, blocker, `BEGIN`, `SELECT * FROM logs WHERE id = 2 FOR UPDATE`)
		go release()
	})
	report := h.clean(reconciler.Cleanup{MayGoOn: func(context.Context) error { lock(); return nil }})
	require.NoError(t, <-done)
	require.Equal(t, map[string]int64{"public.logs": 1}, report.Tables)
	requireHints(t, map[string]string{"public.more": "a policy hides rows"}, report.Errors)
	require.EqualValues(t, 2, h.count("more"))

	exec(t, h.conn, `REVOKE SELECT ON tasks FROM PUBLIC`, fmt.Sprintf(`REVOKE ALL ON tasks FROM %s`, roleOf(t, h.conn)))
	report = h.clean(reconciler.Cleanup{DryRun: true})
	require.Contains(t, report.Errors["public.logs"], "GRANT SELECT (\"id\") ON \"public\".\"tasks\" TO")
}

func roleOf(t *testing.T, conn *pgx.Conn) (role string) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT 'ow_' || current_database()`).Scan(&role))
	return role
}
