package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/postgres"
)

const (
	uuid1 = "0a1b2c3d-0000-4000-8000-00000000002a"
	uuid2 = "0a1b2c3d-0000-4000-8000-00000000002b"
)

func open(t testing.TB, url string, bindings ...reconciler.Binding) *postgres.Store {
	t.Helper()
	s, err := postgres.New(postgres.Options{URL: url, Bindings: bindings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t testing.TB, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

func database(t testing.TB, statements ...string) (url string, conn *pgx.Conn) {
	t.Helper()
	url = sandbox.NewDatabase(t)
	conn = connect(t, url)
	exec(t, conn, statements...)
	return url, conn
}

func byKey(tableName string) reconciler.Binding {
	return reconciler.Binding{Schema: "public", Table: tableName, Key: "id", CeleryID: true}
}

// saw is how the tests write a state: E exists, then the candidates, then the keyed.
func saw(s reconciler.RowState) string {
	exists := "-"
	if s.Exists {
		exists = "E"
	}
	return fmt.Sprintf("%s%b/%b", exists, s.Candidates, s.Keyed)
}

func lookOne(t testing.TB, s *postgres.Store, l reconciler.Look) reconciler.RowState {
	t.Helper()
	answer, err := s.Look(t.Context(), []reconciler.Look{l})
	if err != nil {
		t.Fatalf("look for %q: %v", l.Subject.ID, err)
	}
	return answer.States[0]
}

func task(id string) reconciler.Look {
	return reconciler.Look{Subject: reconciler.TaskSubject(id), Spelling: id}
}

func row(binding int, key string) reconciler.Look {
	return reconciler.Look{Subject: reconciler.RowSubject(binding, key), Spelling: key}
}

func TestLookTypes(t *testing.T) {
	t.Parallel()
	url, _ := database(t,
		`CREATE DOMAIN short AS varchar(8)`, `CREATE DOMAIN shorter AS short`,
		`CREATE TABLE u (id uuid PRIMARY KEY)`,
		`CREATE TABLE x (id text PRIMARY KEY)`,
		`CREATE TABLE v (id varchar(8) PRIMARY KEY)`,
		`CREATE TABLE i (id int PRIMARY KEY)`,
		`CREATE TABLE b (id bigint PRIMARY KEY)`,
		`CREATE TABLE d (id shorter PRIMARY KEY)`,
		`CREATE TABLE p (id uuid PRIMARY KEY) PARTITION BY HASH (id)`,
		`CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0)`,
		`CREATE TABLE p1 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1)`,
		`INSERT INTO u VALUES ('`+uuid1+`')`, `INSERT INTO p VALUES ('`+uuid1+`')`,
		`INSERT INTO x VALUES ('`+strings.ToUpper(strings.ReplaceAll(uuid1, "-", ""))+`'), ('it''s; "x" \'), ('007'), (''), ('é')`,
		`INSERT INTO v VALUES ('12345678'), ('éééééééé')`,
		`INSERT INTO d VALUES ('12345678')`,
		`INSERT INTO i VALUES (7), (-2147483648), (0)`,
		`INSERT INTO b VALUES (7), (9223372036854775807)`)

	hex := strings.ReplaceAll(uuid1, "-", "")
	mixed := strings.ToUpper(uuid1[:18]) + uuid1[18:]
	for _, tt := range []struct{ table, id, want string }{
		{"u", uuid1, "E1/1"},
		{"u", strings.ToUpper(uuid1), "E1/1"},
		{"u", hex, "E1/1"},
		{"u", mixed, "E1/1"},
		{"u", uuid2, "-1/1"},
		{"u", "7", "-0/0"},
		{"u", "{" + uuid1 + "}", "-0/0"},
		{"u", "", "-0/0"},
		{"u", uuid1 + "\x00", "-0/0"},
		{"u", "\xff\xfe", "-0/0"},
		{"u", "'; DROP TABLE u; --", "-0/0"},
		{"p", uuid1, "E1/1"},
		{"p", uuid2, "-1/1"},
		{"x", uuid1, "E1/1"},
		{"x", hex, "E1/1"},
		{"x", mixed, "E1/1"},
		{"x", uuid2, "-1/1"},
		{"x", `it's; "x" \`, "E1/1"},
		{"x", "007", "E1/1"},
		{"x", "7", "-1/1"},
		{"x", "é", "E1/1"},
		{"x", "a\x00", "-0/0"},
		{"x", "\xff", "-0/0"},
		{"x", strings.Repeat("a", 1<<20), "-0/0"},
		{"x", "{}", "-1/1"},
		{"x", "NULL", "-1/1"},
		{"x", `"\,`, "-1/1"},
		{"v", "12345678", "E1/1"},
		{"v", "éééééééé", "E1/1"},
		{"v", "123456789", "-0/0"},
		{"v", uuid1, "-0/0"},
		{"d", "12345678", "E1/1"},
		{"d", "123456789", "-0/0"},
		{"i", "7", "E1/1"},
		{"i", "007", "-0/0"},
		{"i", "+7", "-0/0"},
		{"i", " 7", "-0/0"},
		{"i", "7 ", "-0/0"},
		{"i", "-0", "-0/0"},
		{"i", "0", "E1/1"},
		{"i", "-2147483648", "E1/1"},
		{"i", "2147483648", "-0/0"},
		{"i", "8", "-1/1"},
		{"i", "7.0", "-0/0"},
		{"i", uuid1, "-0/0"},
		{"i", "٧", "-0/0"},
		{"b", "9223372036854775807", "E1/1"},
		{"b", "9223372036854775808", "-0/0"},
		{"b", "7", "E1/1"},
		{"b", "0x7", "-0/0"},
	} {
		t.Run(fmt.Sprintf("%s %.40q", tt.table, tt.id), func(t *testing.T) {
			s := open(t, url, byKey(tt.table))
			if got := saw(lookOne(t, s, task(tt.id))); got != tt.want {
				t.Errorf("as a task: %s, want %s", got, tt.want)
			}
			if got := saw(lookOne(t, s, row(0, tt.id))); got != tt.want {
				t.Errorf("as a row: %s, want %s", got, tt.want)
			}
		})
	}
}

func TestLookBatchOfSeveralBindings(t *testing.T) {
	t.Parallel()
	url, _ := database(t,
		`CREATE TABLE "Od""d" ("I d" uuid PRIMARY KEY, "c;" text, n int)`,
		`CREATE TABLE x (id text PRIMARY KEY, task uuid)`,
		`INSERT INTO "Od""d" VALUES ('`+uuid1+`', 'job-1', 5), (gen_random_uuid(), NULL, NULL)`,
		`INSERT INTO x VALUES ('`+uuid1+`', '`+uuid2+`')`)
	s := open(t, url,
		reconciler.Binding{Schema: "public", Table: `Od"d`, Key: "I d", CeleryID: true, Columns: []string{"c;", "n"}},
		reconciler.Binding{Schema: "public", Table: "x", Key: "id", Columns: []string{"task"}})
	looks := []reconciler.Look{
		task(uuid1), task(uuid2), task("job-1"), task("5"), task("6"), row(0, uuid1), row(1, uuid1), row(1, uuid2), row(0, "5"),
		{Subject: reconciler.Subject{Kind: reconciler.Canary, ID: "redis"}},
		task(uuid1), task("\x00"),
	}
	answer, err := s.Look(t.Context(), looks)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"E11/1", "E11/1", "E1/0", "E1/0", "-1/0", "E1/1", "E10/10", "-10/10", "-0/0", "-0/0", "E11/1", "-0/0"}
	for i := range looks {
		if got := saw(answer.States[i]); got != want[i] {
			t.Errorf("%v: %s, want %s", looks[i], got, want[i])
		}
	}
	if answer.Snapshot.Xmax == 0 {
		t.Error("no snapshot")
	}
}

func TestLookErrorsAreNeverAbsence(t *testing.T) {
	t.Parallel()
	url, conn := database(t, `CREATE TABLE t (id uuid PRIMARY KEY, n numeric, c text COLLATE "C")`, `CREATE VIEW w AS SELECT id FROM t`,
		`CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
		`CREATE TABLE l (id text COLLATE blind PRIMARY KEY)`)
	for name, b := range map[string]reconciler.Binding{
		"no table":   byKey("nowhere"),
		"no column":  {Schema: "public", Table: "t", Key: "id", Columns: []string{"gone"}},
		"type":       {Schema: "public", Table: "t", Key: "n"},
		"a view":     byKey("w"),
		"collation":  byKey("l"),
		"no schema":  {Schema: "other", Table: "t", Key: "id"},
		"upper case": byKey("T"),
	} {
		s := open(t, url, b)
		if answer, err := s.Look(t.Context(), []reconciler.Look{task(uuid1)}); err == nil {
			t.Errorf("%s: %+v, want an error", name, answer)
		}
	}
	s := open(t, url, byKey("t"))
	lookOne(t, s, task(uuid1))
	exec(t, conn, `DROP VIEW w`, `DROP TABLE t`)
	if answer, err := s.Look(t.Context(), []reconciler.Look{task(uuid1)}); err == nil {
		t.Errorf("dropped table: %+v, want an error", answer)
	}
}

func TestLookFollowsARecreatedTable(t *testing.T) {
	t.Parallel()
	url, conn := database(t, `CREATE TABLE t (id uuid PRIMARY KEY)`)
	s := open(t, url, byKey("t"))
	for _, step := range []struct{ sql, id, want string }{
		{`INSERT INTO t VALUES ('` + uuid1 + `')`, uuid1, "E1/1"},
		{`DROP TABLE t; CREATE TABLE t (id text PRIMARY KEY); INSERT INTO t VALUES ('` + uuid1 + `')`, uuid1, "E1/1"},
		{`DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (7)`, "7", "E1/1"},
		{`DROP TABLE t; CREATE TABLE t (id uuid PRIMARY KEY); INSERT INTO t VALUES ('` + uuid2 + `')`, uuid2, "E1/1"},
		{`ALTER TABLE t ALTER id TYPE text; ALTER TABLE t ADD c int`, uuid2, "E1/1"},
	} {
		exec(t, conn, step.sql)
		// What the old type could not hold may be unknown for a while, never absent.
		got := saw(lookOne(t, s, task(step.id)))
		if got != step.want && got != "-0/0" {
			t.Errorf("after %s: %s, want %s", step.sql, got, step.want)
		}
	}
}

func TestLookRowSecurityIsAnError(t *testing.T) {
	t.Parallel()
	url, conn := database(t, `CREATE TABLE t (id uuid PRIMARY KEY, hidden bool)`, `INSERT INTO t VALUES ('`+uuid1+`', true)`,
		`ALTER TABLE t ENABLE ROW LEVEL SECURITY`, `CREATE POLICY p ON t USING (NOT hidden)`)
	role := plainRole(t, conn, url, "GRANT SELECT ON t TO %s")
	s := open(t, role, byKey("t"))
	if answer, err := s.Look(t.Context(), []reconciler.Look{task(uuid1)}); err == nil {
		t.Fatalf("%+v, want an error", answer)
	}
	if err := s.EachID(t.Context(), 0, func(string) error { return nil }); err == nil {
		t.Fatal("EachID skips hidden rows without an error")
	}
	if _, err := s.EmptyTables(t.Context()); err == nil {
		t.Fatal("EmptyTables skips hidden rows without an error")
	}
}

// plainRole makes a role with LOGIN REPLICATION and nothing but what grant says.
func plainRole(t testing.TB, conn *pgx.Conn, url, grant string) (roleURL string) {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	role := "ow_" + config.Database
	exec(t, conn, "CREATE ROLE "+role+" LOGIN REPLICATION")
	if grant != "" {
		exec(t, conn, fmt.Sprintf(grant, role))
	}
	t.Cleanup(func() {
		_, _ = conn.Exec(context.Background(), "DROP OWNED BY "+role)
		_, _ = conn.Exec(context.Background(), "DROP ROLE "+role)
	})
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", role, config.Port, config.Database)
}

func TestLookHeldCommit(t *testing.T) {
	t.Parallel()
	pg := sandbox.NewPostgres(t)
	conn := connect(t, pg.URL())
	exec(t, conn, `CREATE TABLE t (id uuid PRIMARY KEY)`, `INSERT INTO t VALUES ('`+uuid1+`')`)
	release, err := pg.HoldCommits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, pg.URL(), byKey("t"))
	deleting := connect(t, pg.URL())
	var xid uint32
	exec(t, deleting, "BEGIN", `DELETE FROM t`)
	if err := deleting.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text::bigint").Scan(&xid); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := deleting.Exec(context.Background(), "COMMIT")
		done <- err
	}()
	sandbox.AwaitTB(t, 10*time.Second, "the held commit", sandbox.Until(func() bool {
		var waiting bool
		err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep')").Scan(&waiting)
		return err == nil && waiting
	}))
	answer, err := s.Look(t.Context(), []reconciler.Look{task(uuid1)})
	if err != nil {
		t.Fatal(err)
	}
	if !answer.States[0].Exists || answer.Snapshot.Sees(xid) {
		t.Fatalf("held: %+v sees %d: %v; want the row, and a snapshot that does not see", answer, xid, answer.Snapshot.Sees(xid))
	}
	if err := release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	answer, err = s.Look(t.Context(), []reconciler.Look{task(uuid1)})
	if err != nil {
		t.Fatal(err)
	}
	if answer.States[0].Exists || !answer.Snapshot.Sees(xid) {
		t.Fatalf("released: %+v sees: %v", answer, answer.Snapshot.Sees(xid))
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	pg := sandbox.NewPostgres(t)
	exec(t, connect(t, pg.URL()), `CREATE TABLE t (id uuid PRIMARY KEY)`, `INSERT INTO t VALUES ('`+uuid1+`')`)
	s := open(t, pg.URL(), byKey("t"))
	lookOne(t, s, task(uuid1))
	if err := pg.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := s.Look(t.Context(), []reconciler.Look{task(uuid1)}); !errors.Is(err, reconciler.ErrUnreachable) {
			t.Fatalf("%v, want ErrUnreachable", err)
		}
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := saw(lookOne(t, s, task(uuid1))); got != "E1/1" {
		t.Fatalf("after the restart: %s", got)
	}
	if _, err := connect(t, pg.URL()).Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orphanwatch'"); err != nil {
		t.Fatal(err)
	}
	sandbox.AwaitTB(t, 5*time.Second, "a lookup after pg_terminate_backend", func() error {
		_, err := s.Look(t.Context(), []reconciler.Look{task(uuid1)})
		if err != nil && !errors.Is(err, reconciler.ErrUnreachable) {
			t.Fatalf("%v, want ErrUnreachable", err)
		}
		return err
	})
	s.Close()
	if _, err := s.Look(t.Context(), []reconciler.Look{task(uuid1)}); err == nil {
		t.Fatal("a closed store answers")
	}
}

// TestRecovery turns the server into a standby: nothing is concluded from it.
func TestRecovery(t *testing.T) {
	t.Parallel()
	pg := sandbox.NewPostgres(t)
	conn := connect(t, pg.URL())
	exec(t, conn, `CREATE TABLE t (id uuid PRIMARY KEY)`)
	var data string
	if err := conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&data); err != nil {
		t.Fatal(err)
	}
	s := open(t, pg.URL(), byKey("t"))
	lookOne(t, s, task(uuid1))
	if _, err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	signal := filepath.Join(data, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(signal, 0o666); err != nil { //nolint:gosec // the server runs as another user
		t.Fatal(err)
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, ask := range map[string]func() error{
		"Look":        func() error { _, err := s.Look(t.Context(), []reconciler.Look{task(uuid1)}); return err },
		"Running":     func() error { _, err := s.Running(t.Context()); return err },
		"EmptyTables": func() error { _, err := s.EmptyTables(t.Context()); return err },
		"EachID":      func() error { return s.EachID(t.Context(), 0, func(string) error { return nil }) },
		"Identity":    func() error { _, err := s.Identity(t.Context()); return err },
	} {
		var err error
		sandbox.AwaitTB(t, 10*time.Second, what+" on a standby", sandbox.Until(func() bool {
			err = ask()
			return !errors.Is(err, reconciler.ErrUnreachable)
		}))
		if !errors.Is(err, postgres.ErrRecovery) {
			t.Errorf("%s: %v, want ErrRecovery", what, err)
		}
	}
	findings, err := s.Check(t.Context())
	if err != nil || findings[0].OK || !findings[0].Fatal {
		t.Errorf("%+v, %v", findings, err)
	}
}
