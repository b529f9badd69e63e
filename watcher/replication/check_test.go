package replication

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
)

// bad are the findings that are not OK and that a start does not mend, as
// "detail | fix", "!" before a fatal one. Those of the server are left out.
func bad(findings []Finding, prefix string) []string {
	out := []string{}
	for _, f := range findings {
		if !f.OK && !f.Mends && strings.HasPrefix(f.Name, prefix) {
			s := f.Detail + " | " + f.Fix
			if f.Fatal {
				s = "!" + s
			}
			out = append(out, s)
		}
	}
	return out
}

// TestTables: every way in which a table cannot be watched, with its exact fix.
func TestTables(t *testing.T) {
	byID := reconciler.Binding{Schema: "public", Table: "t", Key: "id", CeleryID: true}
	byColumn := reconciler.Binding{Schema: "public", Table: "t", Key: "id", Columns: []string{"c"}}
	const noIdentity = "!t has no replica identity: published so, the application's own DELETE would fail | ALTER TABLE t REPLICA IDENTITY "
	tests := []struct {
		name    string
		binding reconciler.Binding
		ddl     []string
		want    []string
	}{
		{"good", byID, []string{"CREATE TABLE t (id uuid PRIMARY KEY)"}, nil},
		{"full", byColumn, []string{"CREATE TABLE t (id uuid, c text)", "ALTER TABLE t REPLICA IDENTITY FULL"}, nil},
		{"missing", byID, nil, []string{"!it does not exist | correct tasks[].table (ORPHANWATCH_TABLE), or create the table first"}},
		{"a view", byID, []string{"CREATE VIEW t AS SELECT 1 AS id"}, []string{"!it is not a table | name the table behind it in tasks[].table (ORPHANWATCH_TABLE)"}},
		{
			"a partition", byID,
			[]string{"CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id)", "CREATE TABLE t PARTITION OF p DEFAULT"},
			[]string{"!it is a partition | name the partitioned table in tasks[].table (ORPHANWATCH_TABLE)"},
		},
		{
			"no key column", byID,
			[]string{"CREATE TABLE t (ident uuid)", "ALTER TABLE t REPLICA IDENTITY FULL"},
			[]string{"!it has no column id | correct tasks[].key and tasks[].match (ORPHANWATCH_KEY, ORPHANWATCH_MATCH)"},
		},
		{
			"unsupported type", byID,
			[]string{"CREATE TABLE t (id numeric PRIMARY KEY)"},
			[]string{"!column id has the type numeric, which is not supported | use a column of type uuid, text, varchar, integer or bigint"},
		},
		{"no primary key", byID, []string{"CREATE TABLE t (id uuid)"}, []string{noIdentity + "FULL;"}},
		{"deferrable primary key", byID, []string{"CREATE TABLE t (id uuid PRIMARY KEY DEFERRABLE)"}, []string{noIdentity + "FULL;"}},
		{"nothing", byID, []string{"CREATE TABLE t (id uuid PRIMARY KEY)", "ALTER TABLE t REPLICA IDENTITY NOTHING"}, []string{noIdentity + "DEFAULT;"}},
		{
			"key outside of the primary key", byID,
			[]string{"CREATE TABLE t (n int PRIMARY KEY, id uuid)"},
			[]string{"!a DELETE in t does not carry id: the replica identity is (n) | ALTER TABLE t REPLICA IDENTITY FULL;"},
		},
		{
			"column outside of the identity", byColumn,
			[]string{"CREATE TABLE t (id uuid PRIMARY KEY, c text)"},
			[]string{"!a DELETE in t does not carry c: the replica identity is (id) | ALTER TABLE t REPLICA IDENTITY FULL;"},
		},
		{
			"only included in the index", byColumn,
			[]string{"CREATE TABLE t (id uuid NOT NULL, c text NOT NULL)", "CREATE UNIQUE INDEX i ON t (id) INCLUDE (c)", "ALTER TABLE t REPLICA IDENTITY USING INDEX i"},
			[]string{"!a DELETE in t does not carry c: the replica identity is (id) | ALTER TABLE t REPLICA IDENTITY FULL;"},
		},
		{
			"one partition without identity", byID,
			[]string{
				"CREATE TABLE t (id int PRIMARY KEY) PARTITION BY LIST (id)", "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)",
				"CREATE TABLE t2 PARTITION OF t DEFAULT", "ALTER TABLE t2 REPLICA IDENTITY NOTHING",
			},
			[]string{strings.ReplaceAll(noIdentity, "t ", "t2 ")[:len(noIdentity)+2] + "DEFAULT;"},
		},
		{
			"row filter and column list", byColumn,
			[]string{
				"CREATE TABLE t (id uuid, c text, x int, PRIMARY KEY (id, x, c))",
				"CREATE PUBLICATION pub FOR TABLE t (id, x) WHERE (x > 0)",
			},
			[]string{
				"!the publication hides rows of it: WHERE (x > 0) | ALTER PUBLICATION \"pub\" DROP TABLE \"public\".\"t\"; ALTER PUBLICATION \"pub\" ADD TABLE \"public\".\"t\";",
				"!the publication's column list lacks c: the application's own DELETE may fail | ALTER PUBLICATION \"pub\" DROP TABLE \"public\".\"t\"; ALTER PUBLICATION \"pub\" ADD TABLE \"public\".\"t\";",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opts := options(sandbox.NewDatabase(t), tt.binding)
			opts.Publication = "pub"
			r := newRig(t, opts)
			r.exec(tt.ddl...)
			findings, err := r.src.Check(t.Context())
			require.NoError(t, err)
			if tt.want == nil {
				tt.want = []string{}
			}
			require.Equal(t, tt.want, bad(findings, "table "))
		})
	}
}

