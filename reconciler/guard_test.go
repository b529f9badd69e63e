package reconciler

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func newTestGuard() (*Guard, *time.Time) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return NewGuard(policy, nil, func() time.Time { return now }), &now
}

func TestGuardJudgesAPass(t *testing.T) {
	for _, c := range []struct {
		name string
		in   Tally
		ok   bool
	}{
		{"nothing orphaned", Tally{Seen: 100}, true},
		{"half is not more than half", Tally{Seen: 100, Orphans: 50}, true},
		{"more than half", Tally{Seen: 100, Orphans: 51}, false},
		{"too few to judge", Tally{Seen: 49, Orphans: 49}, true},
		{"just enough to judge", Tally{Seen: 50, Orphans: 50}, false},
		{"an empty table, few keys", Tally{Seen: 5, Orphans: 5, EmptyTables: []string{"public.scan_tasks"}}, false},
		{"an empty table and no key", Tally{EmptyTables: []string{"public.scan_tasks"}}, true},
		{"another database", Tally{Identity: "another"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _ := newTestGuard()
			ok, accepted := g.JudgePass(c.in)
			require.Equal(t, c.ok, ok)
			require.False(t, accepted)
			require.Equal(t, c.ok, g.Tripped() == nil)
		})
	}
}

func TestGuardStaysTrippedUntilAnOperatorActs(t *testing.T) {
	bad, good := Tally{Seen: 100, Orphans: 60}, Tally{Seen: 100, Orphans: 1}
	g, now := newTestGuard()
	ok, _ := g.JudgePass(bad)
	require.False(t, ok)
	since := g.Tripped().Since
	*now = now.Add(time.Hour)
	ok, _ = g.JudgePass(good)
	require.False(t, ok, "a better pass does not re-arm it")
	require.Equal(t, since, g.Tripped().Since)

	again := NewGuard(policy, g.Tripped(), func() time.Time { return *now })
	ok, _ = again.JudgePass(good)
	require.False(t, ok, "nor does a restart")

	again.Accept()
	ok, accepted := again.JudgePass(good)
	require.True(t, ok)
	require.True(t, accepted)
	require.Nil(t, again.Tripped())
}

func TestGuardAcceptsWhatWasReportedOnce(t *testing.T) {
	g, _ := newTestGuard()
	g.Accept()
	ok, _ := g.JudgePass(Tally{Seen: 100, Orphans: 60})
	require.False(t, ok, "accepting nothing accepts nothing")
	g.Accept()
	ok, _ = g.JudgePass(Tally{Seen: 1000, Orphans: 900})
	require.False(t, ok, "much more than was reported")
	g.Accept()
	ok, accepted := g.JudgePass(Tally{Seen: 1000, Orphans: 905})
	require.True(t, ok)
	require.True(t, accepted)
	require.Nil(t, g.Tripped())
	ok, _ = g.JudgePass(Tally{Seen: 1000, Orphans: 905})
	require.False(t, ok, "once")
}

// What was accepted in a term that ended before its pass lets nothing through that was
// reported later, when the same copy leads again.
func TestGuardForgetsAnAcceptanceWithItsTerm(t *testing.T) {
	g, now := newTestGuard()
	bad := Tally{Seen: 100, Orphans: 60}
	g.JudgePass(bad)
	g.Accept()
	g.Load(&Trip{Reason: "another report, of another leader", Since: *now, Seen: 80, Orphans: 50})
	ok, accepted := g.JudgePass(Tally{Seen: 80, Orphans: 50})
	require.False(t, ok)
	require.False(t, accepted)
}

func TestGuardWatchesEvents(t *testing.T) {
	g, now := newTestGuard()
	require.False(t, g.ObserveEvents(49, 49))
	*now = now.Add(9 * time.Minute)
	require.True(t, g.ObserveEvents(1, 1), "50 of 50 within ten minutes")

	g, now = newTestGuard()
	require.False(t, g.ObserveEvents(49, 49))
	*now = now.Add(11 * time.Minute)
	require.False(t, g.ObserveEvents(40, 40), "the others are too long ago")
	require.Nil(t, g.Tripped())
}

// Where nothing tells of new messages, all are looked at each second: those of living
// rows must not outweigh orphans, which are counted once.
func TestTheGuardCountsALivingMessageOnce(t *testing.T) {
	w := newWorld(t, named)
	for i := range 20 {
		w.put(fmt.Sprintf("messages t%d scan", i))
		w.rows[RowRef{0, fmt.Sprint("t", i)}] = true
	}
	for range 100 {
		w.lookAtMessages(false)
	}
	require.True(t, w.Guard.ObserveEvents(60, 60), "60 of 80 tasks look orphaned")
}

// A work that waits and comes back is one orphan for the guard, not many.
func TestTheGuardCountsAnOrphanOnce(t *testing.T) {
	w := newWorld(t, named)
	w.put("messages a scan")
	weak := &Work{Subject: TaskSubject("a").Messages(), Trigger: ByEvent, Messages: []*Message{w.broker[0].Bare()}}
	_, err := w.once(weak)
	require.NoError(t, err)
	w.clock = w.clock.Add(policy.Grace)
	w.says["pull"] = Changed // a worker is always faster
	for range 2 * policy.MinSample {
		verdicts, err := w.once(weak)
		require.NoError(t, err)
		require.Equal(t, HeldByChange, verdicts[0].HeldBy)
		require.Nil(t, w.Guard.Tripped(), "%+v", verdicts[0])
	}
}

// A guard that trips because living messages are long ago says so, too.
func TestATripByTimeIsLogged(t *testing.T) {
	w := newWorld(t, named)
	var log strings.Builder
	w.Reconciler.Log = slog.New(slog.NewTextHandler(&log, nil))
	require.False(t, w.Guard.ObserveEvents(60, 0))
	w.clock = w.clock.Add(guardWindow / 2)
	require.False(t, w.Guard.ObserveEvents(50, 50))
	w.clock = w.clock.Add(guardWindow * 3 / 5)
	w.put("messages a scan")
	w.rows[RowRef{0, "a"}] = true
	w.lookAtMessages(false)
	require.NotNil(t, w.Guard.Tripped())
	require.Contains(t, log.String(), "the guard has tripped")
}
