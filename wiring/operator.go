package wiring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/postgres"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// Operator does what operators ask for, for the command line and the API alike,
// whether a daemon leads or not.
type Operator struct {
	*Stores
	Reconciler *reconciler.Reconciler
	// term is that of this process, ok is false where it does not lead: the leader's
	// guard is the newest.
	term   func() (term reconciler.Term, ok bool)
	rows   *postgres.Store
	checks checks
	// traces are a command's own.
	traces *Telemetry
}

// OpenOperator is one with a reconciler of its own, for a command. Its traces go where
// the OTEL_* variables say.
func OpenOperator(ctx context.Context, c *Config, version Version, log *slog.Logger) (*Operator, error) {
	traces, _, err := newTraces(ctx, NewInstance(), version, log)
	if err != nil {
		return nil, err
	}
	stores, err := OpenStores(c, log)
	if err != nil {
		return nil, err
	}
	rows, err := NewRows(c)
	if err != nil {
		_ = stores.Close()
		return nil, err
	}
	// A command does one thing at a time: the same connections serve child rows.
	r, err := NewReconciler(c, stores.Celery, stores.Broker, rows, ChildRows{rows}, log)
	if err != nil {
		rows.Close()
		_ = stores.Close()
		return nil, err
	}
	return &Operator{Stores: stores, Reconciler: r, rows: rows, term: nobody, checks: checks{judge: r.Check}, traces: traces}, nil
}

func nobody() (term reconciler.Term, ok bool) { return term, false }

// NewOperator is the daemon's. The status has connections of its own, so that it shows
// what hangs.
func NewOperator(c *Config, r *reconciler.Reconciler, controller *watcher.Controller, log *slog.Logger) (*Operator, error) {
	stores, err := OpenStores(c, log)
	if err != nil {
		return nil, err
	}
	return &Operator{Stores: stores, Reconciler: r, term: controller.Term, checks: checks{judge: r.Check}}, nil
}

// Close ends all connections, and exports what is left of a command's traces.
func (o *Operator) Close() error {
	if o.rows != nil {
		o.rows.Close()
	}
	err := o.Stores.Close()
	if o.traces != nil {
		ctx, cancel := Bounded(context.Background())
		defer cancel()
		err = errors.Join(err, o.traces.Shutdown(ctx))
	}
	return err
}

// begin reads the orders and the guard as they are in Redis, and gives the term in
// which an operator's removals are made: that of the newest leader.
func (o *Operator) begin(ctx context.Context, c *reconciler.Cleanup) (reconciler.Term, error) {
	state, err := o.Celery.State(ctx)
	if err != nil {
		return reconciler.Term{}, err
	}
	if state.Paused && !c.DryRun {
		return reconciler.Term{}, fmt.Errorf("%w since %s by %s", reconciler.ErrPaused, state.PausedSince.Format(time.RFC3339), state.PausedBy)
	}
	if term, ok := o.term(); ok {
		c.MayGoOn = o.mayGoOn(term.Epoch)
		return reconciler.Term{Epoch: term.Epoch, Position: func() reconciler.LSN {
			if now, ok := o.term(); !ok || now.Epoch != term.Epoch {
				return math.MaxUint64 // nobody reads on: the next removal is refused
			}
			return term.Position()
		}}, nil
	}
	trip, err := TripOf(state)
	if err != nil {
		return reconciler.Term{}, err
	}
	o.Reconciler.Guard.Load(trip)
	epoch := state.Epoch
	if !c.DryRun { // which needs none
		if epoch, err = o.epoch(ctx, state.Epoch); err != nil {
			return reconciler.Term{}, err
		}
	}
	c.MayGoOn = o.mayGoOn(epoch)
	return reconciler.Term{Epoch: epoch, Position: o.position(ctx)}, nil
}

// mayGoOn asks whether an operator has paused removals, or a new leader has taken over.
func (o *Operator) mayGoOn(epoch uint64) func(context.Context) error {
	return func(ctx context.Context) error {
		switch state, err := o.Celery.State(ctx); {
		case err != nil:
			return err
		case state.Paused:
			return fmt.Errorf("%w since %s by %s", reconciler.ErrPaused, state.PausedSince.Format(time.RFC3339), state.PausedBy)
		case state.Epoch != epoch:
			return reconciler.ErrStale
		}
		return nil
	}
}