// TestNothingIsRefused: no publication, and the application's DELETE works.
func TestNothingIsRefused(t *testing.T) {
	r := newRig(t, options(sandbox.NewExampleDatabase(t)))
	r.exec("ALTER TABLE scan_tasks REPLICA IDENTITY NOTHING")
	r.rows(1)
	_, err := r.src.Acquire(t.Context(), func(string) {})
	var hinted *reconciler.Hinted
	require.ErrorAs(t, err, &hinted)
	require.NotErrorIs(t, err, reconciler.ErrUnreachable)
	require.Equal(t, "ALTER TABLE scan_tasks REPLICA IDENTITY DEFAULT;", hinted.Hint)
	require.ErrorContains(t, r.src.Setup(t.Context()), "REPLICA IDENTITY DEFAULT")
	require.Zero(t, scalar[int](r, "SELECT count(*) FROM pg_publication"))
	require.Zero(t, scalar[int](r, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", r.src.opts.Slot))
	r.purge()

	r.exec(hinted.Hint)
	r.run()
	r.rows(1)
	r.purge()
	r.await("delete", func() bool { return r.arrived(1) })
}

// as is the same source for another role, which may connect.
func (r *rig) as(role string) *rig {
	cfg, err := pgx.ParseConfig(r.dsn)
	require.NoError(r.tb, err)
	opts := r.src.opts
	opts.URL = fmt.Sprintf("postgres://%s@%s:%d/%s?sslmode=disable", role, cfg.Host, cfg.Port, cfg.Database)
	out := newRig(r.tb, opts)
	out.dsn = r.dsn
	return out
}

// TestRights: LOGIN alone, then REPLICATION and SELECT, then what the owner made.
func TestRights(t *testing.T) {
	owner := newRig(t, options(sandbox.NewExampleDatabase(t)))
	const role = "replication_watcher"
	owner.exec("CREATE ROLE " + role + " LOGIN")
	t.Cleanup(func() { owner.exec("DROP OWNED BY "+role, "DROP ROLE "+role) })
	r := owner.as(role)

	findings, err := r.src.Check(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{
		"!role " + role + " may not read it | GRANT SELECT (\"id\") ON \"public\".\"scan_tasks\" TO \"" + role + "\";",
	}, bad(findings, "table "))
	require.Equal(t, []string{"!role " + role + " may not replicate | ALTER ROLE \"" + role + "\" REPLICATION;"}, bad(findings, "role"))
	_, err = r.src.Acquire(t.Context(), func(string) {})
	require.ErrorContains(t, err, "REPLICATION;")
	require.ErrorContains(t, err, "GRANT SELECT")

	owner.exec("ALTER ROLE "+role+" REPLICATION", "GRANT SELECT (id) ON scan_tasks TO "+role)
	_, err = r.src.Acquire(t.Context(), func(string) {})
	var hinted *reconciler.Hinted
	require.ErrorAs(t, err, &hinted)
	name := r.src.opts.Publication
	want := []string{
		fmt.Sprintf(`CREATE PUBLICATION "%s" FOR TABLE "public"."scan_tasks" WITH (publish = 'update, delete, truncate', publish_via_partition_root = true);`, name),
		fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput');", name),
	}
	require.Equal(t, "run this as the owner of the tables or as superuser:\n"+strings.Join(want, "\n"), hinted.Hint)
	sql, err := r.src.SetupSQL(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, sql)

	owner.exec(want[0])
	r.run()
	owner.rows(1)
	owner.purge()
	r.await("delete", func() bool { return r.arrived(1) })
	require.NoError(t, r.stop())
	require.ErrorContains(t, r.src.Teardown(t.Context()), "DROP PUBLICATION")
}

// TestRowSecurity: a policy that would filter is said, and does not stop the stream.
func TestRowSecurity(t *testing.T) {
	owner := newRig(t, options(sandbox.NewExampleDatabase(t)))
	const role = "replication_filtered"
	owner.exec("CREATE ROLE "+role+" LOGIN REPLICATION", "GRANT SELECT ON scan_tasks TO "+role, "ALTER TABLE scan_tasks ENABLE ROW LEVEL SECURITY")
	t.Cleanup(func() { owner.exec("DROP OWNED BY "+role, "DROP ROLE "+role) })
	findings, err := owner.as(role).src.Check(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"row-level security applies to role " + role + ": lookups are refused, and nothing is removed | ALTER ROLE \"" + role + "\" BYPASSRLS;"},
		bad(findings, "table "))
	findings, err = owner.src.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, bad(findings, "table "))
}

