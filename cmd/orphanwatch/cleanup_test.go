package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// tasks is a site with a living row and one that is not there, a result of each.
func newTasks(t *testing.T) *site {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.exec("INSERT INTO scan_tasks VALUES ('" + living + "')")
	s.set(result+living, `{"status": "SUCCESS"}`)
	s.set(result+doomed, `{"status": "SUCCESS"}`)
	return s
}

func (s *site) there(keys ...string) {
	s.tb.Helper()
	for _, key := range keys {
		if n, err := s.client.Exists(s.tb.Context(), key).Result(); n == 0 || err != nil {
			s.tb.Errorf("%s is gone (%v)", key, err)
		}
	}
}

func (s *site) connect() *pgx.Conn {
	s.tb.Helper()
	conn, err := pgx.Connect(s.tb.Context(), s.database)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(func() { conn.Close(context.WithoutCancel(s.tb.Context())) })
	return conn
}

func TestTasks(t *testing.T) {
	s := newTasks(t)
	s.set(result+"other", `{"status": "STARTED", "name": "mail"}`)
	s.expect(exitOK, []string{"tasks"}, "TASK ID", living, "the row exists", doomed, "orphaned", "no such row", "foreign", "mail", "3 in all")
	out := s.expect(exitOK, []string{"tasks", "--orphaned"}, doomed, "1 orphaned")
	if strings.Contains(out, living) {
		t.Errorf("a living one among the orphans:\n%s", out)
	}
	s.expect(exitOrphans, []string{"tasks", "--orphaned", "--exit-code"}, doomed)
	var page reconciler.TaskPage
	s.decode(exitOK, &page, "tasks", "--orphaned")
	if len(page.Tasks) != 1 || page.Count != 1 || page.Tasks[0].ID != doomed || page.Tasks[0].Status != "SUCCESS" || page.Tasks[0].Table != "public.scan_tasks" {
		t.Errorf("%+v", page)
	}
	s.client.Del(t.Context(), result+doomed)
	s.decode(exitOK, &page, "tasks", "--orphaned", "--exit-code")
	if page.Tasks == nil || page.Count != 0 {
		t.Errorf("%+v", page)
	}
}

func TestCheck(t *testing.T) {
	s := newTasks(t)
	s.expect(exitOK, []string{"check", living}, "the row exists")
	s.expect(exitOrphans, []string{"check", doomed}, "no such row")
	s.expect(exitUnreachable, []string{"check", "not-a-uuid"}, "nothing tells which row")
	var report reconciler.CheckReport
	s.decode(exitOrphans, &report, "check", doomed)
	if report.Exists == nil || *report.Exists || report.Evidence != reconciler.Absent {
		t.Errorf("%+v", report)
	}
	s.daemon()
	s.exec("DELETE FROM scan_tasks WHERE id = '" + living + "'")
	s.gone(result + living)
	s.expect(exitOrphans, []string{"check", living}, "the row was deleted")

	arguments := s.with("ORPHANWATCH_MATCH=args:0", "ORPHANWATCH_NAMES=scan")
	s.exec("INSERT INTO scan_tasks VALUES ('" + living + "')")
	arguments.expect(exitUnreachable, []string{"check", "a"}, "give the row's key")
	arguments.expect(exitOK, []string{"check", "a", "--key", living})
	arguments.expect(exitOrphans, []string{"check", "a", "--key", doomed, "--table", "public.scan_tasks"})
	arguments.expect(exitUnreachable, []string{"check", "a", "--key", doomed, "--table", "none"}, "no binding")
	s.with("DATABASE_URL=postgres://nobody@127.0.0.1:1/none").expect(exitUnreachable, []string{"check", living})
}

