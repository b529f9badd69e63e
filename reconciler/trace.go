package reconciler

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// The names of spans and attributes of this package. What OpenTelemetry's semantic
// conventions have a name for goes by that. No name holds an id.
const (
	spanReconcile = "reconcile" // and the table
	spanResync    = "resync"
	spanExpired   = "cleanup expired"

	keyTrigger  = attribute.Key("orphanwatch.trigger")
	keyEvidence = attribute.Key("orphanwatch.evidence")
	keyOutcome  = attribute.Key("orphanwatch.outcome")
	keyHeldBy   = attribute.Key("orphanwatch.held_by")
	keyReason   = attribute.Key("orphanwatch.reason")
	keyLag      = attribute.Key("orphanwatch.lag")
	keyXID      = attribute.Key("orphanwatch.pg.xid")
	keyLSN      = attribute.Key("orphanwatch.pg.lsn")
	keyAttempt  = attribute.Key("orphanwatch.attempt")
	keyRemoved  = "orphanwatch.removed."
	keyPass     = "orphanwatch.pass."
	keyTaskName = attribute.Key("celery.task.name")

	// keyLink is an attribute of links: what they lead to.
	keyLink         = attribute.Key("orphanwatch.link")
	linkTransaction = "deleting transaction"
	linkMessage     = "message"
	linkAttempt     = "previous attempt"
	linkPass        = "resync"

	messagingSystem = "celery"
)

// maxLinks bounds the links of a span.
const maxLinks = 100

// Stores describe the stores in spans: server.address, server.port, db.namespace.
type Stores struct{ Rows, Results, Broker []attribute.KeyValue }

// step is a kind of child span: one thing that is done for a whole batch.
type step struct {
	name string
	// options are its kind, and the attributes that it always has.
	options []trace.SpanStartOption
	// size is the attribute that holds how many works the batch has, "" for none.
	size attribute.Key
}

// steps are the children of a reconciliation, in their usual order.
type steps struct {
	artifacts, sweep, rows, decide, remove, record, revoke, pull step
}

func newSteps(s Stores) steps {
	call := func(name, operation string, system attribute.KeyValue, store []attribute.KeyValue) step {
		attrs := append([]attribute.KeyValue{system, semconv.DBOperationName(operation)}, store...)
		return step{name, []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attrs...)}, semconv.DBOperationBatchSizeKey}
	}
	revoke := append([]attribute.KeyValue{
		semconv.MessagingSystemKey.String(messagingSystem), semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("revoke"),
	}, s.Broker...)
	return steps{
		artifacts: call("read artifacts", "EVALSHA", semconv.DBSystemNameRedis, s.Results),
		sweep:     call("sweep messages", "LRANGE", semconv.DBSystemNameRedis, s.Broker),
		rows:      call("read rows", "SELECT", semconv.DBSystemNamePostgreSQL, s.Rows),
		decide:    step{name: "decide"},
		remove:    call("remove", "EVALSHA", semconv.DBSystemNameRedis, s.Results),
		record:    call("write records", "EVALSHA", semconv.DBSystemNameRedis, s.Results),
		revoke:    step{"revoke", []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(revoke...)}, semconv.MessagingBatchMessageCountKey},
		pull:      call("pull messages", "EVALSHA", semconv.DBSystemNameRedis, s.Broker),
	}
}

// workSpan is the root span of a reconciliation; nil where nothing records.
type workSpan struct {
	trace.Span
	ctx context.Context //nolint:containedctx // the parent of this work's child spans, which are made batch by batch
	// links counts them: two workers may have works of one trail.
	links atomic.Int32
}

func (s *workSpan) traceID() string {
	if s == nil {
		return ""
	}
	return s.SpanContext().TraceID().String()
}

// link adds a link to another span, where to is one.
func (s *workSpan) link(to trace.SpanContext, what string) {
	if s == nil || !to.IsValid() || s.links.Add(1) > maxLinks {
		return
	}
	s.AddLink(trace.Link{SpanContext: to, Attributes: []attribute.KeyValue{keyLink.String(what)}})
}