// TestServerSettings: what the server lacks.
func TestServerSettings(t *testing.T) {
	good := server{version: minVersion, mayReplicate: true, role: "me", walLevel: "logical", walKeep: "1GB", maxSlots: 1, maxSenders: 1, pid: 7}
	require.Empty(t, bad(good.findings("15.1", 7), ""))
	for name, change := range map[string]func(*server){
		"!server version":            func(v *server) { v.version = 140011 },
		"!direct connection":         func(v *server) { v.pid = 8 },
		"!primary":                   func(v *server) { v.recovery = true },
		"!wal_level":                 func(v *server) { v.walLevel = "replica" },
		"!role":                      func(v *server) { v.mayReplicate = false },
		"!free replication slot":     func(v *server) { v.slots = 1 },
		"free wal sender":            func(v *server) { v.senders = 1 },
		"max_slot_wal_keep_size":     func(v *server) { v.walKeep = "-1" },
		"!synchronous_standby_names": func(v *server) { v.syncNames = "ANY 1 (a, *)" },
	} {
		v := good
		change(&v)
		var found []string
		for _, f := range v.findings("15.1", 7) {
			if !f.OK {
				require.NotEmpty(t, f.Fix)
				found = append(found, map[bool]string{true: "!"}[f.Fatal]+f.Name)
			}
		}
		require.Equal(t, []string{name}, found)
	}
	require.True(t, namesUs(`FIRST 2 (s1, "me")`, "me"))
	require.False(t, namesUs("s1, s2", "me"))
}

// TestWALLevel: a server as it comes.
func TestWALLevel(t *testing.T) {
	pg := sandbox.NewPostgres(t, sandbox.PostgresOptions{Settings: map[string]string{"wal_level": "replica"}})
	dsn, err := pg.NewExampleDatabase(t.Context())
	require.NoError(t, err)
	_, err = New(options(dsn)).Acquire(t.Context(), func(string) {})
	var hinted *reconciler.Hinted
	require.ErrorAs(t, err, &hinted)
	require.Equal(t, "ALTER SYSTEM SET wal_level = 'logical';  -- then restart PostgreSQL", hinted.Hint)
}

// TestForeignSlot: a slot that cannot be ours is left alone.
func TestForeignSlot(t *testing.T) {
	for what, sql := range map[string]string{
		"is a physical slot":            "SELECT pg_create_physical_replication_slot($1)",
		"has the plugin test_decoding":  "SELECT pg_create_logical_replication_slot($1, 'test_decoding')",
		"is of database " + "postgres,": "",
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, options(sandbox.NewExampleDatabase(t)))
			conn := r.connect()
			if sql == "" {
				other, err := pgx.Connect(t.Context(), sandbox.SharedPostgres(t).URL())
				require.NoError(t, err)
				closeConn(conn)
				conn, sql = other, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')"
			}
			defer closeConn(conn)
			_, err := conn.Exec(t.Context(), sql, r.src.opts.Slot)
			require.NoError(t, err)
			defer func() {
				_, err := conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", r.src.opts.Slot)
				require.NoError(t, err)
			}()
			_, err = r.src.Acquire(t.Context(), func(string) {})
			var hinted *reconciler.Hinted
			require.ErrorAs(t, err, &hinted)
			require.ErrorContains(t, err, what)
			findings, err := r.src.Check(t.Context())
			require.NoError(t, err)
			require.Len(t, bad(findings, "slot"), 1)
		})
	}
}

// TestSetupTeardown: both may be run twice; teardown refuses while somebody streams.
func TestSetupTeardown(t *testing.T) {
	r := newRig(t, options(sandbox.NewExampleDatabase(t)))
	for range 2 {
		require.NoError(t, r.src.Setup(t.Context()))
	}
	sql, err := r.src.SetupSQL(t.Context())
	require.NoError(t, err)
	require.Empty(t, sql)
	findings, err := r.src.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, bad(findings, "slot"))

	r.run()
	require.ErrorContains(t, r.src.Teardown(t.Context()), "in use by pid")
	require.NoError(t, r.stop())
	for range 2 {
		require.NoError(t, r.src.Teardown(t.Context()))
	}
	require.Zero(t, scalar[int](r, "SELECT count(*) FROM pg_publication"))
	r.exec(r.src.TeardownSQL()...)
}
