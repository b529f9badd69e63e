package reconciler

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// Results are the results of tasks, by their age.
type Results interface {
	// Clock is the store's own time.
	Clock(ctx context.Context) (time.Time, error)
	// RemoveExpired removes results by their age. After ErrStale, ErrPaused, the end
	// of ctx or an error of the store, the report is of what has been done till then.
	RemoveExpired(ctx context.Context, epoch uint64, e Expiry) (ExpiredReport, error)
}

// Expiry says which results are too old, and what is kept of them.
type Expiry struct {
	// Before: a result is removed if its task ended before then by its date_done.
	Before time.Time
	// TTL is what a result gets that has no date and would stay for ever.
	TTL    time.Duration
	DryRun bool
	// Record is kept of each; its evidence is Expired.
	Record Record
	// Awaited: somebody waits for it, so it may take twice the part of the store's time
	// that is taken in the background.
	Awaited bool
	// Progress is as in Cleanup; nil for nobody.
	Progress func(Progress)
}

// The bounds of a result's age.
const (
	MinExpiry = time.Hour
	MaxExpiry = 168 * time.Hour
)

// CleanupExpired removes results that are older than maxAge, a whole number of hours
// from MinExpiry to MaxExpiry, by their date_done, also those of rows that exist.
// Results without a date that can be read get maxAge for a TTL unless they have one.
// The report is of what has been done, with an error too.
//
// The age is taken from the earlier one of our clock and Redis's: one of them that
// is ahead then makes nothing older than it is.
func (r *Reconciler) CleanupExpired(ctx context.Context, term Term, maxAge time.Duration, c Cleanup) (ExpiredReport, error) {
	if !r.begin() {
		return ExpiredReport{MaxAgeHours: int(maxAge / time.Hour), DryRun: c.DryRun}, ErrBusy
	}
	defer r.finish()
	return r.cleanExpired(ctx, term, maxAge, c)
}

func (r *Reconciler) cleanExpired(ctx context.Context, term Term, maxAge time.Duration, c Cleanup) (ExpiredReport, error) {
	report := ExpiredReport{MaxAgeHours: int(maxAge / time.Hour), DryRun: c.DryRun}
	if maxAge < MinExpiry || maxAge > MaxExpiry || maxAge%time.Hour != 0 {
		return report, fmt.Errorf("cleanup expired: the maximum age is %v, but must be a whole number of hours from %d to %d", maxAge, MinExpiry/time.Hour, MaxExpiry/time.Hour)
	}
	ctx, span := r.telemetry.tracer.Start(ctx, spanExpired)
	defer span.End()
	now, err := r.Results.Clock(ctx)
	if err == nil {
		if ours := r.Now(); ours.Before(now) {
			now = ours
		}
		record := Record{Evidence: Expired, Trigger: c.Trigger}
		if id := span.SpanContext().TraceID(); id.IsValid() {
			record.TraceID = id.String()
		}
		report, err = r.Results.RemoveExpired(ctx, term.Epoch, Expiry{
			Before: now.Add(-maxAge), TTL: maxAge, DryRun: c.DryRun, Record: record,
			Awaited: !c.Scheduled, Progress: c.tell,
		})
		report.MaxAgeHours = int(maxAge / time.Hour)
	}
	if !c.DryRun {
		r.telemetry.removed.Add(ctx, report.Cleaned, r.telemetry.byKind[ResultKey])
		span.SetAttributes(attribute.Int64(keyRemoved+string(ResultKey), report.Cleaned))
	}
	span.SetAttributes(keyTrigger.String(string(c.Trigger)), keyEvidence.String(string(Expired)))
	if err != nil {
		fail(span, err)
		return report, fmt.Errorf("cleanup expired: %w", err)
	}
	return report, nil
}
