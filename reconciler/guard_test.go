package reconciler

import (
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
