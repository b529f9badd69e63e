package reconciler

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/orphanwatch/orphanwatch/reconciler"

// The names of the instruments of this package.
const (
	metricLag             = "orphanwatch.lag"
	metricDuration        = "orphanwatch.reconcile.duration"
	metricReconciliations = "orphanwatch.reconciliations"
	metricRemoved         = "orphanwatch.removed"
	metricErrors          = "orphanwatch.errors"
	metricOrphans         = "orphanwatch.orphans"
	metricGuard           = "orphanwatch.guard.tripped"
	metricRevokes         = "orphanwatch.revokes"
)

// The values of error.type.
const (
	errUnreachable = "unreachable"
	errTimeout     = "timeout"
	errCanceled    = "canceled"
	errOther       = "other"
)

// The values of outcome of metricRevokes: how many workers heard it, or that the
// limit was reached.
const (
	revokeHeard   = "heard"
	revokeUnheard = "unheard"
	revokeSkipped = "skipped"
)

// LagBuckets are the bounds in seconds of the lag histogram.
var LagBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

var (
	triggers = []Trigger{ByDelete, ByEvent, ByResync, ByAPI, ByCLI}
	outcomes = []Outcome{OutcomeRemoved, OutcomeKept, OutcomeNoop, OutcomeDeferred, OutcomeGuarded, OutcomeReported, OutcomeError}
	kinds    = []ArtifactKind{ResultKey, CompanionKey, QueuedMessage, UnackedMessage}

	errorTypes = []string{errUnreachable, errTimeout, errCanceled, errOther}
)

// Histogram is one in seconds with LagBuckets. Its series exist in the SDK from their first
// value on, and from the start where an exporter adds them.
type Histogram struct {
	Name, Description string
	// Series are all that there can be.
	Series []attribute.Set
}

// Histograms are those of this package.
func Histograms() []Histogram {
	lag := Histogram{Name: metricLag, Description: describeLag}
	for _, trigger := range triggers {
		for _, o := range []Outcome{OutcomeRemoved, OutcomeKept, OutcomeNoop} {
			lag.Series = append(lag.Series, byOutcome(trigger, o))
		}
	}
	return []Histogram{lag, {Name: metricDuration, Description: describeDuration, Series: []attribute.Set{{}}}}
}

func byOutcome(t Trigger, o Outcome) attribute.Set {
	return attribute.NewSet(attribute.String("trigger", string(t)), attribute.String("outcome", string(o)))
}

const (
	describeLag      = "From the commit of a delete, or the event of a key, to the first verified removal."
	describeDuration = "How long a batch of reconciliations took."
)

// telemetry holds the instruments. Attribute sets are made once: the paths are hot.
type telemetry struct {
	tracer          trace.Tracer
	tracing         bool // there is somebody to trace for
	steps           steps
	bindings        []Binding
	now             func() time.Time
	lag, duration   metric.Float64Histogram
	reconciliations metric.Int64Counter
	removed         metric.Int64Counter
	errors          metric.Int64Counter
	revokes         metric.Int64Counter
	byOutcome       map[Trigger]map[Outcome]metric.MeasurementOption
	byKind          map[ArtifactKind]metric.MeasurementOption
}

