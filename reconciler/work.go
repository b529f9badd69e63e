package reconciler

import (
	"context"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Work is one subject to reconcile, with what its earlier looks have left. It
// belongs to one goroutine at a time.
type Work struct {
	Subject  Subject
	Spelling string
	// Messages were there when they were last looked for, or were seen since; bare.
	Messages []*Message
	Trigger  Trigger
	// Seen is when the first of the merged events was seen.
	Seen time.Time
	// Origin is when the lag begins, by our clock: at the commit of the first deletion,
	// where there is one; zero for Seen.
	Origin time.Time
	// Cause is the span of the pass that found it.
	Cause trace.SpanContext
	// Deletions: the newest for each binding.
	Deletions []Deletion
	// Accepted: an operator let the pass that found it through the guard.
	Accepted bool
	// Explicit: an operator asked for it, whatever policy.remove says.
	Explicit bool
	// Fence was taken after the first look at what is there now; nil for none yet.
	Fence *Fence
	// Attempts is how often it has been reconciled.
	Attempts int

	// looked: there was a look since the newest deletion, and changed: a later
	// one found other artifacts than that one.
	looked, changed bool
	// touched: an event of its keys has come since the last look, so that they were
	// written again, though maybe to the same value.
	touched bool
	// since is when the artifacts, whose digest is kept, were first seen as they are.
	since  time.Time
	digest uint64
	// tags are the messages that have been found, by a hash of their delivery tags.
	tags map[uint64]struct{}
	// missed are tasks of which a message was not where it had been: a worker may have it.
	missed map[Subject]struct{}
	// counted: the guard has counted it. removed: something of it has been removed.
	counted, removed bool
	// last is the span of the previous attempt.
	last trace.SpanContext
}

// maxMessages bounds what a work remembers of messages.
const maxMessages = 16

// See takes in a message that was seen.
func (w *Work) See(m *Message) {
	for _, known := range w.Messages {
		if known.Place.Tag == m.Place.Tag {
			return
		}
	}
	if len(w.Messages) < maxMessages {
		w.Messages = append(w.Messages, m)
	}
}

// waits tells whether transactions are open that ran when it was looked at.
func (w *Work) waits() bool { return w.looked && w.Fence != nil && !w.Fence.Ended() }

func (w *Work) miss(task Subject) {
	if w.missed == nil {
		w.missed = map[Subject]struct{}{}
	}
	w.missed[task] = struct{}{}
}

// Renew makes the next look the first one: a newer deletion was seen, by this commit.
// Its lag begins with the first that has not been acted on.
func (w *Work) Renew(by *Commit) {
	if len(w.Deletions) == 0 || w.removed {
		w.Origin = by.LocalTime
	}
	w.looked, w.changed, w.removed = false, false, false
}

// Touch says that an event of its keys has come.
func (w *Work) Touch() { w.touched = true }

// Touched tells whether one has come since the last look.
func (w *Work) Touched() bool { return w.touched }

// notice takes in what a look found. What is not as it was at the last look is
// as if seen just now: R3 no longer holds for it, and R4 begins anew.
func (w *Work) notice(digest uint64, now time.Time) {
	if w.since.IsZero() || digest != w.digest || (w.touched && w.looked) {
		w.changed = w.looked
		w.since, w.digest, w.Fence = now, digest, nil
	}
	w.looked, w.touched = true, false
}

// noticeMessages is notice for messages. One that is not there any more changes
// nothing: only one that has appeared does. Wherever a message is, it is the same.
func (w *Work) noticeMessages(found []Artifact, now time.Time) {
	appeared := false
	for _, a := range found {
		tag := maphash.String(digestSeed, a.Message.Place.Tag)
		if _, known := w.tags[tag]; known {
			continue
		}
		if appeared = true; w.tags == nil {
			w.tags = map[uint64]struct{}{}
		}
		w.tags[tag] = struct{}{}
	}
	if w.since.IsZero() || appeared {
		w.changed = w.looked
		w.since, w.Fence = now, nil
	}
	w.looked, w.touched = true, false
}

// Traced is ctx within the trace of the last attempt, for log lines.
func (w *Work) Traced(ctx context.Context) context.Context {
	if !w.last.IsValid() {
		return ctx
	}
	return trace.ContextWithSpanContext(ctx, w.last)
}

// Verdict is how the reconciliation of a Work ended.
type Verdict struct {
	Decision
	// Removed counts what was removed.
	Removed map[ArtifactKind]int
	// At is when the first of it was removed, zero for nothing.
	At time.Time
	// Tasks are those whose messages name the row that was deleted: their results are
	// to be looked at on the same evidence.
	Tasks []Look
	// Err is why the outcome is OutcomeError.
	Err error
}

// merge adds how another part of the same work ended: what has to come back decides,
// then what was done.
func (v *Verdict) merge(part Verdict) {
	rank := func(o Outcome) int { return slices.Index(severity, o) }
	removed, at := v.Removed, v.At
	tasks := append(v.Tasks, part.Tasks...)
	switch {
	case rank(part.Outcome) == rank(v.Outcome) && v.Outcome == OutcomeDeferred:
		if part.After < v.After {
			v.Decision = part.Decision
		}
	case rank(part.Outcome) > rank(v.Outcome):
		*v = part
	}
	v.Tasks = tasks
	if v.At = part.At; !at.IsZero() {
		v.At = at
	}
	switch {
	case removed == nil:
		v.Removed = part.Removed
	case part.Removed != nil:
		v.Removed = maps.Clone(removed)
		for kind, n := range part.Removed {
			v.Removed[kind] += n
		}
	default:
		v.Removed = removed
	}
}

// severity are the outcomes, the least first.
var severity = []Outcome{"", OutcomeNoop, OutcomeKept, OutcomeReported, OutcomeGuarded, OutcomeRemoved, OutcomeDeferred, OutcomeError}

// Again tells whether, and in how long, the work has to come back.
func (v Verdict) Again() (after time.Duration, again bool) {
	return v.After, v.Outcome == OutcomeDeferred || v.Outcome == OutcomeError
}

var digestSeed = maphash.MakeSeed()

// digestOf tells artifacts that were looked at from any later ones.
func digestOf(artifacts []Artifact) uint64 {
	var h maphash.Hash
	h.SetSeed(digestSeed)
	for _, a := range artifacts {
		maphash.WriteComparable(&h, a.Key)
		maphash.WriteComparable(&h, a.Stamp)
	}
	return h.Sum64()
}
