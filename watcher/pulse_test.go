package watcher

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// stalledLoops are the names of what hangs now.
func stalledLoops(p *Pulse) (names []string) {
	for _, s := range p.Stalled(time.Now()) {
		names = append(names, s.Loop)
	}
	return names
}

// A loop hangs when it has not moved for longer than its limit; while it rests, or when
// it has ended, it does not.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPulse()
		quick, leaveQuick := p.Enter(t.Context(), "quick", time.Minute)
		slow, leaveSlow := p.Enter(t.Context(), "slow", time.Hour)
		time.Sleep(time.Minute)
		require.Empty(t, stalledLoops(p))
		time.Sleep(time.Second)
		require.Equal(t, []Stall{{Loop: "quick", Seconds: 61}}, p.Stalled(time.Now()))
		alive, why := p.Alive()
		require.False(t, alive)
		require.Equal(t, "hangs: quick", why)

		inner, end := context.WithCancel(quick) // as what it calls has
		defer end()
		reconciler.Beat(inner)
		require.Empty(t, stalledLoops(p))
		resume := reconciler.Rest(inner)
		time.Sleep(59 * time.Minute)
		require.Equal(t, []string{"slow"}, stalledLoops(p), "quick rests")
		resume()
		time.Sleep(2 * time.Minute)
		require.Equal(t, []string{"quick", "slow"}, stalledLoops(p), "by name")
		reconciler.Beat(slow)
		leaveQuick()
		require.Empty(t, stalledLoops(p))
		leaveSlow()

		var nobody *Pulse
		ctx, leave := nobody.Enter(t.Context(), "unseen", 0)
		reconciler.Beat(ctx)
		reconciler.Rest(ctx)()
		leave()
		require.Empty(t, nobody.Stalled(time.Now()))
		alive, _ = nobody.Alive()
		require.True(t, alive)
	})
}

// lead is a whole term over a judge, with stores that are only as good as it.
type lead struct {
	*looker
	// judging is what a reconciliation takes, resyncing what a pass does.
	judging, resyncing func(ctx context.Context) error
	// away is what everything else answers.
	away error
	// release ends never.
	release chan struct{}
}

func (l *lead) never(context.Context) error {
	<-l.release
	return nil
}

func (l *lead) Reconcile(ctx context.Context, _ reconciler.Term, works []*reconciler.Work) ([]reconciler.Verdict, error) {
	err := l.judging(ctx)
	verdicts := make([]reconciler.Verdict, len(works))
	for i := range verdicts {
		verdicts[i] = reconciler.Verdict{Decision: reconciler.Decision{Outcome: reconciler.OutcomeNoop}, Err: err}
		if err != nil {
			verdicts[i].Outcome, verdicts[i].After = reconciler.OutcomeError, time.Second
		}
	}
	return verdicts, nil
}

func (l *lead) Resync(ctx context.Context, _ reconciler.Term, _ string, _ bool, _ func(context.Context, []reconciler.Suspect) error) (bool, error) {
	return false, l.resyncing(ctx)
}

func (l *lead) Acquire(context.Context, func(string)) (Session, error) { return l, nil }
func (l *lead) ClaimEpoch(context.Context) (uint64, error)             { return 1, nil }
func (l *lead) Orders(context.Context) (string, error)                 { return "", l.away }
func (l *lead) Publish(context.Context, Status) error                  { return l.away }
func (l *lead) Quiesce()                                               {}
func (l *lead) Position() reconciler.LSN                               { return 0 }
func (l *lead) Run(ctx context.Context, _ Sink) error                  { <-ctx.Done(); return nil }

// subscribed is a source in which nothing happens.
type subscribed struct{}

func (subscribed) Run(ctx context.Context, _ Sink, ready func()) error {
	ready()
	<-ctx.Done()
	return nil
}

// leading runs a controller until f has looked at it.
func leading(t *testing.T, l *lead, f func(c *Controller)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l.looker, l.release = &looker{began: time.Now()}, make(chan struct{})
		if l.away != nil {
			l.fails = 1 << 30
		}
		c, err := New(Options{
			Leadership: l, Keyspace: subscribed{}, Broker: subscribed{}, Queues: l, Judge: l, Desk: l, Pulse: NewPulse(),
			FindQueues: func(context.Context) error { return l.away }, Remember: func(reconciler.Subject) {},
			Log: slog.New(slog.DiscardHandler), QueueLimit: 10, Workers: 2, ResyncInterval: 5 * time.Minute, DrainTimeout: time.Second,
		})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		f(c)
		cancel()
		require.NoError(t, <-done)
	})
}

// offer gives a task to a worker.
func (c *Controller) offer(t *testing.T) {
	t.Helper()
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	require.True(t, c.state.queue.Offer(hint("a")))
}

func fine(context.Context) error { return nil }

// Hours without work, and hours of an outage in which every call takes as long as its
// timeouts permit, are no reason to restart anything.
func TestAnOutageIsNoHang(t *testing.T) {
	// takes 47 s, the longest call, and then beats, as the client's hook does.
	timesOut := func(ctx context.Context) error {
		time.Sleep(47 * time.Second)
		reconciler.Beat(ctx)
		return errAway
	}
	for name, l := range map[string]*lead{
		"at rest":     {judging: fine, resyncing: fine},
		"stores away": {judging: timesOut, resyncing: timesOut, away: errAway},
		"a long pass": {judging: fine, resyncing: func(ctx context.Context) error {
			for range 10_000 { // pages
				time.Sleep(time.Second)
				reconciler.Beat(ctx)
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			leading(t, l, func(c *Controller) {
				c.offer(t)
				for range 3 * 60 {
					time.Sleep(time.Minute)
					require.Empty(t, stalledLoops(c.Pulse))
				}
				require.Equal(t, RoleLeader, c.Status().Role, "the term goes on")
			})
		})
	}
}

// A call that never returns, whatever its context says, is found by the limit of its
// loop, and named, also to whoever asks for the status.
func TestAHangIsFound(t *testing.T) {
	for name, test := range map[string]struct {
		hang  func(l *lead)
		loop  string
		limit time.Duration
	}{
		"in a worker": {func(l *lead) { l.judging = l.never }, "worker ", callLimit},
		"in a pass":   {func(l *lead) { l.resyncing = l.never }, "resync", PassLimit},
	} {
		t.Run(name, func(t *testing.T) {
			l := &lead{judging: fine, resyncing: fine}
			test.hang(l)
			leading(t, l, func(c *Controller) {
				c.offer(t)
				time.Sleep(test.limit)
				require.Empty(t, c.Status().Stalled)
				time.Sleep(time.Second)
				stalled := c.Status().Stalled
				require.Len(t, stalled, 1, "the others move")
				require.Contains(t, stalled[0].Loop, test.loop)
				close(l.release)
				synctest.Wait()
				require.Empty(t, c.Status().Stalled)
			})
		})
	}
}
