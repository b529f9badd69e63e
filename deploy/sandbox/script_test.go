package sandbox_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

const setup = "../sql/setup.sql"

// The role of setup.sql may read what it is to read, and nothing else; run again, the
// script changes nothing, and for another table it adds that one.
func TestTheRoleOfSetupSQL(t *testing.T) {
	dsn := sandbox.NewExampleDatabase(t)
	pg := sandbox.SharedPostgres(t)
	admin := connect(t, dsn)
	exec := func(sql string) {
		t.Helper()
		_, err := admin.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	exec(`CREATE TABLE "Odd ""table""" (id bigint PRIMARY KEY, "Celery Task" text, secret text) PARTITION BY RANGE (id);
		CREATE TABLE part PARTITION OF "Odd ""table""" DEFAULT;
		CREATE PUBLICATION "p'q" FOR TABLE "Odd ""table"""`) // as others make one: it publishes partitions
	// A better match than PostgreSQL's own, which a superuser must not be led to call.
	exec("CREATE FUNCTION public.format(text, name, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $x$called$x$; END'")
	const role = `watch "er"`
	run := func(variables ...string) {
		t.Helper()
		require.NoError(t, pg.RunScript(t.Context(), dsn, setup, append([]string{"role=" + role, "publication=p'q"}, variables...)...))
	}
	for range 2 {
		run("password=it's")
		run(`table=Odd "table"`, "columns=id, Celery Task", "replica_identity=FULL", "children=public.task_logs", "bypassrls=on", "stats=on")
	}
	value := func(sql string) (v string) {
		t.Helper()
		require.NoError(t, admin.QueryRow(t.Context(), sql).Scan(&v))
		return v
	}
	require.Equal(t, `f|f|f|t|t|t|SCRAM-SHA-256$`, value(`SELECT concat_ws('|', rolsuper, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, left(rolpassword, 14))
		FROM pg_authid WHERE rolname = 'watch "er"'`))
	require.Equal(t, "f|t|t|t|t", value("SELECT concat_ws('|', pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot) FROM pg_publication WHERE pubname = 'p''q'"))
	require.Equal(t, `Odd "table",scan_tasks`, value("SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = 'p''q'"))
	require.Equal(t, "d,f,f", value(`SELECT string_agg(relreplident::text, ',' ORDER BY relreplident) FROM pg_class WHERE relname IN ('scan_tasks', 'Odd "table"', 'part')`))

	watch := connect(t, sandbox.As(dsn, role, ""))
	for _, sql := range []string{`SELECT id, "Celery Task" FROM "Odd ""table"""`, "SELECT id FROM scan_tasks", "DELETE FROM task_logs WHERE id = 1"} {
		_, err := watch.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	for _, sql := range []string{
		`SELECT secret FROM "Odd ""table"""`, "SELECT target FROM scan_tasks", "DELETE FROM scan_tasks", "UPDATE scan_tasks SET id = id",
		"INSERT INTO scan_tasks DEFAULT VALUES", "TRUNCATE task_logs", "INSERT INTO task_logs DEFAULT VALUES", "UPDATE task_logs SET line = ''",
		"CREATE TABLE public.mine ()", "CREATE SCHEMA mine", "CREATE ROLE mine", "DROP PUBLICATION \"p'q\"",
	} {
		_, err := watch.Exec(t.Context(), sql)
		require.ErrorContains(t, err, "42501", sql)
	}
	// A mistake is an error, and changes nothing.
	for variable, told := range map[string]string{"columns=nothing": "nothing", "replica_identity=default": "neither empty nor full"} {
		require.ErrorContains(t, pg.RunScript(t.Context(), dsn, setup, "role=nobody_else", variable), told)
	}
	require.Equal(t, "0", value("SELECT count(*)::text FROM pg_roles WHERE rolname = 'nobody_else'"))
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}
