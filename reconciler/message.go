package reconciler

import (
	"context"
	"strings"
	"time"
)

// RowRef names a row by its key, as an argument of a task does.
type RowRef struct {
	// Binding is the index of the row's binding.
	Binding int
	// Key is the row's key in its canonical spelling (CanonicalID), if that leads back to
	// how it is written (Spellings), else as it is written: see NewRowRef.
	Key string
}

// Message is a Celery message, as the broker holds it.
type Message struct {
	// ID is the task's id as it is written, Name the task's name.
	ID, Name string
	// Refs are the rows that its arguments name, by the rules args:N and kwargs:K
	// of the bindings that have its name.
	Refs []RowRef
	// InChord: it is a member of a chord's header, whose Body runs when all members
	// have ended; Body is nil where the message does not let us see it.
	InChord bool
	Body    *ChordBody
	// TraceParent is the header traceparent (W3C Trace Context), "" for none.
	TraceParent string
	Place       Place
}

// ChordBody is the task that a chord ends with.
type ChordBody struct {
	ID, Name string
	Refs     []RowRef
}

// Place is where a message is, and what must still be there when it is taken.
type Place struct {
	// Kind is QueuedMessage or UnackedMessage.
	Kind ArtifactKind
	// List is the key of its queue's list; of an unacked one, that to which a worker
	// that gives it back pushes it.
	List string
	// Index is its place in List when it was read, from the head. It is a hint.
	Index int64
	// Tag is the delivery tag: it stays when the message is given back.
	Tag string
	// Envelope are the message's own bytes. Held is the whole value of the field in
	// the hash of unacked messages, "" for a queued one.
	Envelope, Held string
}

// task is the subject that the message is of.
func (m *Message) task() Subject { return TaskSubject(m.ID) }

// look asks for the task that the message is of.
func (m *Message) look() Look {
	l := LookFor(m.task(), m.ID)
	l.Refs = m.Refs
	return l
}

// Bare is a copy that keeps nothing of the message's bytes alive.
func (m *Message) Bare() *Message {
	b := *m
	b.ID, b.Name, b.TraceParent = strings.Clone(m.ID), strings.Clone(m.Name), strings.Clone(m.TraceParent)
	b.Refs = cloneRefs(m.Refs)
	if m.Body != nil {
		b.Body = &ChordBody{strings.Clone(m.Body.ID), strings.Clone(m.Body.Name), cloneRefs(m.Body.Refs)}
	}
	b.Place = Place{Kind: m.Place.Kind, Tag: strings.Clone(m.Place.Tag)}
	return &b
}

func cloneRefs(refs []RowRef) []RowRef {
	out := make([]RowRef, len(refs))
	for i, r := range refs {
		out[i] = RowRef{r.Binding, strings.Clone(r.Key)}
	}
	return out
}

// Pull asks for one message to be taken out of the broker, only while it is
// what it was when it was read.
type Pull struct {
	// Subject is the task.
	Subject Subject
	Message Message
	// Looked is as in Removal.
	Looked time.Time
}

// Messages is the broker as the reconciler needs it.
type Messages interface {
	// Sweep yields every message that can be read: the unacked ones first, then each
	// list from the head to the tail, then what became unacked meanwhile; some more
	// than once. It leaves the server its share of the time. What is not in a list and
	// not unacked (in the hands of a worker that has just popped it) is not seen.
	Sweep(ctx context.Context, yield func([]Message) error) error
	// Pull answers in order: Removed; Changed where the message is not there any
	// more (popped, given back, acknowledged); Stale, Paused, Held or Late.
	Pull(ctx context.Context, epoch uint64, pulls []Pull) ([]RemoveStatus, error)
	// Revoke tells all workers not to run these tasks. It gives how many heard it, and
	// how many there should be. It refuses with ErrStale where epoch is not the newest
	// leader's, with ErrLate where the rows were read over RowsGood ago, with
	// ErrPaused in a pause.
	Revoke(ctx context.Context, epoch uint64, looked time.Time, ids []string) (heard, workers int, err error)
	// Release ends an operator's hold on the messages of tasks whose row exists, as
	// Artifacts.Revive does.
	Release(ctx context.Context, epoch uint64, revivals []Revival) (late []bool, err error)
}
