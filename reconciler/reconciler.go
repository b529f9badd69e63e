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

// ErrLate is that of a look at the rows that is too old to be acted on.
var ErrLate = errors.New("the rows were read too long ago")

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
		// Scanned is how many keys the newest Scan has gone over, of how many.
		Scanned() (done, total int64)
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
	Pages     Pages
	Tables    Tables
	Results   Results
	// Children are the child rows, for CleanupDatabase alone.
	Children Children
	// RecordIdentity keeps the database's identity at the first start, and gives
	// the one that was kept then.
	RecordIdentity func(ctx context.Context, identity string) (kept string, err error)
	Guard          *Guard
	// Messages is the broker, nil where messages are not looked at. FindQueues finds
	// its queues anew, before each pass.
	Messages   Messages
	FindQueues func(ctx context.Context) error
	// Queues of the broker, to be counted and purged; nil where they are not.
	Queues Queues
	// Memory of deletions seen; shared with whoever offers them.
	Memory *Memory
	Log    *slog.Logger
	// Stores are what spans tell of them.
	Stores Stores
	// Now is the clock; nil for time.Now.
	Now func() time.Time
}

// Reconciler reads both stores, decides and acts. It is the one service behind
// the daemon, the command line and the HTTP API.
type Reconciler struct {
	Options
	telemetry *telemetry

	// byArgument: some binding leads from a task's arguments to a row; byID: some
	// leads there from its id.
	byArgument, byID bool
	revokes          *revokes
	seen             *Seen
	// met are messages of living rows that the guard has counted, by their ids and tags.
	met *Memory

	firstPass atomic.Bool
	foreign   atomic.Bool
	pendings  pendings
	// passing is held by the pass under way, cleaning by an operator's cleanup.
	passing, cleaning chan struct{}

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
	r := &Reconciler{Options: o, revokes: newRevokes(), seen: NewSeen(seenLimit, seenAge, o.Now), met: NewMemory(seenLimit)}
	r.passing, r.cleaning = make(chan struct{}, 1), make(chan struct{}, 1)
	for _, b := range o.Bindings {
		r.byArgument = r.byArgument || b.ByArgument()
		r.byID = r.byID || b.CeleryID || len(b.Columns) > 0
	}
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

// What is remembered of messages: so many tasks, some 300 bytes each, and for so long.
const (
	seenLimit = 100_000
	seenAge   = 24 * time.Hour
)

// promptWindow is how long after its commit a deletion is acted on at once.
const promptWindow = time.Second

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
	r.telemetry.end(ctx, works, verdicts, spans, start)
	if stale {
		return verdicts, ErrStale
	}
	return verdicts, nil
}

const maxRetry = 5 * time.Second

func failed(err error, attempts int) Verdict {
	if errors.Is(err, ErrPaused) { // a revoke: the others have answers of their own
		v := Verdict{}
		v.refused(Paused)
		return v
	}
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
	messages := works[0].Subject.Kind.OfMessages() // they have a queue of their own
	find := r.look
	if messages {
		find = func(ctx context.Context, works []*Work, spans []*workSpan) ([]*unit, error) {
			return r.findMessages(ctx, term, works, spans)
		}
	}
	units, err := find(ctx, works, spans)
	if err != nil {
		return err
	}
	r.notice(works, units)
	if err := r.decide(ctx, term, works, units, spans); err != nil {
		return err
	}
	// Looking at messages again is dear, so what only waits for nobody to be
	// inserting the row is judged again at once.
	if late := unfenced(units); messages && len(late) > 0 {
		if err := r.judgeLate(ctx, term, works, units, late, spans); err != nil {
			return err
		}
	}
	err = errors.Join(
		r.remove(ctx, term, units, verdicts, spans),
		r.takeMessages(ctx, term, works, units, verdicts, spans))
	reviving := r.revive(ctx, term, units)
	err = errors.Join(err, reviving,
		r.fence(ctx, unfenced(units))) // without one, the next look takes it
	for _, u := range units {
		switch {
		case reviving != nil && u.revives():
			verdicts[u.of].merge(failed(reviving, works[u.of].Attempts+1))
		case u.late:
			late := Verdict{Decision: u.decision}
			late.refused(Late)
			verdicts[u.of].merge(late)
		case !u.acts():
			verdicts[u.of].merge(Verdict{Decision: u.decision})
		case !u.done && err != nil:
			verdicts[u.of].merge(failed(err, works[u.of].Attempts+1))
		}
		// A deleted row's messages lead to its tasks, whose results go as well.
		if u.work.Subject.Kind == RowMessages && u.look.Subject.Kind == Task && len(u.work.Deletions) > 0 && !u.row.Exists {
			verdicts[u.of].Tasks = append(verdicts[u.of].Tasks, u.look)
		}
	}
	for i := range works {
		if verdicts[i].Outcome == "" && err == nil {
			verdicts[i].Decision = Decision{Outcome: OutcomeNoop, Reason: "nothing of it is there"}
		}
	}
	return err
}

