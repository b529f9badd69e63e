package reconciler

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/orphanwatch/orphanwatch/reconciler"

// The names of instruments, spans and attributes of this package.
const (
	metricLag             = "orphanwatch.lag"
	metricDuration        = "orphanwatch.reconcile.duration"
	metricReconciliations = "orphanwatch.reconciliations"
	metricRemoved         = "orphanwatch.removed"
	metricErrors          = "orphanwatch.errors"
	metricOrphans         = "orphanwatch.orphans"
	metricGuard           = "orphanwatch.guard.tripped"
	metricRevokes         = "orphanwatch.revokes"

	spanReconcile = "reconcile"
	stepArtifacts = "read artifacts"
	stepRows      = "read rows"
	stepRemove    = "remove"
	stepSweep     = "sweep messages"
	stepPull      = "pull messages"

	keyTrigger   = attribute.Key("orphanwatch.trigger")
	keyEvidence  = attribute.Key("orphanwatch.evidence")
	keyOutcome   = attribute.Key("orphanwatch.outcome")
	keyHeldBy    = attribute.Key("orphanwatch.held_by")
	keyReason    = attribute.Key("orphanwatch.reason")
	keyLag       = attribute.Key("orphanwatch.lag")
	keyXID       = attribute.Key("orphanwatch.pg.xid")
	keyLSN       = attribute.Key("orphanwatch.pg.lsn")
	keyRemoved   = "orphanwatch.removed."
	keyMessageID = attribute.Key("messaging.message.id")
	keyTaskName  = attribute.Key("celery.task.name")
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

// telemetry holds the instruments. Attribute sets are made once: the paths are hot.
type telemetry struct {
	tracer          trace.Tracer
	bindings        []Binding
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
	t := &telemetry{tracer: otel.Tracer(scope), bindings: r.Bindings, byKind: map[ArtifactKind]metric.MeasurementOption{}, byOutcome: map[Trigger]map[Outcome]metric.MeasurementOption{}}
	var errs [9]error
	t.lag, errs[0] = m.Float64Histogram(metricLag, metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(LagBuckets...),
		metric.WithDescription("From the commit of a delete, or the event of a key, to the first verified removal."))
	t.duration, errs[1] = m.Float64Histogram(metricDuration, metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(LagBuckets...),
		metric.WithDescription("How long a batch of reconciliations took."))
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
			opt := metric.WithAttributeSet(attribute.NewSet(attribute.String("trigger", string(tr)), attribute.String("outcome", string(o))))
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

// workSpan is the root span of one reconciliation; nil where nothing records.
type workSpan struct {
	trace.Span
	ctx context.Context //nolint:containedctx // the parent of this work's child spans, which are made batch by batch
}

func (s *workSpan) traceID() string {
	if s == nil {
		return ""
	}
	return s.SpanContext().TraceID().String()
}

// start begins a trace for each work; all nil where nothing records.
func (t *telemetry) start(ctx context.Context, works []*Work, at time.Time) []*workSpan {
	spans := make([]*workSpan, len(works))
	for i, w := range works {
		opts := []trace.SpanStartOption{trace.WithNewRoot(), trace.WithTimestamp(at), trace.WithSpanKind(trace.SpanKindConsumer)}
		if w.last.IsValid() {
			opts = append(opts, trace.WithLinks(trace.Link{SpanContext: w.last}))
		}
		c, span := t.tracer.Start(ctx, spanReconcile, opts...)
		if !span.IsRecording() {
			span.End()
			if i == 0 && !span.SpanContext().IsValid() {
				return spans // no provider at all
			}
			continue
		}
		spans[i] = &workSpan{Span: span, ctx: c}
	}
	return spans
}

// step adds one child, shared in time by the whole batch, to each trace.
func (t *telemetry) step(_ context.Context, spans []*workSpan, name string, from, to time.Time) {
	for _, s := range spans {
		if s == nil {
			continue
		}
		_, child := t.tracer.Start(s.ctx, name, trace.WithTimestamp(from), trace.WithSpanKind(trace.SpanKindClient))
		child.End(trace.WithTimestamp(to))
	}
}

func (t *telemetry) end(ctx context.Context, works []*Work, verdicts []Verdict, spans []*workSpan, from, to time.Time) {
	t.duration.Record(ctx, to.Sub(from).Seconds())
	for i, w := range works {
		v := verdicts[i]
		if v.Outcome == "" {
			continue
		}
		opt := t.byOutcome[w.Trigger][v.Outcome]
		c := ctx
		if spans[i] != nil {
			c = spans[i].ctx // exemplars
		}
		if opt != nil {
			t.reconciliations.Add(c, 1, opt)
		}
		lag := to.Sub(w.origin()).Seconds()
		switch v.Outcome {
		case OutcomeRemoved, OutcomeKept, OutcomeNoop:
			if opt != nil {
				t.lag.Record(c, max(lag, 0), opt)
			}
		case OutcomeError:
			t.errors.Add(c, 1, metric.WithAttributes(attribute.String("error.type", errorType(v.Err))))
		}
		for k, n := range v.Removed {
			t.removed.Add(c, int64(n), t.byKind[k])
		}
		if spans[i] != nil {
			t.finish(w, v, spans[i], lag, to)
		}
	}
}

func (t *telemetry) finish(w *Work, v Verdict, span *workSpan, lag float64, to time.Time) {
	span.SetName(spanReconcile + " " + t.table(w))
	span.SetAttributes(keyTrigger.String(string(w.Trigger)), keyOutcome.String(string(v.Outcome)), keyReason.String(v.Reason), keyLag.Float64(lag))
	if w.Subject.Owner().Kind == Task {
		span.SetAttributes(keyMessageID.String(w.Subject.ID))
	}
	if v.Evidence != "" {
		span.SetAttributes(keyEvidence.String(string(v.Evidence)))
	}
	if v.HeldBy != "" {
		span.SetAttributes(keyHeldBy.String(string(v.HeldBy)))
	}
	if n := len(w.Deletions); n > 0 {
		c := w.Deletions[n-1].Commit
		span.SetAttributes(keyXID.Int64(int64(c.XID)), keyLSN.String(c.LSN.String()))
	}
	for _, a := range v.Remove {
		if a.Name != "" {
			span.SetAttributes(keyTaskName.String(a.Name))
			break
		}
	}
	for k, n := range v.Removed {
		span.SetAttributes(attribute.Int(keyRemoved+string(k), n))
	}
	if v.Err != nil {
		span.RecordError(v.Err)
		span.SetStatus(codes.Error, v.Reason)
	}
	w.last = span.SpanContext()
	span.End(trace.WithTimestamp(to))
}

// table is the one that the work is most likely about; span names hold no ids.
func (t *telemetry) table(w *Work) string {
	switch {
	case len(w.Deletions) > 0:
		return t.bindings[w.Deletions[len(w.Deletions)-1].Binding].Name()
	case w.Subject.Owner().Kind == Row:
		return t.bindings[w.Subject.Binding].Name()
	case len(t.bindings) == 1:
		return t.bindings[0].Name()
	}
	return "any"
}

// origin is when the clock of the lag starts.
func (w *Work) origin() time.Time {
	if n := len(w.Deletions); n > 0 {
		return w.Deletions[n-1].Commit.Time
	}
	return w.Seen
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
