package reconciler

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Pass is the progress, and in the end the report, of a resync.
type Pass struct {
	Reason  string    `json:"reason"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	// Stage is what it is at: scanning, comparing, waiting, judging, submitting, done, failed.
	Stage string `json:"stage"`
	// Scanned keys and, of Messages apart, those that have no row.
	Scanned  int64 `json:"scanned"`
	Messages int64 `json:"messages"`
	Suspect  int64 `json:"suspects"`
	// Orphans on evidence absent; Deleted have a known deletion and are in hand.
	Orphans int64 `json:"orphans"`
	Deleted int64 `json:"deleted"`
	// Unknown: nothing tells whose they are (R6).
	Unknown int64 `json:"unknown"`
	// Submitted to the queue; Guarded are held by the guard.
	Submitted int64  `json:"submitted"`
	Guarded   int64  `json:"guarded"`
	Error     string `json:"error,omitempty"`
}

// OrphanCount names orphans that something holds.
type OrphanCount struct {
	Binding string
	HeldBy  HeldBy
}

// StageDone is the last stage of a pass.
const StageDone = "done"

// The other stages.
const (
	stageScan    = "scanning"
	stageSweep   = "reading messages"
	stageCompare = "comparing"
	stageWait    = "waiting for replication"
	stageJudge   = "judging"
	stageSubmit  = "submitting"
	stageFailed  = "failed"
)

const (
	// chunk is how many scanned ids are held at once.
	chunk = 500_000
	// maxSuspects bounds what one pass submits; what is over it, the next one does.
	maxSuspects = 100_000
	// lookBatch is how many are looked at in one round trip.
	lookBatch = 1000
	// wholeTable: rows per key up to which streaming all ids beats looking keys up
	// (facts: lookups win below about rows/20 keys).
	wholeTable = 20
)

// Suspect is an orphan that a pass has found, to be submitted to the queue.
type Suspect struct {
	Look
	Accepted bool
	// Deleted: its deletion is known. Table is that of the binding it may be of.
	Deleted bool
	Table   string
	// Cause is the span in which it was submitted: at most maxLinks have the same.
	Cause trace.SpanContext
}

// Progress is the pass under way, or the last one.
func (r *Reconciler) Progress() Pass {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pass
}

// OrphanCounts are the orphans that the last pass saw and something holds.
func (r *Reconciler) OrphanCounts() map[OrphanCount]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[OrphanCount]int64, len(r.orphans)+len(r.Bindings))
	for _, b := range r.Bindings {
		for _, h := range []HeldBy{HeldByGuard, HeldByUnknown, HeldByPolicy} {
			out[OrphanCount{b.Name(), h}] = 0
		}
	}
	for k, n := range r.orphans {
		out[k] = n
	}
	return out
}

func (r *Reconciler) update(f func(p *Pass)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.pass)
}

// Resync compares everything in Redis with the tables, and submits what has no
// row: each is then looked at again, and gated, like any event. observe only
// counts. It tells whether there was more than one pass submits.
func (r *Reconciler) Resync(ctx context.Context, term Term, reason string, observe bool, submit func(context.Context, []Suspect) error) (more bool, err error) {
	out, err := r.resync(ctx, term, passOptions{reason: reason, observe: observe, submit: submit})
	return out.more, err
}

// passOptions are how a pass is made.
type passOptions struct {
	reason  string
	observe bool
	// dry: the guard is asked, and is not changed. force goes past it, but not to
	// another database.
	dry, force bool
	submit     func(context.Context, []Suspect) error
}

// passOutcome is how a pass ended: whether there was more than it submits, and how many
// orphans the guard holds, and why.
type passOutcome struct {
	more    bool
	guarded int64
	guard   string
}

func (r *Reconciler) resync(ctx context.Context, term Term, o passOptions) (out passOutcome, err error) {
	resume := Rest(ctx)
	select {
	case r.passing <- struct{}{}: // one at a time: an operator's may come while the daemon makes one
		resume()
		defer func() { <-r.passing }()
	case <-ctx.Done():
		return out, ctx.Err()
	}
	r.update(func(p *Pass) { *p = Pass{Reason: o.reason, Started: r.Now(), Stage: stageScan} })
	ctx, span := r.telemetry.tracer.Start(ctx, spanResync)
	out, err = r.compareAll(ctx, term, o)
	r.telemetry.passed(span, r.Progress(), out, err)
	r.update(func(p *Pass) {
		p.Ended, p.Stage = r.Now(), StageDone
		if err != nil {
			p.Stage, p.Error = stageFailed, err.Error()
		}
	})
	if err != nil {
		return out, fmt.Errorf("resync (%s): %w", o.reason, err)
	}
	return out, nil
}

func (r *Reconciler) compareAll(ctx context.Context, term Term, o passOptions) (out passOutcome, err error) {
	c := newComparison(r)
	scan := func(ctx context.Context) error {
		if err := r.Scanner.Scan(ctx, func(ls []Look) error { return c.add(ctx, ls) }); err != nil {
			return fmt.Errorf("scan redis: %w", err)
		}
		return c.flush(ctx)
	}
	if err := r.telemetry.stage(ctx, stageScan, scan); err != nil {
		return out, err
	}
	m := &messageLook{r: r, unknown: c.unknown}
	if r.Messages != nil {
		if err := r.telemetry.stage(ctx, stageSweep, func(ctx context.Context) error { return r.sweepAll(ctx, m) }); err != nil {
			return out, err
		}
	}
	// A backlog in the slot is evidence deleted, not a mass of absent rows: all
	// that was deleted before the comparison ended must have been read.
	now, err := r.Rows.Running(ctx)
	if err != nil {
		return out, fmt.Errorf("note the log position: %w", err)
	}
	r.update(func(p *Pass) { p.Stage = stageWait })
	if err := r.telemetry.stage(ctx, stageWait, func(ctx context.Context) error { return waitPosition(ctx, term, now.At) }); err != nil {
		return out, err
	}
	r.update(func(p *Pass) { p.Stage = stageJudge })
	var t tally
	var confirmed []confirmedSuspect
	judge := func(ctx context.Context) (err error) {
		t, confirmed, err = r.classify(ctx, c, m)
		return err
	}
	if err := r.telemetry.stage(ctx, stageJudge, judge); err != nil {
		return out, err
	}
	ok, accepted := r.judgePass(ctx, t.Tally, o, &out)
	if !ok {
		t.holdAll(HeldByGuard)
		out.guarded = int64(t.Orphans)
		r.update(func(p *Pass) { p.Guarded = int64(t.Orphans) })
		confirmed = onlyDeleted(confirmed)
	} else if o.observe {
		t.holdAll(HeldByPolicy)
	}
	r.mu.Lock()
	r.orphans = t.held
	r.mu.Unlock()
	if o.observe {
		return out, nil
	}
	r.update(func(p *Pass) { p.Stage = stageSubmit })
	for len(confirmed) > 0 {
		n := min(maxLinks, len(confirmed))
		page := confirmed[:n]
		confirmed = confirmed[n:]
		err := r.telemetry.stage(ctx, stageSubmit, func(ctx context.Context) error {
			return o.submit(ctx, r.suspects(page, accepted, trace.SpanContextFromContext(ctx)))
		})
		if err != nil {
			return out, fmt.Errorf("submit: %w", err)
		}
		r.update(func(p *Pass) { p.Submitted += int64(n) })
	}
	out.more = ok && c.dropped+m.dropped > 0
	return out, nil
}

// suspects are what is submitted of a page; cause is the span that their reconciliations
// link to.
func (r *Reconciler) suspects(page []confirmedSuspect, accepted bool, cause trace.SpanContext) []Suspect {
	batch := make([]Suspect, len(page))
	for i, s := range page {
		batch[i] = Suspect{Look: s.Look, Accepted: accepted, Deleted: s.deleted, Table: r.ownerName(s.in), Cause: cause}
	}
	return batch
}

// judgePass shows the guard what a pass has found. Only one that is neither dry nor
// forced lets events be judged by it.
func (r *Reconciler) judgePass(ctx context.Context, t Tally, o passOptions, out *passOutcome) (ok, accepted bool) {
	switch {
	case o.force && t.Identity == "":
		return true, true
	case o.dry:
		out.guard = r.Guard.Doubt(t)
		return out.guard == "", false
	}
	tripped := r.Guard.Tripped() != nil
	ok, accepted = r.Guard.JudgePass(t)
	r.firstPass.Store(true) // before anything is submitted: that waits for it
	if trip := r.Guard.Tripped(); trip != nil {
		out.guard = trip.Reason
		if !tripped {
			r.logTrip(ctx)
		}
	}
	return ok, accepted
}

// sweepAll compares all messages with the rows.
func (r *Reconciler) sweepAll(ctx context.Context, m *messageLook) error {
	r.update(func(p *Pass) { p.Stage = stageSweep })
	if err := r.FindQueues(ctx); err != nil {
		return fmt.Errorf("find the queues: %w", err)
	}
	err := m.run(ctx, func(ctx context.Context, yield func([]Message) error) error {
		return r.Messages.Sweep(ctx, func(batch []Message) error {
			r.update(func(p *Pass) { p.Messages += int64(len(batch)) })
			return yield(batch)
		})
	})
	if err != nil {
		return fmt.Errorf("sweep over messages: %w", err)
	}
	return nil
}

func waitPosition(ctx context.Context, term Term, at LSN) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for term.Position() < at {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			Beat(ctx) // replication has a pulse of its own
		}
	}
	return nil
}

// confirmedSuspect has been looked at twice and has no row.
type confirmedSuspect struct {
	Look
	deleted bool
	// in are the bindings that it may be of.
	in BindingSet
}

func onlyDeleted(in []confirmedSuspect) (out []confirmedSuspect) {
	for _, s := range in {
		if s.deleted {
			out = append(out, s)
		}
	}
	return out
}

// lookAll is look without works, for a pass.
func (r *Reconciler) lookAll(ctx context.Context, asked []Look) ([]*unit, error) {
	works := make([]*Work, len(asked))
	for i, a := range asked {
		works[i] = &Work{Subject: a.Subject, Spelling: a.Spelling}
	}
	return r.look(ctx, works, make([]*workSpan, len(works)))
}

// ownerName is the table under which something is counted: the first that it may be
// of; where only its arguments would tell, the first that goes by these.
func (r *Reconciler) ownerName(set BindingSet) string {
	for i, b := range r.Bindings {
		if set.Has(i) || set == 0 && b.ByArgument() {
			return b.Name()
		}
	}
	return ""
}
