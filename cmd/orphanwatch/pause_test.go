package main

import (
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

func TestPauseResumeWithoutDaemon(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.expect(exitOK, []string{"pause", "--dry-run"}, "removals would be paused")
	s.expect(exitOK, []string{"resume", "--dry-run"}, "removals were not paused", "nothing was changed")
	if n, err := s.client.Exists(t.Context(), "orphanwatch:control").Result(); err != nil || n != 0 {
		t.Errorf("--dry-run has written: %d, %v", n, err)
	}
	s.expect(exitOK, []string{"pause"}, "removals are paused, by ", "no daemon leads now; one that starts finds removals paused")
	s.expect(exitOK, []string{"pause"}, "removals are paused already, since ")
	var order wiring.OrderReport
	s.decode(exitOK, &order, "pause")
	if !order.Paused || order.Since.IsZero() || order.Leader != "" {
		t.Errorf("%+v", order)
	}
	s.expect(exitOK, []string{"status"}, "Paused      removals are paused since")
	s.expect(exitOK, []string{"resume"}, "removals go on; they were paused since", "the order waits in Redis until one does")
	s.expect(exitOK, []string{"resume", "--accept-absent"}, "the guard has not tripped: there is nothing to accept")
	if s.client.HExists(t.Context(), "orphanwatch:control", "accept").Val() {
		t.Error("an acceptance of nothing was written: it would accept what comes later")
	}
}

// An empty table trips the guard; status, resume and resume --accept-absent say
// and do what they should, also out of a pause.
func TestResumeAcceptAbsent(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	for _, id := range []string{living, doomed} {
		s.set(result+id, "{}")
	}
	s.daemon()
	tripped := func() bool {
		code, out, _ := s.run("status")
		return code == exitOK && contains(out, "tripped since", "table public.scan_tasks is empty", "2 of 2 tasks look orphaned", "orphanwatch resume --accept-absent", "2 of public.scan_tasks held: the guard")
	}
	sandbox.AwaitTB(t, 10*time.Second, "the guard to trip", sandbox.Until(tripped))
	s.expect(exitOK, []string{"resume"}, "the guard has tripped", "stays tripped")
	sandbox.AwaitTB(t, 10*time.Second, "the guard to trip again", sandbox.Until(tripped))

	s.expect(exitOK, []string{"pause"})
	s.expect(exitOK, []string{"resume", "--accept-absent", "--dry-run"}, "table public.scan_tasks is empty", "it holds 2 orphans of 2 tasks", "nothing was changed")
	if n := s.client.Exists(t.Context(), result+living, result+doomed).Val(); n != 2 {
		t.Errorf("%d of 2 results are left", n)
	}
	var order wiring.OrderReport
	s.decode(exitOK, &order, "resume", "--accept-absent")
	if order.Guard == nil || !order.Accepted || order.Leader == "" || order.Paused {
		t.Errorf("%+v", order)
	}
	s.gone(result + living)
	s.gone(result + doomed)
	sandbox.AwaitTB(t, 10*time.Second, "the guard to be armed", sandbox.Until(func() bool {
		_, out, _ := s.run("status")
		return contains(out, "Guard       armed")
	}))
}
