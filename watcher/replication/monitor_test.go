package replication

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestJudge: idle, late, slow, stuck and lost look different.
func TestJudge(t *testing.T) {
	start := time.Now()
	at := func(d time.Duration) time.Time { return start.Add(d) }
	fresh := func() (*monitor, *sink) {
		q := newSink()
		m := &monitor{Session: &Session{opts: Options{CanaryEvery: 10 * time.Second}}, sink: q, progressAt: start}
		m.health.Connected = true
		m.sentAt, m.sentID, m.sentLSN = start, 7, 100
		return m, q
	}

	m, _ := fresh()
	m.canary.Store(7)
	m.position.Store(100)
	require.NoError(t, m.judge(at(time.Second)))
	require.True(t, m.sentAt.IsZero(), "it came back")

	m, q := fresh()
	m.Session.received.Add(1)
	require.NoError(t, m.judge(at(14*time.Second)))
	require.True(t, m.health.Connected)
	m.Session.received.Add(1)
	require.NoError(t, m.judge(at(16*time.Second)), "late, but the stream brings something")
	require.False(t, m.health.Connected)
	require.Contains(t, q.last().Err, "canary not back")
	m.canary.Store(7)
	require.NoError(t, m.judge(at(17*time.Second)))
	require.True(t, q.last().Connected)

	m, _ = fresh()
	require.ErrorIs(t, m.judge(at(silence+time.Second)), errSilent)

	m, _ = fresh()
	m.blocked.Store(true)
	require.NoError(t, m.judge(at(time.Hour)), "behind a full queue nothing is read")
	require.True(t, m.health.Connected)

	m, _ = fresh()
	m.position.Store(101)
	require.ErrorIs(t, m.judge(at(time.Second)), errCanaryLost)
}

// TestBudgetSteps: release first, drop only behind a full queue that does not shrink.
func TestBudgetSteps(t *testing.T) {
	m := &monitor{Session: &Session{opts: Options{MaxWAL: 100}, log: New(Options{}).log}, sink: newSink()}
	m.net, m.wakeups = devNull{}, make(chan struct{}, 1)
	step := func(backlog, safe int64, blocked bool) int32 {
		m.blocked.Store(blocked)
		m.judgeBudget(t.Context(), slotState{backlog: backlog, safe: safe})
		return m.budget.Load()
	}
	require.Equal(t, withinBudget, step(100, -1, true))
	require.Equal(t, releaseWAL, step(500, -1, true))
	require.Equal(t, releaseWAL, step(400, -1, true), "it shrinks")
	require.Equal(t, releaseWAL, step(450, -1, false), "the queue takes")
	require.Equal(t, dropDeletes, step(450, -1, true))
	require.Equal(t, dropDeletes, step(200, -1, false), "until within the budget")
	require.Equal(t, withinBudget, step(100, -1, false))
	require.Equal(t, releaseWAL, step(60, 100, false), "half of what is safe")
	require.Equal(t, releaseWAL, step(1, 0, false))
	m.opts.MaxWAL = 0
	require.Equal(t, withinBudget, step(10, 100, false))
}
