package wiring

import (
	"context"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/httpapi"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// orderPatience is for how long a cleanup by HTTP waits for open transactions.
const orderPatience = 30 * time.Second

// NewServices is what the HTTP routes call.
func NewServices(o *Operator, pulse *watcher.Pulse) httpapi.Services {
	s := services{o, pulse}
	return httpapi.Services{Reader: s, Cleaner: s, Purger: o, Orders: s}
}

// services is the operator as the routes want it.
type services struct {
	*Operator
	pulse *watcher.Pulse
}

// Status is Inspect.
func (s services) Status(ctx context.Context) (any, error) { return s.Inspect(ctx), nil }

// Tasks is reconciler.TaskPage.
func (s services) Tasks(ctx context.Context, orphanedOnly bool, limit int, cursor string) (reconciler.TaskPage, error) {
	return s.Reconciler.TaskPage(ctx, orphanedOnly, limit, cursor)
}

// History is what the records say; [] for nothing.
func (s services) History(ctx context.Context, id string) (any, error) {
	entries, err := s.Celery.History(ctx, id)
	return append([]HistoryEntry{}, entries...), err
}

// CleanupOrphaned does not wait for ever.
func (s services) CleanupOrphaned(ctx context.Context, c reconciler.Cleanup) (reconciler.OrphanReport, error) {
	ctx, leave := s.enter(ctx)
	defer leave()
	c.Patience = orderPatience
	return s.Operator.CleanupOrphaned(ctx, c)
}

// FullCleanup takes policy.max_age_hours.
func (s services) FullCleanup(ctx context.Context, c reconciler.Cleanup) (reconciler.FullReport, error) {
	ctx, leave := s.enter(ctx)
	defer leave()
	c.Patience = orderPatience
	return s.Operator.FullCleanup(ctx, 0, c)
}

// enter watches over an order that other passes wait for.
func (s services) enter(ctx context.Context) (within context.Context, leave func()) {
	return s.pulse.Enter(ctx, "cleanup by HTTP", watcher.PassLimit)
}

// Restore puts back what was removed of one task.
func (s services) Restore(ctx context.Context, id string, hold time.Duration, dryRun bool) (any, error) {
	restore := func() ([]Restored, error) { return s.Celery.Restore(ctx, []string{id}, hold) }
	if dryRun {
		restore = func() ([]Restored, error) { return s.RestorePreview(ctx, id) }
	}
	all, err := restore()
	return NewRestoreReport(all, nil, dryRun), err
}

// Pause stops removals.
func (s services) Pause(ctx context.Context, by string) (any, error) {
	if err := s.Operator.Pause(ctx, by); err != nil {
		return nil, err
	}
	return s.Ordered(ctx)
}

// Resume lets them go on.
func (s services) Resume(ctx context.Context, acceptAbsent bool, _ string) (any, error) {
	resume := s.Operator.Resume
	if acceptAbsent {
		resume = func(ctx context.Context) error { return s.Accept(ctx, true) }
	}
	if err := resume(ctx); err != nil {
		return nil, err
	}
	return s.Ordered(ctx)
}

// initializeTick is how often the leader's state is looked at.
const initializeTick = 100 * time.Millisecond

// Initialize forgets connections that may lead to servers of before, asks the leader
// for a pass, and waits for the end of one that began after that.
func (s services) Initialize(ctx context.Context, wait time.Duration) (reconciler.InitializeReport, error) {
	before, err := s.leader(ctx) // its clock tells which pass is newer than this
	if err != nil {
		return reconciler.InitializeReport{}, err
	}
	s.Reconciler.Rows.Reset()
	if err := s.Celery.AskResync(ctx); err != nil {
		return reconciler.InitializeReport{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(initializeTick)
	defer tick.Stop()
	for {
		now, err := s.leader(ctx)
		switch {
		case ctx.Err() != nil:
			return reconciler.InitializeReport{}, nil
		case err != nil:
			return reconciler.InitializeReport{}, err
		case now.Pass.Stage == reconciler.StageDone && (now.Pass.Started.After(before.At) || now.Instance != before.Instance):
			return reconciler.InitializeReport{Resynced: true}, nil
		}
		select {
		case <-ctx.Done():
			return reconciler.InitializeReport{}, nil
		case <-tick.C:
		}
	}
}

// leader is the copy that leads, as it last told; zero for none.
func (s services) leader(ctx context.Context) (DaemonStatus, error) {
	daemons, err := s.Daemons(ctx)
	for _, d := range daemons {
		if d.Role == watcher.RoleLeader {
			return d, err
		}
	}
	return DaemonStatus{}, err
}
