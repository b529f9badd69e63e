package watcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// term is the sink of its sources.
type term struct {
	c *Controller
	// queue is of tasks and rows, messages of their messages, which are found by a
	// sweep over the broker for as many as there are. They have one bell for room.
	queue, messages *Queue
	lists           *lists
	session         Session
	term            reconciler.Term
	reasons         chan string   // for a resync
	deleted         chan struct{} // has a token when messages of deleted rows were taken
}

// Offer merges e into the queue that it is for.
func (t *term) Offer(e Event) bool {
	if e.Subject.Kind == reconciler.QueueList {
		t.lists.add(e.Subject.ID)
		return true
	}
	if e.Deletion != nil {
		t.c.Remember(e.Subject.Owner())
	}
	return t.queueOf(e.Subject).Offer(e)
}

func (t *term) queueOf(s reconciler.Subject) *Queue {
	if s.Kind.OfMessages() {
		return t.messages
	}
	return t.queue
}

// Room is of both queues.
func (t *term) Room() <-chan struct{} { return t.queue.Room() }

// Gap asks for a resync.
func (t *term) Gap(source, reason string) {
	t.c.telemetry.gap(source, reason)
	t.c.state.gap(source, reason)
	t.c.Log.Warn("a gap: events may have been missed, everything is compared", "source", source, "reason", reason)
	t.request(source + " " + reason)
}

func (t *term) request(reason string) {
	select {
	case t.reasons <- reason:
	default: // enough are waiting already
	}
}

// Report keeps the state of a source.
func (t *term) Report(source string, h Health) { t.c.state.report(source, h) }

// work takes batches of up to limit entries until ctx ends.
func (t *term) work(ctx context.Context, name string, queue *Queue, limit int) error {
	ctx, leave := t.c.Pulse.Enter(ctx, name, callLimit)
	defer leave()
	for {
		reconciler.Beat(ctx)
		batch, err := queue.Take(ctx, limit)
		if err != nil {
			return nil //nolint:nilerr // the term is over
		}
		if err := t.reconcile(ctx, queue, batch); err != nil {
			return err
		}
	}
}

func (t *term) reconcile(ctx context.Context, queue *Queue, batch []*Entry) error {
	works := make([]*reconciler.Work, 0, len(batch))
	entries := batch[:0]
	deletions := 0
	for _, e := range batch {
		if e.Work.Subject.Kind == reconciler.Canary {
			t.c.telemetry.canary(e.Work.Subject.ID, time.Since(e.Work.Seen))
			if e.Work.Subject.ID == SourcePostgres {
				t.c.state.caughtUp()
			}
			queue.Finish(e, false, 0, reconciler.HeldByNothing)
			continue
		}
		entries = append(entries, e)
		works = append(works, &e.Work)
		deletions += len(e.Work.Deletions)
	}
	if len(works) == 0 {
		return nil
	}
	verdicts, err := t.c.Judge.Reconcile(ctx, t.term, works)
	for i, e := range entries {
		v := verdicts[i]
		after, again := v.Again()
		if v.Outcome == "" { // not judged: the term is over
			after, again = time.Second, true
		}
		if !again {
			t.passOn(queue, e, v.Tasks)
		}
		queue.Finish(e, again, after, v.HeldBy)
	}
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if queue == t.messages && deletions > 0 {
		t.noteDeleted()
	}
	i := slices.IndexFunc(verdicts, func(v reconciler.Verdict) bool { return v.Err != nil })
	if i < 0 {
		t.c.state.failing(nil)
		return nil
	}
	t.c.state.failing(verdicts[i].Err)
	if ctx.Err() == nil {
		t.c.telemetry.logFailure(works[i].Traced(ctx), t.c.Log, verdicts[i].Err)
		pause(ctx, 100*time.Millisecond) // a store is away: no need to spin through the queue
	}
	return nil
}

