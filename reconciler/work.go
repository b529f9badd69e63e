package reconciler

import (
	"hash/maphash"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Work is one subject to reconcile, with what its earlier looks have left. It
// belongs to one goroutine at a time.
type Work struct {
	Subject  Subject
	Spelling string
	Trigger  Trigger
	// Seen is when the first of the merged events was seen.
	Seen time.Time
	// Deletions: the newest for each binding.
	Deletions []Deletion
	// Accepted: an operator let the pass that found it through the guard.
	Accepted bool
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
	// last is the span of the previous attempt.
	last trace.SpanContext
}

// Renew makes the next look the first one: a newer deletion was seen.
func (w *Work) Renew() { w.looked, w.changed = false, false }

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

// Verdict is how the reconciliation of a Work ended.
type Verdict struct {
	Decision
	// Removed counts what was removed.
	Removed map[ArtifactKind]int
	// Err is why the outcome is OutcomeError.
	Err error
}

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