func newTelemetry(r *Reconciler) (*telemetry, error) {
	m := otel.Meter(scope)
	t := &telemetry{
		tracer: otel.Tracer(scope), steps: newSteps(r.Stores), bindings: r.Bindings, now: r.Now,
		byKind: map[ArtifactKind]metric.MeasurementOption{}, byOutcome: map[Trigger]map[Outcome]metric.MeasurementOption{},
	}
	_, probe := t.tracer.Start(context.Background(), spanReconcile) // not ended, so not exported
	t.tracing = probe.SpanContext().IsValid()
	var errs [9]error
	t.lag, errs[0] = m.Float64Histogram(metricLag, metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(LagBuckets...),
		metric.WithDescription(describeLag))
	t.duration, errs[1] = m.Float64Histogram(metricDuration, metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(LagBuckets...),
		metric.WithDescription(describeDuration))
	t.reconciliations, errs[2] = m.Int64Counter(metricReconciliations, metric.WithDescription("Reconciliations by trigger and outcome."))
	t.removed, errs[3] = m.Int64Counter(metricRemoved, metric.WithDescription("Artifacts removed, by kind."))
	t.errors, errs[4] = m.Int64Counter(metricErrors, metric.WithDescription("Reconciliations that failed and come back, by error type."))
	orphans, err := m.Int64ObservableGauge(metricOrphans, metric.WithDescription("Orphans that the last pass saw, by binding and by what holds them."))
	errs[5] = err
	guard, err := m.Int64ObservableGauge(metricGuard, metric.WithDescription("1 while the guard holds all removals on evidence absent."))
	errs[6] = err
	_, errs[7] = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		tripped := int64(0)
		if r.Guard.Tripped() != nil {
			tripped = 1
		}
		o.ObserveInt64(guard, tripped)
		for k, n := range r.OrphanCounts() {
			o.ObserveInt64(orphans, n, metric.WithAttributes(attribute.String("binding", k.Binding), attribute.String("held_by", string(k.HeldBy))))
		}
		return nil
	}, orphans, guard)
	t.revokes, errs[8] = m.Int64Counter(metricRevokes, metric.WithDescription("Task ids to revoke, by what became of it: heard or unheard by workers, skipped over the limit."))
	for _, outcome := range []string{revokeHeard, revokeUnheard, revokeSkipped} {
		t.revoked(context.Background(), outcome, 0)
	}
	for _, tr := range triggers {
		t.byOutcome[tr] = map[Outcome]metric.MeasurementOption{}
		for _, o := range outcomes {
			opt := metric.WithAttributeSet(byOutcome(tr, o))
			t.byOutcome[tr][o] = opt
			t.reconciliations.Add(context.Background(), 0, opt)
		}
	}
	for _, e := range errorTypes {
		t.errors.Add(context.Background(), 0, metric.WithAttributes(attribute.String("error.type", e)))
	}
	for _, k := range kinds {
		t.byKind[k] = metric.WithAttributeSet(attribute.NewSet(attribute.String("kind", string(k))))
		t.removed.Add(context.Background(), 0, t.byKind[k])
	}
	return t, errors.Join(errs[:]...)
}

func (t *telemetry) revoked(ctx context.Context, outcome string, n int) {
	t.revokes.Add(ctx, int64(n), metric.WithAttributes(attribute.String("outcome", outcome)))
}

// end counts how works ended, and ends their spans.
func (t *telemetry) end(ctx context.Context, works []*Work, verdicts []Verdict, spans []*workSpan, from time.Time) {
	to := t.now()
	t.duration.Record(ctx, to.Sub(from).Seconds())
	for i, w := range works {
		v := verdicts[i]
		if v.Outcome == "" {
			continue
		}
		c := ctx
		if spans[i] != nil {
			c = spans[i].ctx // exemplars
		}
		opt := t.byOutcome[w.Trigger]
		t.reconciliations.Add(c, 1, opt[v.Outcome])
		at := to
		if !v.At.IsZero() {
			at = v.At
		}
		lag := max(at.Sub(w.Since()).Seconds(), 0)
		switch {
		case w.removed: // the first removal is what counts
		case total(v.Removed) > 0 || v.Outcome == OutcomeRemoved:
			w.removed = true
			t.lag.Record(c, lag, opt[OutcomeRemoved])
		case v.Outcome == OutcomeKept, v.Outcome == OutcomeNoop:
			t.lag.Record(c, lag, opt[v.Outcome])
		}
		if v.Outcome == OutcomeError {
			t.errors.Add(c, 1, metric.WithAttributes(attribute.String("error.type", errorType(v.Err))))
		}
		for k, n := range v.Removed {
			t.removed.Add(c, int64(n), t.byKind[k])
		}
		t.finish(w, v, spans[i], lag, to)
	}
}

// Since is when the clock of its lag starts, by our clock: at the commit of the first
// deletion, or when it was seen.
func (w *Work) Since() time.Time {
	if w.Origin.IsZero() {
		return w.Seen
	}
	return w.Origin
}

func errorType(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return errTimeout
	case errors.Is(err, context.Canceled):
		return errCanceled
	case errors.Is(err, ErrUnreachable):
		return errUnreachable
	}
	return errOther
}