// passOn puts the tasks that an entry has led to into the queue of tasks, on the
// same evidence. The entry is acknowledged when they are done.
func (t *term) passOn(from *Queue, e *Entry, tasks []reconciler.Look) {
	if len(tasks) == 0 {
		return
	}
	l := newLatch(len(tasks)*len(e.Work.Deletions) + 1)
	l.release(from.Detach(e))
	for _, task := range tasks {
		for i := range e.Work.Deletions { // their trails have ended: these are traces of their own
			// Not by our Offer: what is remembered is the row's deletion, not the task's.
			t.queue.Offer(Event{
				Subject: task.Subject, Spelling: task.Spelling, Trigger: e.Work.Trigger, Seen: e.Work.Seen,
				Deletion: &e.Work.Deletions[i], Done: l.done, Inner: true,
			})
		}
	}
	l.done()
}

// drain waits until nothing is in hand that could be done now.
func (t *term) drain(ctx context.Context) {
	deadline := time.NewTimer(t.c.DrainTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		n := t.queue.Stats().InHand + t.messages.Stats().InHand
		if n == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-deadline.C:
			t.c.Log.WarnContext(ctx, "stopping with work in hand: it is taken up again at the next start", "entries", n)
			return
		case <-tick.C:
		}
	}
}

// resyncLoop makes a pass at start, for each gap (those that come together make
// one), and every interval.
func (t *term) resyncLoop(ctx context.Context, subscribed <-chan struct{}) error {
	ctx, leave := t.c.Pulse.Enter(ctx, "resync", PassLimit)
	defer leave()
	resume := reconciler.Rest(ctx)
	select {
	case <-ctx.Done():
		return nil
	case <-subscribed:
	}
	resume()
	reason := "start"
	every := time.NewTicker(t.c.ResyncInterval)
	defer every.Stop()
	var wait retry
	for {
		reason = t.coalesce(reason)
		t.c.telemetry.resync(reason)
		more, err := t.c.Judge.Resync(ctx, t.term, reason, t.c.ObserveFirst && !t.c.observed, t.submit)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			t.c.Log.ErrorContext(ctx, "a resync has failed: will try again", "error", err, "in", wait.next().String())
			if !wait.sleep(ctx) {
				return nil
			}
			continue
		case more:
			// What was submitted is in the queue for the grace at least.
			resume := reconciler.Rest(ctx)
			if !pause(ctx, t.c.Grace+time.Second) {
				return nil
			}
			resume()
			reason = "more orphans than one pass submits"
			continue
		}
		wait.succeeded()
		t.c.observed = true
		resume := reconciler.Rest(ctx)
		select {
		case <-ctx.Done():
			return nil
		case reason = <-t.reasons:
		case <-every.C:
			reason = "interval"
		}
		resume()
	}
}

// coalesce takes what else asks for a pass: it is the same one.
func (t *term) coalesce(reason string) string {
	for {
		select {
		case <-t.reasons:
		default:
			return reason
		}
	}
}

// submit offers what a pass suspects, waiting for room.
func (t *term) submit(ctx context.Context, suspects []reconciler.Suspect) error {
	return t.offerAll(ctx, reconciler.ByResync, suspects)
}

func (t *term) offerAll(ctx context.Context, trigger reconciler.Trigger, suspects []reconciler.Suspect) error {
	for _, s := range suspects {
		e := Event{Subject: s.Subject, Spelling: s.Spelling, Message: s.Message, Trigger: trigger, Seen: time.Now(), Accepted: s.Accepted, Cause: s.Cause}
		for {
			room := t.Room()
			if t.Offer(e) {
				break
			}
			resume := reconciler.Rest(ctx) // whoever makes room has a pulse of its own
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-room:
			}
			resume()
		}
	}
	return nil
}

// orders carries out what operators ask for.
func (t *term) orders(ctx context.Context) error {
	ctx, leave := t.c.Pulse.Enter(ctx, "orders", callLimit)
	defer leave()
	for {
		reconciler.Beat(ctx)
		resync, err := t.c.Desk.Orders(ctx)
		if errors.Is(err, reconciler.ErrStale) {
			return fmt.Errorf("orders: %w", err)
		}
		if err != nil && ctx.Err() == nil {
			t.c.telemetry.logFailure(ctx, t.c.Log, err)
		}
		if resync != "" { // as a resume asks for
			t.queue.Hurry(reconciler.HeldByPause)
			t.messages.Hurry(reconciler.HeldByPause)
			t.request(resync)
		}
		if !pause(ctx, deskInterval) {
			return nil
		}
	}
}
