package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrStale says that another leader has taken over: whoever gets it must stop.
var ErrStale = errors.New("another leader has taken over: the epoch in Redis is not ours")

// Term is one copy's time as the leader.
type Term struct {
	// Epoch is compared inside every removal.
	Epoch uint64
	// Position is the log position up to which replication has been handed on.
	Position func() LSN
}

type (
	// Scanner lists what Redis holds, paced, and some of it more than once.
	Scanner interface {
		Scan(ctx context.Context, yield func([]Look) error) error
	}
	// Tables lists the rows of the bound tables.
	Tables interface {
		// Estimate is about how many rows binding i has.
		Estimate(ctx context.Context, i int) (int64, error)
		// EachID streams all the task ids of binding i: keys and columns.
		EachID(ctx context.Context, i int, yield func(id string) error) error
		// Identity names the database: system identifier and name.
		Identity(ctx context.Context) (string, error)
	}
)

// Options are what a Reconciler needs.
type Options struct {
	Bindings  []Binding
	Policy    Policy
	Artifacts Artifacts
	Rows      Rows
	Scanner   Scanner
	Tables    Tables
	// RecordIdentity keeps the database's identity at the first start, and gives
	// the one that was kept then.
	RecordIdentity func(ctx context.Context, identity string) (kept string, err error)
	Guard          *Guard
	// Memory of deletions seen; shared with whoever offers them.
	Memory *Memory
	Log    *slog.Logger
	// Now is the clock; nil for time.Now.
	Now func() time.Time
}

// Reconciler reads both stores, decides and acts. It is the one service behind
// the daemon, the command line and the HTTP API.
type Reconciler struct {
	Options
	telemetry *telemetry

	firstPass atomic.Bool
	foreign   atomic.Bool

	mu      sync.Mutex
	waiting []Transaction
	orphans map[OrphanCount]int64
	pass    Pass
}

// New is a Reconciler.
func New(o Options) (*Reconciler, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Reconciler{Options: o}
	t, err := newTelemetry(r)
	if err != nil {
		return nil, fmt.Errorf("instruments: %w", err)
	}
	r.telemetry = t
	return r, nil
}

// BeginTerm forgets what only holds within one term: weak evidence waits for a
// pass of the new one, and rows are read on new connections.
func (r *Reconciler) BeginTerm() {
	r.firstPass.Store(false)
	r.Rows.Reset()
}

// promptWindow is how long after its commit a deletion is acted on at once.
const promptWindow = time.Second

// look is what one batch knows of one work.
type look struct {
	found Found
	row   RowState
	// sees: every deletion is visible to the rows; prompt: all were committed just now.
	sees, prompt bool
}

// Reconcile judges a batch and acts on it; one Verdict each, in order. An error
// of a store is in the verdicts of what depended on it. The error is ErrStale
// alone, and then nothing was removed that is not in the verdicts.
func (r *Reconciler) Reconcile(ctx context.Context, term Term, works []*Work) ([]Verdict, error) {
	start := r.Now()
	verdicts := make([]Verdict, len(works))
	spans := r.telemetry.start(ctx, works, start)

	err := r.observeFences(ctx, works)
	if err == nil {
		err = r.judge(ctx, term, works, verdicts, spans)
	}
	stale := errors.Is(err, ErrStale)
	for i, w := range works {
		w.Attempts++
		if err != nil && verdicts[i].Outcome == "" {
			verdicts[i] = failed(err, w.Attempts)
		}
	}
	r.telemetry.end(ctx, works, verdicts, spans, start, r.Now())
	if stale {
		return verdicts, ErrStale
	}
	return verdicts, nil
}

const maxRetry = 5 * time.Second

func failed(err error, attempts int) Verdict {
	after := min(50*time.Millisecond<<min(attempts, 7), maxRetry)
	return Verdict{
		Decision: Decision{Outcome: OutcomeError, HeldBy: HeldByError, After: after, Reason: err.Error()},
		Err:      err,
	}
}

