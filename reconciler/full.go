package reconciler

import (
	"context"
	"errors"
	"time"
)

// The parts of a full cleanup, in their order.
const (
	PartOrphaned = "orphaned_tasks"
	PartExpired  = "expired_results"
	PartDatabase = "database_orphans"
)

// Count is how much was, or would be, done.
func (f FullReport) Count() (n int64) {
	if f.Orphaned != nil {
		n += f.Orphaned.Cleaned
	}
	if f.Expired != nil {
		n += f.Expired.Cleaned + f.Expired.TTLSet
	}
	if f.Database != nil {
		n += f.Database.Total
	}
	return n
}

// FullCleanup does CleanupOrphaned, CleanupExpired and CleanupDatabase, in this
// order. A part that fails is in the report's Errors, and in its Failed; the others are
// done all the same. The error is ErrBusy, ErrStale, ErrPaused, or that of ctx, each of
// which ends it.
func (r *Reconciler) FullCleanup(ctx context.Context, term Term, maxAge time.Duration, c Cleanup) (FullReport, error) {
	report := FullReport{Started: r.Now().UTC(), DryRun: c.DryRun}
	if !r.begin() {
		return report, ErrBusy
	}
	defer r.finish()
	part := func(name string, do func() error) {
		if ctx.Err() != nil || errors.Is(report.failure, ErrStale) || errors.Is(report.failure, ErrPaused) {
			return
		}
		if err := do(); err != nil {
			if report.Errors == nil {
				report.Errors = map[string]string{}
			}
			report.Errors[name] = err.Error()
			report.failure = errors.Join(report.failure, err)
		}
	}
	part(PartOrphaned, func() error {
		orphaned := newOrphanReport(c)
		report.Orphaned = &orphaned
		return r.cleanOrphaned(ctx, term, c, &orphaned)
	})
	part(PartExpired, func() error {
		strong := c
		strong.DryRun = c.DryRun || c.Scheduled && r.Policy.Remove == RemoveNone
		expired, err := r.cleanExpired(ctx, term, maxAge, strong)
		report.Expired = &expired
		return err
	})
	part(PartDatabase, func() error {
		weak := c
		weak.DryRun = c.DryRun || c.Scheduled && r.Policy.Remove != RemoveAll // absence is all that it goes by
		database, err := r.cleanDatabase(ctx, weak)
		report.Database = &database
		return err
	})
	report.Ended = r.Now().UTC()
	for _, ends := range []error{ErrStale, ErrPaused} {
		if errors.Is(report.failure, ends) {
			return report, ends
		}
	}
	return report, ctx.Err()
}
