package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/postgres"
)

func running(t testing.TB, s *postgres.Store) reconciler.Running {
	t.Helper()
	r, err := s.Running(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFence takes a fence around transactions of every kind; each holds it until
// it has ended. The role is the one that the documentation asks for.
func TestFence(t *testing.T) {
	t.Parallel()
	url, admin := database(t, `CREATE TABLE t (id uuid PRIMARY KEY)`)
	s := open(t, plainRole(t, admin, url, "GRANT SELECT ON t TO %s"), byKey("t"))
	otherURL, _ := database(t)

	noXID, wrote, toPrepare, elsewhere, idle := connect(t, url), connect(t, url), connect(t, url), connect(t, otherURL), connect(t, url)
	exec(t, idle, `SELECT 1`)
	exec(t, noXID, `SET application_name = 'reader'`, `BEGIN`)
	exec(t, wrote, `BEGIN`, `INSERT INTO t VALUES ('`+uuid1+`')`)
	exec(t, toPrepare, `BEGIN`, `INSERT INTO t VALUES ('`+uuid2+`')`)
	exec(t, elsewhere, `BEGIN`)

	first := running(t, s)
	fence := reconciler.NewFence(time.Now(), first)
	if len(first.Virtual) != 3 || len(first.Prepared) != 0 || first.At == 0 {
		t.Fatalf("%+v, want the three of this database", first)
	}
	names := ""
	for _, tr := range first.Virtual {
		names += tr.String() + "; "
		if tr.PID == 0 {
			t.Errorf("%+v has no pid", tr)
		}
	}
	if !strings.Contains(names, "reader") {
		t.Errorf("%s: a transaction is not named", names)
	}

	exec(t, toPrepare, `PREPARE TRANSACTION 'two phases'`)
	t.Cleanup(func() { _, _ = admin.Exec(context.Background(), `ROLLBACK PREPARED 'two phases'`) })
	exec(t, elsewhere, `COMMIT`)
	late := connect(t, url)
	exec(t, late, `BEGIN`)
	for _, step := range []struct {
		sql  string
		left int
	}{{``, 2}, {`COMMIT`, 1}} {
		if step.sql != "" {
			exec(t, wrote, step.sql)
		}
		fence.Observe(running(t, s))
		if fence.Ended() || len(fence.Waiting()) != step.left {
			t.Fatalf("waits for %v, want %d", fence.Waiting(), step.left)
		}
	}
	// The one that had no xid when the fence was taken writes after all.
	exec(t, noXID, `INSERT INTO t VALUES (gen_random_uuid())`)
	if fence.Observe(running(t, s)); fence.Ended() {
		t.Fatal("a transaction without an xid does not hold the fence")
	}
	exec(t, noXID, `COMMIT`)
	fence.Observe(running(t, s))
	if w := fence.Waiting(); fence.Ended() || len(w) != 1 || !strings.Contains(w[0].ID, "two phases") || w[0].Since.IsZero() {
		t.Fatalf("waits for %v, want the prepared one", w)
	}
	exec(t, admin, `COMMIT PREPARED 'two phases'`)
	if fence.Observe(running(t, s)); !fence.Ended() {
		t.Fatalf("waits for %v, want nothing: what began later does not count", fence.Waiting())
	}
}

// TestRunningOfOurOwn: another lookup of ours, however long, holds nothing; the
// same name under another role does.
func TestRunningOfOurOwn(t *testing.T) {
	t.Parallel()
	url, admin := database(t, `CREATE TABLE t (id uuid PRIMARY KEY)`, `INSERT INTO t SELECT gen_random_uuid() FROM generate_series(1, 5)`)
	s := open(t, plainRole(t, admin, url, "GRANT SELECT ON t TO %s"), byKey("t"))
	seen := 0
	err := s.EachID(t.Context(), 0, func(string) error {
		if seen++; seen == 1 {
			// A backend that another test is just starting counts, too, but not for long.
			sandbox.AwaitTB(t, 10*time.Second, "nothing but our own pass", func() error {
				if r := running(t, s); len(r.Virtual) != 0 {
					return fmt.Errorf("it counts: %v", r.Virtual)
				}
				return nil
			})
		}
		return nil
	})
	if err != nil || seen != 5 {
		t.Fatalf("%d, %v", seen, err)
	}
	exec(t, admin, `SET application_name = 'orphanwatch'`, `BEGIN`)
	if r := running(t, s); len(r.Virtual) != 1 {
		t.Errorf("another role's transaction under our name: %v", r.Virtual)
	}
	exec(t, admin, `COMMIT`)
}

// TestRunningWritesTheFence: the position moves past At though nobody else writes.
func TestRunningWritesTheFence(t *testing.T) {
	t.Parallel()
	pg := sandbox.NewPostgres(t)
	conn := connect(t, pg.URL())
	exec(t, conn, `CREATE TABLE t (id uuid PRIMARY KEY)`, `SELECT pg_create_logical_replication_slot('s', 'pgoutput')`, `CREATE PUBLICATION p`)
	at := running(t, open(t, pg.URL(), byKey("t"))).At
	var past bool
	sandbox.AwaitTB(t, 5*time.Second, "the message in the log", sandbox.Until(func() bool {
		err := conn.QueryRow(t.Context(), `SELECT count(*) > 0 FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL,
			'proto_version', '1', 'publication_names', 'p', 'messages', 'true') WHERE lsn > $1::pg_lsn AND position('fence'::bytea IN data) > 0`, at.String()).Scan(&past)
		return err == nil && past
	}))
}