// observeFences brings the fences of the batch up to date, before anything is read.
func (r *Reconciler) observeFences(ctx context.Context, works []*Work) error {
	var fences []*Fence
	for _, w := range works {
		if w.Fence != nil && (len(fences) == 0 || fences[len(fences)-1] != w.Fence) && !w.Fence.Ended() {
			fences = append(fences, w.Fence)
		}
	}
	if len(fences) == 0 {
		return nil
	}
	running, err := r.Rows.Running(ctx)
	if err != nil {
		return fmt.Errorf("list running transactions: %w", err)
	}
	waiting := map[string]Transaction{}
	for _, f := range fences {
		f.Observe(running)
		for _, t := range f.Waiting() {
			waiting[t.ID] = t
		}
	}
	r.mu.Lock()
	r.waiting = slices.Collect(maps.Values(waiting))
	r.mu.Unlock()
	return nil
}

// Waiting lists the open transactions that held removals at the last look.
func (r *Reconciler) Waiting() []Transaction {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

func (r *Reconciler) judge(ctx context.Context, term Term, works []*Work, verdicts []Verdict, spans []*workSpan) error {
	looks, err := r.look(ctx, works, spans)
	if err != nil {
		return err
	}
	situations := make([]Situation, len(works))
	decisions := make([]Decision, len(works))
	for i, w := range works {
		now := r.Now()
		w.notice(digestOf(looks[i].found.Artifacts), now)
		situations[i] = r.situation(term, w, &looks[i], now)
		decisions[i] = Decide(situations[i])
	}
	if err := r.guard(ctx, works, situations, decisions); err != nil {
		return err
	}
	var removals []Removal
	var of []int
	var unfenced []*Work
	for i, w := range works {
		d := decisions[i]
		switch {
		case d.Outcome == OutcomeRemoved: // a verdict only once it is carried out
			removals = append(removals, Removal{Subject: w.Subject, Artifacts: d.Remove, Record: r.record(w, d, spans[i], r.Now())})
			of = append(of, i)
			continue
		case d.Outcome == OutcomeDeferred && w.Fence == nil:
			unfenced = append(unfenced, w)
		}
		verdicts[i].Decision = d
	}
	return errors.Join(
		r.remove(ctx, term, decisions, verdicts, removals, of, spans),
		r.revive(ctx, works, looks),
		r.fence(ctx, unfenced), // without one, the next look takes it
	)
}

// revive forgets the deletions of rows that exist again.
func (r *Reconciler) revive(ctx context.Context, works []*Work, looks []look) error {
	var revived []Subject
	for i, w := range works {
		l := &looks[i]
		if !l.row.Exists || !l.sees {
			continue
		}
		r.Memory.Forget(w.Subject)
		if l.found.Deleted || !l.found.HoldUntil.IsZero() {
			revived = append(revived, w.Subject)
		}
	}
	if len(revived) == 0 {
		return nil
	}
	return r.Artifacts.Revive(ctx, revived)
}

// look reads the artifacts of the batch, then the rows of those that have any.
func (r *Reconciler) look(ctx context.Context, works []*Work, spans []*workSpan) ([]look, error) {
	asked := make([]Look, len(works))
	for i, w := range works {
		asked[i] = Look{Subject: w.Subject, Spelling: w.Spelling}
	}
	began := r.Now()
	found, err := r.Artifacts.Look(ctx, asked)
	if err != nil {
		return nil, fmt.Errorf("read artifacts: %w", err)
	}
	r.telemetry.step(ctx, spans, stepArtifacts, began, r.Now())
	looks := make([]look, len(works))
	var rows []Look
	var of []int
	for i := range works {
		looks[i].found = found[i]
		if len(found[i].Artifacts) > 0 {
			rows = append(rows, asked[i])
			of = append(of, i)
		}
	}
	if len(rows) == 0 {
		return looks, nil
	}
	began = r.Now()
	answer, err := r.Rows.Look(ctx, rows)
	if err != nil {
		return nil, fmt.Errorf("read rows: %w", err)
	}
	r.telemetry.step(ctx, spans, stepRows, began, r.Now())
	for j, i := range of {
		looks[i].row = answer.States[j]
		looks[i].sees, looks[i].prompt = true, len(works[i].Deletions) > 0
		for _, d := range works[i].Deletions {
			looks[i].sees = looks[i].sees && answer.Snapshot.Sees(d.Commit.XID)
			looks[i].prompt = looks[i].prompt && answer.Snapshot.At.Sub(d.Commit.Time) < min(promptWindow, r.Policy.Grace)
		}
		r.noteForeign(found[i])
	}
	return looks, nil
}

func (r *Reconciler) situation(term Term, w *Work, l *look, now time.Time) Situation {
	guard, guardAll := "", false
	if t := r.Guard.Tripped(); t != nil {
		guard, guardAll = t.Reason, t.All
	}
	return Situation{
		Bindings: r.Bindings, Policy: r.Policy, Subject: w.Subject, Row: l.row, Found: l.found,
		Deletions: w.Deletions, Visible: l.sees, Fresh: len(w.Deletions) > 0 && !w.changed,
		Prompt:     l.prompt && !l.found.Deleted,
		Remembered: r.Memory.Has(w.Subject),
		Attempts:   w.Attempts,
		Age:        now.Sub(w.since), Fence: fenceState(w.Fence), Behind: w.Fence != nil && term.Position() < w.Fence.At(),
		FirstPass: r.firstPass.Load(), Foreign: r.foreign.Load(), Guard: guard, GuardAll: guardAll, Accepted: w.Accepted,
	}
}

func fenceState(f *Fence) FenceState {
	switch {
	case f == nil:
		return NoFence
	case !f.Ended():
		return FenceOpen
	}
	return FencePassed
}

// fence takes one fence around all of these works, which have been looked at.
func (r *Reconciler) fence(ctx context.Context, works []*Work) error {
	if len(works) == 0 {
		return nil
	}
	running, err := r.Rows.Running(ctx)
	if err != nil {
		return fmt.Errorf("list running transactions: %w", err)
	}
	f := NewFence(r.Now(), running)
	for _, w := range works {
		w.Fence = f
	}
	return nil
}

func (r *Reconciler) remove(ctx context.Context, term Term, decisions []Decision, verdicts []Verdict, removals []Removal, of []int, spans []*workSpan) error {
	if len(removals) == 0 {
		return nil
	}
	began := r.Now()
	results, err := r.Artifacts.Remove(ctx, term.Epoch, removals)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	removed := make([]*workSpan, len(of))
	for j, i := range of {
		removed[j] = spans[i]
	}
	r.telemetry.step(ctx, removed, stepRemove, began, r.Now())
	for j, i := range of {
		d, res := decisions[i], results[j]
		v := Verdict{Decision: d, Removed: res.Count}
		switch res.Status {
		case Removed:
			if total(res.Count) == 0 {
				v.Outcome, v.Reason = OutcomeNoop, "it has gone by itself"
			}
		case Changed:
			v.Outcome, v.HeldBy, v.After = OutcomeDeferred, HeldByChange, 0
			v.Reason = "it was written again meanwhile"
		case Paused:
			v.Outcome, v.HeldBy, v.After = OutcomeDeferred, HeldByPause, maxRetry
			v.Reason = "removals are paused"
		case Held:
			v.Outcome, v.HeldBy = OutcomeReported, HeldByRestore
			v.Reason = "restored by an operator"
		case Stale:
			err = ErrStale
			continue
		}
		verdicts[i] = v
	}
	return err
}

func total(counts map[ArtifactKind]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func (r *Reconciler) record(w *Work, d Decision, span *workSpan, now time.Time) Record {
	rec := Record{Evidence: d.Evidence, Trigger: w.Trigger, Removed: now, TraceID: span.traceID()}
	if n := len(w.Deletions); n > 0 {
		del := w.Deletions[n-1]
		rec.Table, rec.Key = r.Bindings[del.Binding].Name(), del.Key
		rec.LSN, rec.XID, rec.CommitTime = del.Commit.LSN.String(), del.Commit.XID, del.Commit.Time
	} else if w.Subject.Kind == Row {
		rec.Table, rec.Key = r.Bindings[w.Subject.Binding].Name(), w.Subject.ID
	}
	return rec
}

func (r *Reconciler) noteForeign(f Found) {
	for _, a := range f.Artifacts {
		if ForeignName(r.Bindings, a.Name) && !r.foreign.Swap(true) {
			r.Log.Info("other tasks share this place in Redis: results without a task name are only reported from now on",
				"name", a.Name, "fix", "set exclusive: true for the binding if that is wrong")
		}
	}
}

func (r *Reconciler) names(set BindingSet) (names []string) {
	for i, b := range r.Bindings {
		if set.Has(i) {
			names = append(names, b.Name())
		}
	}
	return names
}
