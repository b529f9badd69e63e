package wiring

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

const (
	// scheduleTick is how often it is asked whether a full cleanup is due.
	scheduleTick = 10 * time.Second
	// scheduleAgain is when one that was paused, say, is tried again.
	scheduleAgain = 10 * time.Minute
	// schedulePatience is for how long a full cleanup waits for open transactions.
	schedulePatience = time.Minute
)

// Schedule makes the leader's full cleanup every policy.full_cleanup_interval, by
// the time of the last one that is kept in Redis, whichever copy made it.
type Schedule struct {
	operator *Operator
	every    time.Duration
	tick     time.Duration
	pulse    *watcher.Pulse
	log      *slog.Logger
}

// NewSchedule does nothing where the interval is 0.
func NewSchedule(c *Config, o *Operator, pulse *watcher.Pulse, log *slog.Logger) *Schedule {
	every := c.Policy.FullCleanupInterval
	return &Schedule{operator: o, every: every, tick: min(scheduleTick, max(every/4, time.Millisecond)), pulse: pulse, log: log}
}

// Run cleans until ctx ends. What fails is logged, and done the next time.
func (s *Schedule) Run(ctx context.Context) error {
	if s.every == 0 {
		return nil
	}
	ctx, leave := s.pulse.Enter(ctx, "full cleanup", watcher.PassLimit)
	defer leave()
	tick := time.NewTicker(s.tick)
	defer tick.Stop()
	for {
		reconciler.Beat(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, leads := s.operator.term(); !leads {
			continue
		}
		due, err := s.operator.Celery.FullCleanupDue(ctx, s.every)
		if err != nil || !due {
			continue // a store that is away is reported by those who need it all the time
		}
		s.clean(ctx)
	}
}

// soon is when a cleanup that was not made is tried again.
func (s *Schedule) soon() time.Duration { return min(scheduleAgain, s.every) }

func (s *Schedule) clean(ctx context.Context) {
	report, err := s.operator.FullCleanup(ctx, 0, reconciler.Cleanup{Trigger: reconciler.ByResync, Scheduled: true, Patience: schedulePatience})
	if ctx.Err() != nil {
		return
	}
	if err != nil { // it was ended, or not begun: soon again
		if again := s.operator.Celery.FullCleanupAgain(ctx, s.every, s.soon()); again != nil {
			err = errors.Join(err, again)
		}
		s.log.WarnContext(ctx, "no full cleanup now, soon again", "reason", err, "in", s.soon().String())
		return
	}
	err = report.Failed()
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