// notice tells each work what was found of it, in all its units.
func (r *Reconciler) notice(works []*Work, units []*unit) {
	found := make([][]Artifact, len(works))
	for _, u := range units {
		found[u.of] = append(append(found[u.of], u.found.Artifacts...), u.more...)
	}
	for i, w := range works {
		if w.Subject.Kind.OfMessages() {
			w.noticeMessages(found[i], r.Now())
		} else {
			w.notice(digestOf(found[i]), r.Now())
		}
	}
}

func (r *Reconciler) decide(ctx context.Context, term Term, works []*Work, units []*unit, spans []*workSpan) error {
	began := r.Now()
	for _, u := range units {
		u.situation = r.situation(term, u, r.Now())
		u.decision = Decide(u.situation)
	}
	err := r.guard(ctx, works, units)
	r.telemetry.step(spansOf(units, spans), r.telemetry.steps.decide, began, err)
	return err
}

// judgeLate fences units that were too late to be prompt, and judges them again
// where nothing runs.
func (r *Reconciler) judgeLate(ctx context.Context, term Term, works []*Work, units []*unit, late []*Work, spans []*workSpan) error {
	if err := r.fence(ctx, late); err != nil {
		return err
	}
	if err := r.observeFences(ctx, late); err != nil {
		return err
	}
	if err := r.lookRows(ctx, works, units, spans); err != nil {
		return err
	}
	return r.decide(ctx, term, works, units, spans)
}

// unfenced are the works that wait, and have no fence yet.
func unfenced(units []*unit) (works []*Work) {
	for _, u := range units {
		if u.decision.Outcome == OutcomeDeferred && u.work.Fence == nil {
			works = append(works, u.work)
		}
	}
	return works
}

func (r *Reconciler) situation(term Term, u *unit, now time.Time) Situation {
	guard, guardAll := "", false
	if t := r.Guard.Tripped(); t != nil {
		guard, guardAll = t.Reason, t.All
	}
	w := u.work
	policy := r.Policy
	if w.Explicit {
		policy.Remove = RemoveAll
	}
	return Situation{
		Bindings: r.Bindings, Policy: policy, Subject: u.look.Subject, Row: u.row, Found: u.found,
		Deletions: w.Deletions, Visible: u.sees, Fresh: len(w.Deletions) > 0 && !w.changed,
		Prompt:     u.prompt && !u.found.Deleted,
		Remembered: r.remembers(u.look),
		Attempts:   w.Attempts,
		Age:        now.Sub(w.since), Fence: fenceState(w.Fence), Behind: w.Fence != nil && term.Position() < w.Fence.At(),
		FirstPass: r.firstPass.Load(), Foreign: r.foreign.Load(), Guard: guard, GuardAll: guardAll, Accepted: w.Accepted,
		MayRun: u.mayRun, More: len(u.more) > 0,
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
