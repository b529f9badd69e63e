package wiring

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

const (
	// scheduleTick is how often it is asked whether a full cleanup is due.
	scheduleTick = 10 * time.Second
	// schedulePatience is for how long a full cleanup waits for open transactions.
	schedulePatience = time.Minute
)

// Schedule makes the leader's full cleanup every policy.full_cleanup_interval, by
// the time of the last one that is kept in Redis, whichever copy made it.
type Schedule struct {
	operator *Operator
	every    time.Duration
	tick     time.Duration
	log      *slog.Logger
}

// NewSchedule does nothing where the interval is 0.
func NewSchedule(c *Config, o *Operator, log *slog.Logger) *Schedule {
	return &Schedule{operator: o, every: c.Policy.FullCleanupInterval, tick: min(scheduleTick, max(c.Policy.FullCleanupInterval/4, time.Millisecond)), log: log}
}

// Run cleans until ctx ends. What fails is logged, and done the next time.
func (s *Schedule) Run(ctx context.Context) error {
	if s.every == 0 {
		return nil
	}
	tick := time.NewTicker(s.tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !s.operator.leads() {
			continue
		}
		due, err := s.operator.Celery.FullCleanupDue(ctx, s.every)
		if err != nil || !due {
			continue // a store that is away is reported by those who need it all the time
		}
		s.clean(ctx)
	}
}

func (s *Schedule) clean(ctx context.Context) {
	report, err := s.operator.FullCleanup(ctx, 0, reconciler.Cleanup{Trigger: reconciler.ByResync, Scheduled: true, Patience: schedulePatience})
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, reconciler.ErrPaused), errors.Is(err, reconciler.ErrBusy):
		s.log.InfoContext(ctx, "no full cleanup this time", "reason", err)
		return
	}
	attrs := []any{"took", report.Ended.Sub(report.Started).String()}
	if o := report.Orphaned; o != nil {
		attrs = append(attrs, "orphaned", o.Cleaned)
	}
	if e := report.Expired; e != nil {
		attrs = append(attrs, "expired", e.Cleaned, "ttl_set", e.TTLSet)
	}
	if d := report.Database; d != nil {
		attrs = append(attrs, "child_rows", d.Total)
		for table, text := range d.Errors {
			s.log.WarnContext(ctx, "child rows could not be cleaned", "table", table, "error", text)
		}
	}
	if err != nil {
		s.log.WarnContext(ctx, "full cleanup, not in all parts", append(attrs, "error", err)...)
		return
	}
	s.log.InfoContext(ctx, "full cleanup", attrs...)
}