func TestCleanupOrphaned(t *testing.T) {
	s := newTasks(t)
	s.expect(exitNotAllowed, []string{"cleanup-orphaned"}, "--yes")
	s.expect(exitOK, []string{"cleanup-orphaned", "--dry-run"}, doomed, "1 orphaned would be removed")
	s.there(result+doomed, result+living)

	s.expect(exitOK, []string{"pause"})
	s.expect(exitNotAllowed, []string{"cleanup-orphaned", "--yes"}, "paused since", "orphanwatch resume")
	s.expect(exitOK, []string{"cleanup-orphaned", "--dry-run"}, doomed)
	s.expect(exitOK, []string{"resume"})

	var report reconciler.OrphanReport
	s.decode(exitOK, &report, "cleanup-orphaned", "--yes")
	if report.Cleaned != 1 || len(report.Tasks) != 1 || report.Tasks[0].ID != doomed || report.Removed["results"] != 1 || report.DryRun {
		t.Errorf("%+v", report)
	}
	s.gone(result + doomed)
	s.there(result + living)
	s.expect(exitOK, []string{"history", doomed}, "cli", "absent")
	s.expect(exitOK, []string{"restore", doomed}, "1 restored")
	s.decode(exitOK, &report, "cleanup-orphaned", "--yes")
	if report.Cleaned != 0 || report.Held[reconciler.HeldByRestore] != 1 {
		t.Errorf("what was restored is held: %+v", report)
	}
}

// An explicit cleanup acts whatever policy.remove says, and beside a daemon.
func TestCleanupBesideADaemon(t *testing.T) {
	s := newTasks(t).with("ORPHANWATCH_POLICY_REMOVE=none")
	s.daemon()
	s.expect(exitOK, []string{"cleanup-orphaned", "--yes"}, "1 orphaned removed: 1 results")
	s.gone(result + doomed)
	s.there(result + living)
	var r wiring.Report
	s.decode(exitOK, &r, "status")
	if l := r.Leader(); l == nil || l.Failing != "" {
		t.Errorf("the daemon was disturbed: %+v", r.Daemons)
	}
}

func TestCleanupHeldByTheGuard(t *testing.T) {
	s := newTasks(t)
	s.exec("DELETE FROM scan_tasks")
	s.expect(exitNotAllowed, []string{"cleanup-orphaned", "--dry-run"}, "scan_tasks is empty")
	s.expect(exitNotAllowed, []string{"cleanup-orphaned", "--yes"}, "scan_tasks is empty", "--force")
	s.there(result+living, result+doomed)

	// Another database is never forced.
	s.client.HSet(t.Context(), "orphanwatch:control", "identity", "another")
	s.expect(exitNotAllowed, []string{"cleanup-orphaned", "--yes", "--force"}, "not the database of the first start")
	s.there(result+living, result+doomed)

	s.client.HDel(t.Context(), "orphanwatch:control", "identity")
	s.expect(exitOK, []string{"cleanup-orphaned", "--yes", "--force"}, "2 orphaned removed")
	s.gone(result + living)
}

// A row whose insert is not committed yet is the common case, not an orphan.
func TestCleanupWaitsForTransactions(t *testing.T) {
	s := newTasks(t)
	conn, watch := s.connect(), s.connect()
	tx, err := conn.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "INSERT INTO scan_tasks VALUES ($1)", doomed)
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 1)
	go func() {
		code, out, text := s.run("cleanup-orphaned", "--yes", "-o", "json")
		done <- fmt.Sprint(code, " ", out, text)
	}()
	// It has looked at the key when it waits for the transaction.
	sandbox.AwaitTB(t, 10*time.Second, "the cleanup to wait", func() error {
		var n int
		err := watch.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'orphanwatch' AND query LIKE '%pg_prepared_xacts%'").Scan(&n)
		if err == nil && n == 0 {
			err = fmt.Errorf("it does not look yet")
		}
		return err
	})
	select {
	case text := <-done:
		t.Fatalf("it did not wait: %s", text)
	case <-time.After(300 * time.Millisecond):
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	text := <-done
	var report reconciler.OrphanReport
	if err := json.Unmarshal([]byte(strings.TrimPrefix(text, "0 ")), &report); err != nil || report.Cleaned != 0 {
		t.Errorf("%v: %s", err, text)
	}
	s.there(result + doomed)
}