// linkParent links to what a traceparent (W3C Trace Context) names.
func (s *workSpan) linkParent(traceparent, what string) {
	if s == nil || traceparent == "" {
		return
	}
	carrier := propagation.MapCarrier{"traceparent": traceparent}
	s.link(trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier)), what)
}

// Trail joins in one trace what is done at first about one deleted row: its task's
// keys, its messages and its companions are in the queue apart. What has to come back
// gets a trace of its own, linked to this one.
type Trail struct {
	begun sync.Once
	mu    sync.Mutex
	// subjects have not been reconciled yet.
	subjects int
	// joint is nil where nothing records. It ends with the last of subjects.
	joint *joint
}

// joint is what the subjects of a trail have in common.
type joint struct {
	root    *workSpan
	verdict Verdict
	lag     float64
	ended   time.Time
}

// NewTrail is for a deletion that so many subjects are offered with.
func NewTrail(subjects int) *Trail { return &Trail{subjects: subjects} }

// Leave says that one of its subjects will not be reconciled for this deletion: a
// newer one stands for it. It may be called on nil, and does not wait for anything.
func (tr *Trail) Leave() { tr.leave(Verdict{}, 0, time.Time{}) }

// begin gives the root span, which the first one starts. That may wait for the exporter,
// so it is done without the lock that Leave takes.
func (tr *Trail) begin(start func() *workSpan) *workSpan {
	tr.begun.Do(func() {
		root := start()
		if root == nil {
			return
		}
		tr.mu.Lock()
		defer tr.mu.Unlock()
		tr.joint = &joint{root: root}
	})
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.joint == nil {
		return nil
	}
	return tr.joint.root
}

