package main

import (
	"testing"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

func TestRestore(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.exec("INSERT INTO scan_tasks VALUES ('" + living + "'), ('" + doomed + "')")
	s.set(result+living, "1")
	s.set(result+doomed, "2")
	s.daemon()
	s.exec("DELETE FROM scan_tasks WHERE id = '" + doomed + "'")
	s.gone(result + doomed)

	s.expect(exitOK, []string{"history", doomed}, "task", "public.scan_tasks, key "+doomed, "1 results", "deleted: the delete was seen", "pg_delete", "can be restored  "+result+doomed)
	s.expect(exitError, []string{"history", living}, "nothing is remembered of it")
	var entries []wiring.HistoryEntry
	s.decode(exitOK, &entries, "history", doomed)
	if len(entries) != 1 || entries[0].ID != doomed {
		t.Errorf("%+v", entries)
	}

	s.expect(exitOK, []string{"restore", "--dry-run", doomed}, result+doomed, "1 would be restored")
	s.expect(exitOK, []string{"restore", "--dry-run", "--since", "10m"}, result+doomed, "1 would be restored")
	s.expect(exitError, []string{"restore", living}, living+": nothing is remembered of it", "0 restored")
	s.gone(result + doomed) // nothing has changed so far

	var report restoreReport
	s.decode(exitError, &report, "restore", living, doomed)
	if len(report.Restored) != 1 || report.Counts["restored"] != 1 || report.Restored[0].HoldUntil.IsZero() {
		t.Errorf("%+v", report)
	}
	if value, err := s.client.Get(t.Context(), result+doomed).Result(); err != nil || value != "2" {
		t.Errorf("restored %q, %v", value, err)
	}
	s.expect(exitOK, []string{"history", doomed}, "restored", "held until")
	s.expect(exitOK, []string{"restore", "--since", "10m"}, "0 restored")
}

func TestRestoreSince(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.expect(exitOK, []string{"restore", "--since", "10m"}, "nothing was removed in the last 10 min")
	s.exec("INSERT INTO scan_tasks VALUES ('" + living + "'), ('" + doomed + "')")
	s.set(result+living, "1")
	s.set(result+doomed, "2")
	s.daemon()
	s.exec("DELETE FROM scan_tasks")
	s.gone(result + doomed)
	s.gone(result + living)
	s.expect(exitOK, []string{"restore", "--since", "10m", "--hold", "30m"}, living, doomed, "2 restored", "restored")
	for id, want := range map[string]string{living: "1", doomed: "2"} {
		if value, err := s.client.Get(t.Context(), result+id).Result(); err != nil || value != want {
			t.Errorf("restored %s: %q, %v", id, value, err)
		}
	}
}
