package wiring

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// manager is what systemd would hear, each with the time since the start.
type manager struct {
	*Notifier
	state watcher.Status
	why   string        // not ready, and why; "" for ready
	stops time.Duration // for how long everything stands still, once
	heard []string
	log   bytes.Buffer
	turn  sync.Mutex // what the test does happens before the notifier's next look
}

// Write is the log's.
func (m *manager) Write(p []byte) (int, error) {
	m.turn.Lock()
	defer m.turn.Unlock()
	return m.log.Write(p)
}

// notified runs a notifier, in a bubble, until f has ended.
func notified(t *testing.T, watchdog time.Duration, f func(t *testing.T, m *manager)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		m := &manager{why: "the replication slot is not held yet", state: watcher.Status{Role: watcher.RoleStarting}}
		m.Notifier = &Notifier{
			ready: func() (bool, string) { return m.why == "", m.why },
			status: func() watcher.Status {
				m.turn.Lock()
				m.turn.Unlock() //nolint:staticcheck // its order is all that it is for
				stops := m.stops
				m.stops = 0
				time.Sleep(stops)
				return m.state
			},
			pulse: watcher.NewPulse(), watchdog: watchdog, log: slog.New(slog.NewTextHandler(m, nil)),
			notify: func(state string) error {
				m.heard = append(m.heard, fmt.Sprint(time.Since(began), " ", state))
				return nil
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		f(t, m)
		cancel()
		require.NoError(t, <-done)
	})
}

// take is what was heard since the last take. Whatever was changed is first looked at.
func (m *manager) take(after time.Duration) (heard []string) {
	m.turn.Lock()
	m.turn.Unlock() //nolint:staticcheck // as above
	time.Sleep(after)
	synctest.Wait()
	heard, m.heard = m.heard, nil
	return heard
}

// Ready is said once, with the first time that /readyz would; the status when it
// changes, in one line; stopping at the end.
func TestSystemdIsToldTheState(t *testing.T) {
	var last *manager
	notified(t, 0, func(t *testing.T, m *manager) {
		last = m
		require.Equal(t, []string{"0s STATUS=starting, not ready: the replication slot is not held yet"}, m.take(0))
		require.Empty(t, m.take(5*time.Second+notifyEvery/2), "nothing has changed")
		m.why, m.state = "", watcher.Status{Role: watcher.RoleLeader, Epoch: 3}
		require.Equal(t, []string{"6s STATUS=leader, epoch 3", "6s READY=1"}, m.take(time.Second))
		m.state.Queue.Pending, m.state.Oldest, m.state.Failing = 2, 4.4, "redis: away\nREADY=1"
		require.Equal(t, []string{"7s STATUS=leader, epoch 3; 2 pending, the oldest for 4 s; failing: redis: away READY=1"}, m.take(time.Second))
		m.why = "redis is not subscribed: " + strings.Repeat("ä", maxStatus)
		line := m.take(time.Second)[0]
		require.Contains(t, line, "STATUS=leader, not ready: redis is not subscribed: ä")
		require.LessOrEqual(t, len(line), len("8s STATUS=")+maxStatus)
		m.why, m.state = "", watcher.Status{Role: watcher.RoleLeader, Epoch: 3}
		require.Equal(t, []string{"9s STATUS=leader, epoch 3"}, m.take(time.Second), "ready is not said again")
	})
	require.Len(t, last.heard, 1)
	require.Contains(t, last.heard[0], "STOPPING=1\nSTATUS=stopping")
}

// A store that is away does not let the start fail.
func TestSystemdDoesNotWaitForAStoreForEver(t *testing.T) {
	notified(t, 0, func(t *testing.T, m *manager) {
		require.Len(t, m.take(readyPatience-time.Second/2), 1, "the status")
		require.Equal(t, []string{readyPatience.String() + " READY=1"}, m.take(time.Second))
		require.Empty(t, m.take(time.Hour))
	})
}

// The watchdog is fed at half of its time as long as all loops move, and no longer
// when one hangs: that is logged once, with its name.
func TestTheWatchdogIsFedByProgress(t *testing.T) {
	const watchdog = 30 * time.Second
	notified(t, watchdog, func(t *testing.T, m *manager) {
		beats := func(after time.Duration) (n int) {
			for _, h := range m.take(after) {
				if strings.HasSuffix(h, " WATCHDOG=1") {
					n++
				}
			}
			return n
		}
		require.Equal(t, 1, beats(0), "at once")
		require.Equal(t, 60, beats(60*watchdog/2))
		ctx, leave := m.pulse.Enter(t.Context(), "a loop", time.Minute)
		defer leave()
		require.Positive(t, beats(time.Minute))
		require.Empty(t, m.log.String())
		require.Zero(t, beats(time.Hour))
		require.Equal(t, 1, strings.Count(m.log.String(), "\n"))
		require.Contains(t, m.log.String(), "level=ERROR")
		require.Contains(t, m.log.String(), `loops="a loop" seconds=61`)
		require.Contains(t, m.said.status, "hangs: a loop")
		reconciler.Beat(ctx)
		require.Equal(t, 1, beats(notifyEvery), "it moves again")
		require.NotContains(t, m.said.status, "hangs")
	})
	notified(t, 0, func(t *testing.T, m *manager) {
		for _, h := range m.take(time.Hour) {
			require.NotContains(t, h, "WATCHDOG=1", "there is none")
		}
	})
}

// A process that was stopped as a whole, and goes on, has no loop that hangs; one that
// does not move then is found like any other.
func TestAProcessThatWasStoppedDoesNotHang(t *testing.T) {
	notified(t, 0, func(t *testing.T, m *manager) {
		_, leave := m.pulse.Enter(t.Context(), "a loop", time.Minute)
		defer leave()
		resting, leaveResting := m.pulse.Enter(t.Context(), "a resting loop", time.Minute)
		defer leaveResting()
		defer reconciler.Rest(resting)()
		m.stops = 3 * time.Minute
		m.take(3*time.Minute + 10*notifyEvery)
		require.Contains(t, m.log.String(), `msg="the process stood still: it was stopped, or had no CPU" seconds=18`)
		require.NotContains(t, m.log.String(), "hangs")
		m.take(time.Minute)
		require.Contains(t, m.log.String(), `loops="a loop" seconds=6`)
	})
}