func (tr *Trail) leave(v Verdict, lag float64, at time.Time) {
	if tr == nil {
		return
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.subjects--
	j := tr.joint
	if j == nil {
		return
	}
	if v.Outcome != "" {
		if total(j.verdict.Removed) == 0 || total(v.Removed) > 0 && lag < j.lag {
			j.lag = lag // to the first removal
		}
		v.Remove, v.Tasks = nil, nil // messages may be large, and the others may take long
		j.verdict.merge(v)
		j.ended = at
	}
	if tr.subjects <= 0 {
		j.root.conclude(j.verdict, j.lag, j.ended)
		tr.joint = nil
	}
}

// trail is that of the newest deletion, nil where there is none or it has been left.
func (w *Work) trail() *Trail {
	if n := len(w.Deletions); n > 0 {
		return w.Deletions[n-1].Trail
	}
	return nil
}

// leaveTrails ends the part of this work in the traces of its deletions.
func (w *Work) leaveTrails(v Verdict, lag float64, at time.Time) {
	for i := range w.Deletions {
		w.Deletions[i].Trail.leave(v, lag, at)
		w.Deletions[i].Trail = nil
	}
}

// start begins a trace for each work, or finds the one that it takes part in; all nil
// where nothing records.
func (t *telemetry) start(ctx context.Context, works []*Work, at time.Time) []*workSpan {
	spans := make([]*workSpan, len(works))
	if !t.tracing {
		return spans
	}
	for i, w := range works {
		root := func() *workSpan { return t.root(ctx, w, at) }
		if tr := w.trail(); tr != nil {
			spans[i] = tr.begin(root)
		} else {
			spans[i] = root()
		}
		spans[i].describe(w)
	}
	return spans
}

func (t *telemetry) root(ctx context.Context, w *Work, at time.Time) *workSpan {
	attrs := []attribute.KeyValue{
		keyTrigger.String(string(w.Trigger)), semconv.MessagingSystemKey.String(messagingSystem),
		semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName(spanReconcile),
	}
	if w.Attempts > 0 {
		attrs = append(attrs, keyAttempt.Int(w.Attempts+1))
	}
	c, span := t.tracer.Start(ctx, spanReconcile+" "+t.table(w), trace.WithNewRoot(), trace.WithTimestamp(at),
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(attrs...))
	if !span.IsRecording() {
		return nil
	}
	s := &workSpan{Span: span, ctx: c}
	if n := len(w.Deletions); n > 0 {
		commit := w.Deletions[n-1].Commit
		span.SetAttributes(keyXID.Int64(int64(commit.XID)), keyLSN.String(commit.LSN.String()))
		s.linkParent(commit.TraceParent, linkTransaction)
	}
	return s
}

// describe adds what is of one work, of those that the span may be about.
func (s *workSpan) describe(w *Work) {
	if s == nil {
		return
	}
	s.link(w.last, linkAttempt)
	s.link(w.Cause, linkPass)
	if w.Subject.Owner().Kind == Task {
		s.SetAttributes(semconv.MessagingMessageID(w.Subject.ID))
	}
	w.last = trace.SpanContext{}
}

// finish says how a work ended, and ends its span, unless others take part in it.
// A commit that is not visible yet is waited for within the same trace.
func (t *telemetry) finish(w *Work, v Verdict, s *workSpan, lag float64, at time.Time) {
	if s != nil {
		for _, a := range v.Remove {
			if a.Name != "" {
				s.SetAttributes(keyTaskName.String(a.Name))
				break
			}
		}
	}
	tr := w.trail()
	if tr != nil && v.Outcome == OutcomeDeferred && v.HeldBy == HeldByCommit {
		return
	}
	if s != nil {
		w.last = s.SpanContext()
	}
	if tr == nil {
		s.conclude(v, lag, at)
	}
	w.leaveTrails(v, lag, at)
}

// conclude ends a root span.
func (s *workSpan) conclude(v Verdict, lag float64, at time.Time) {
	if s == nil {
		return
	}
	s.SetAttributes(keyOutcome.String(string(v.Outcome)), keyReason.String(v.Reason), keyLag.Float64(max(lag, 0)))
	if v.Evidence != "" {
		s.SetAttributes(keyEvidence.String(string(v.Evidence)))
	}
	if v.HeldBy != "" {
		s.SetAttributes(keyHeldBy.String(string(v.HeldBy)))
	}
	for k, n := range v.Removed {
		s.SetAttributes(attribute.Int(keyRemoved+string(k), n))
	}
	if v.Err != nil {
		fail(s, v.Err)
	}
	s.End(trace.WithTimestamp(at))
}

func fail(span trace.Span, err error) {
	span.SetAttributes(semconv.ErrorTypeKey.String(errorType(err)))
	span.RecordError(err)
	span.SetStatus(codes.Error, err.Error())
}

// step adds one child, shared in time by the whole batch, to each trace.
func (t *telemetry) step(spans []*workSpan, of step, from time.Time, err error) {
	to := t.now()
	opts := append(of.options[:len(of.options):len(of.options)], trace.WithTimestamp(from))
	var done map[*workSpan]struct{} // works of one batch may share a trace
	for _, s := range spans {
		if s == nil {
			continue
		}
		if _, twice := done[s]; twice {
			continue
		}
		if done == nil {
			done = make(map[*workSpan]struct{}, len(spans))
		}
		done[s] = struct{}{}
		_, child := t.tracer.Start(s.ctx, of.name, opts...)
		if of.size != "" && len(spans) > 1 {
			child.SetAttributes(of.size.Int(len(spans)))
		}
		if err != nil {
			fail(child, err)
		}
		child.End(trace.WithTimestamp(to))
	}
}

// stage is one part of a pass.
func (t *telemetry) stage(ctx context.Context, name string, do func(context.Context) error) error {
	ctx, span := t.tracer.Start(ctx, name)
	defer span.End()
	err := do(ctx)
	if err != nil {
		fail(span, err)
	}
	return err
}

// passed ends the trace of a pass.
func (t *telemetry) passed(span trace.Span, p Pass, out passOutcome, err error) {
	span.SetAttributes(keyReason.String(p.Reason),
		attribute.Int64(keyPass+"scanned", p.Scanned), attribute.Int64(keyPass+"messages", p.Messages),
		attribute.Int64(keyPass+"orphans", p.Orphans), attribute.Int64(keyPass+"unknown", p.Unknown),
		attribute.Int64(keyPass+"submitted", p.Submitted), attribute.Int64(keyPass+"guarded", out.guarded))
	if err != nil {
		fail(span, err)
	}
	span.End()
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
