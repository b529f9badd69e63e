package main

import (
	"strings"
	"testing"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

func TestSetupTeardown(t *testing.T) {
	s := newOwner(t, sandbox.NewExampleDatabase(t))
	out := s.expect(exitOK, []string{"setup", "--dry-run"}, "this would be run:")
	for _, sql := range []string{"CREATE PUBLICATION", "SELECT pg_create_logical_replication_slot("} {
		if !strings.Contains(out, sql) {
			t.Errorf("%q is missing in stdout:\n%s", sql, out)
		}
	}
	s.expect(exitOK, []string{"status"}, "does not exist; run makes it")
	s.expect(exitOK, []string{"setup"}, "done:", "CREATE PUBLICATION")
	s.expect(exitOK, []string{"setup"}, "nothing to do")
	s.expect(exitOK, []string{"status"}, "read by nobody")

	if out := s.expect(exitOK, []string{"teardown", "--dry-run"}, "this would be run:"); !strings.Contains(out, "DROP PUBLICATION IF EXISTS") {
		t.Errorf("stdout: %s", out)
	}
	s.expect(exitNotAllowed, []string{"teardown"}, "not confirmed: give --yes")
	s.expect(exitOK, []string{"status"}, "read by nobody")
	var report statementsReport
	s.decode(exitOK, &report, "teardown", "--yes")
	if len(report.Statements) != 2 || report.DryRun {
		t.Errorf("%+v", report)
	}
	s.expect(exitOK, []string{"status"}, "does not exist; run makes it")
	s.expect(exitOK, []string{"teardown", "--yes"})
}

func TestTeardownWhileRead(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.daemon()
	s.expect(exitNotAllowed, []string{"teardown", "--yes"}, "is in use by pid", "fix: stop orphanwatch first, every copy of it")
	s.expect(exitOK, []string{"status"}, "read by pid")
}

func TestSetupRefuses(t *testing.T) {
	s := newOwner(t, sandbox.NewExampleDatabase(t))
	s.exec("ALTER TABLE scan_tasks REPLICA IDENTITY NOTHING")
	s.expect(exitError, []string{"setup", "--dry-run"}, "has no replica identity", "fix: ALTER TABLE")
	s.expect(exitError, []string{"setup"}, "has no replica identity", "fix: ALTER TABLE scan_tasks REPLICA IDENTITY DEFAULT;")
	s.expect(exitFindings, []string{"doctor"}, "has no replica identity", "fix: ALTER TABLE scan_tasks REPLICA IDENTITY DEFAULT;")
}
