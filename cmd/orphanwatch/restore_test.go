package main

import (
	"errors"
	"fmt"
	"testing"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
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

	var report wiring.RestoreReport
	s.decode(exitError, &report, "restore", living, doomed)
	if len(report.Restored) != 1 || report.Keys["restored"] != 1 || report.Restored[0].HoldUntil.IsZero() {
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

const waiting = `{"body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json", ` +
	`"headers": {"lang": "py", "task": "other_task", "id": "%s"}, "properties": {"delivery_info": {"exchange": "", "routing_key": "celery"}, ` +
	`"priority": 3, "body_encoding": "base64", "delivery_tag": "tag-%[1]s"}}`

// TestRestoreQueue: what a purge took comes back by its queue, or by --since.
func TestRestoreQueue(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	ctx := t.Context()
	config, err := wiring.Load(wiring.LoadOptions{Environ: s.environ})
	if err != nil {
		t.Fatal(err)
	}
	stores, err := wiring.OpenStores(config, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stores.Close() })
	const list = "celery\x06\x163"
	want := []any{fmt.Sprintf(waiting, "b"), "{no message", fmt.Sprintf(waiting, "a")}
	purge := func() {
		t.Helper()
		if err := errors.Join(s.client.Del(ctx, list).Err(), s.client.RPush(ctx, list, want...).Err()); err != nil {
			t.Fatal(err)
		}
		if _, err := stores.Broker.DrainQueues(ctx, reconciler.QueueDrain{Trigger: reconciler.ByCLI}); err != nil {
			t.Fatal(err)
		}
		s.gone(list)
	}
	whole := func() {
		t.Helper()
		if got := s.client.LRange(ctx, list, 0, -1).Val(); len(got) != 2 || got[0] != want[0] || got[1] != want[2] {
			t.Errorf("%q", got)
		}
	}
	s.expect(exitError, []string{"restore", "--queue", "celery"}, "celery: nothing that was purged of it is kept", "0 restored")
	purge()
	s.expect(exitError, []string{"restore", "--queue", "clery"}, "there is something of: celery")
	s.expect(exitOK, []string{"restore", "--queue", "celery", "--dry-run"}, `from celery\x06\x163`, "3 messages would be restored")
	s.expect(exitOK, []string{"restore", "--since", "10m", "--dry-run"}, "3 messages would be restored")
	s.gone(list)
	s.expect(exitOK, []string{"restore", "--queue", "celery", "--since", "10m"}, "2 messages restored, 1 incomplete", "2 restored", "1 are no complete messages")
	whole()
	s.expect(exitOK, []string{"restore", "--queue", "celery"}, "0 messages restored, 1 incomplete")
	whole()

	purge()
	var report wiring.RestoreReport
	s.decode(exitOK, &report, "restore", "--since", "10m")
	if len(report.Queues) != 2 || report.Keys["restored"] != 2 || report.Keys["incomplete"] != 2 || report.Queues[0].List != list {
		t.Errorf("%+v", report)
	}
	whole()
}