// epoch is the newest leader's. Where there never was one, or it has left the two
// servers in different minds, and none leads now, a new one is claimed.
func (o *Operator) epoch(ctx context.Context, results uint64) (uint64, error) {
	broker, err := o.Broker.Epoch(ctx)
	if err != nil {
		return 0, err
	}
	if results == broker && results != 0 {
		return results, nil
	}
	daemons, err := o.Daemons(ctx)
	if err != nil {
		return 0, err
	}
	for _, d := range daemons {
		if d.Role == watcher.RoleLeader {
			return 0, fmt.Errorf("daemon %s is just taking over: try again", d.Instance)
		}
	}
	epoch, err := o.Celery.ClaimEpoch(ctx, max(results, broker))
	if err != nil {
		return 0, err
	}
	return epoch, o.Broker.SetEpoch(ctx, epoch)
}

const (
	// positionEvery is how often the slot is looked at, positionPatience for how long:
	// a leader that is behind is not waited for, since the guard watches the rest.
	positionEvery    = 100 * time.Millisecond
	positionPatience = 5 * time.Second
)

// position is how far the daemon has done its work: what was deleted before is
// evidence that it has, not a row that is absent. Without a daemon there is none.
func (o *Operator) position(ctx context.Context) func() reconciler.LSN {
	var at reconciler.LSN
	var looked, began time.Time
	return func() reconciler.LSN {
		now := time.Now()
		if began.IsZero() { // a scan may have taken long until it is asked
			began = now
		}
		switch {
		case at == math.MaxUint64 || now.Sub(looked) < positionEvery:
			return at
		case now.Sub(began) > positionPatience:
			at = math.MaxUint64
			return at
		}
		looked = now
		slot, err := o.Slot(ctx)
		if at = slot.Confirmed; err == nil && !slot.Active {
			at = math.MaxUint64
		}
		return at
	}
}

// CleanupOrphaned is reconciler.CleanupOrphaned.
func (o *Operator) CleanupOrphaned(ctx context.Context, c reconciler.Cleanup) (reconciler.OrphanReport, error) {
	term, err := o.begin(ctx, &c)
	if err != nil {
		return reconciler.OrphanReport{Tasks: []reconciler.TaskInfo{}, DryRun: c.DryRun}, err
	}
	return o.Reconciler.CleanupOrphaned(ctx, term, c)
}

// CleanupExpired is reconciler.CleanupExpired, of results older than that many hours;
// 0 for policy.max_age_hours.
func (o *Operator) CleanupExpired(ctx context.Context, hours int, c reconciler.Cleanup) (reconciler.ExpiredReport, error) {
	term, err := o.begin(ctx, &c)
	if err != nil {
		return reconciler.ExpiredReport{DryRun: c.DryRun}, err
	}
	return o.Reconciler.CleanupExpired(ctx, term, o.age(hours), c)
}

func (o *Operator) age(hours int) time.Duration {
	if hours == 0 {
		hours = o.config.Policy.MaxAgeHours
	}
	return time.Duration(hours) * time.Hour
}

// CleanupDatabase is reconciler.CleanupDatabase.
func (o *Operator) CleanupDatabase(ctx context.Context, c reconciler.Cleanup) (reconciler.DatabaseReport, error) {
	if _, err := o.begin(ctx, &c); err != nil {
		return reconciler.DatabaseReport{DryRun: c.DryRun}, err
	}
	return o.Reconciler.CleanupDatabase(ctx, c)
}

// FullCleanup is reconciler.FullCleanup; hours as for CleanupExpired.
func (o *Operator) FullCleanup(ctx context.Context, hours int, c reconciler.Cleanup) (reconciler.FullReport, error) {
	term, err := o.begin(ctx, &c)
	if err != nil {
		return reconciler.FullReport{DryRun: c.DryRun}, err
	}
	return o.Reconciler.FullCleanup(ctx, term, o.age(hours), c)
}

// PurgeQueues is reconciler.PurgeQueues.
func (o *Operator) PurgeQueues(ctx context.Context, queues []string, includeUnacked bool, c reconciler.Cleanup) (reconciler.QueuesReport, error) {
	term, err := o.begin(ctx, &c)
	if err != nil {
		return reconciler.QueuesReport{DryRun: c.DryRun}, err
	}
	return o.Reconciler.PurgeQueues(ctx, term, queues, includeUnacked, c)
}

// Check is reconciler.Check, within the time that a command waits for a store.
func (o *Operator) Check(ctx context.Context, id string, row reconciler.RowQuery) (reconciler.CheckReport, error) {
	ctx, cancel := Bounded(ctx)
	defer cancel()
	return o.checks.ask(ctx, reconciler.CheckQuestion{TaskID: id, Row: row})
}
