package watcher

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Queue holds one entry per subject. Events of a subject are merged, one worker
// at a time has it, and what has to come back does so when it is due. Entries
// with a deletion come first, and have a limit of their own, so that no flood of
// weak events stands in their way.
//
// client-go's workqueue was weighed for this: it merges keys only, and what an
// event carries (the newest deletion, acknowledgements, the fence) must be merged
// with the same lock held, has a bound, and is taken in batches.
type Queue struct {
	limit int
	now   func() time.Time

	mu      sync.Mutex
	entries map[reconciler.Subject]*Entry
	strong  fifo
	weak    fifo
	later   laterHeap
	size    [2]int        // entries without and with a deletion
	refused [2]bool       // an Offer has been, and waits for room
	room    *bell         // rung when there may be room again
	ready   chan struct{} // holds a token while there may be something to take
	running int
}

// Entry is a subject in the queue.
type Entry struct {
	Work reconciler.Work

	dones  []func() // by deletion, in its order; then of events without one
	strong bool
	state  entryState
	due    time.Time
	index  int // in later
	heldBy reconciler.HeldBy
	// next holds what came while a worker had the entry.
	next *Entry
}

type entryState uint8

const (
	stateReady entryState = iota
	stateLater
	stateRunning
)

// NewQueue is a queue of up to limit entries with a deletion and as many without.
func NewQueue(limit int) *Queue { return newQueue(limit, newBell()) }

func newQueue(limit int, room *bell) *Queue {
	return &Queue{
		limit: limit, now: time.Now,
		entries: map[reconciler.Subject]*Entry{},
		room:    room,
		ready:   make(chan struct{}, 1),
	}
}

// Offer merges e into the queue, or reports at once that there is no room.
func (q *Queue) Offer(e Event) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	entry, known := q.entries[e.Subject]
	if known && entry.state == stateRunning {
		if entry.next == nil {
			if q.full(e) {
				return false
			}
			entry.next = newEntry(e)
			q.resize(entry.next.strong, 1)
		}
		q.merge(entry.next, e)
		return true
	}
	if !known {
		if q.full(e) {
			return false
		}
		entry = newEntry(e)
		q.entries[e.Subject] = entry
		q.resize(entry.strong, 1)
		q.merge(entry, e)
		q.makeReady(entry)
		return true
	}
	wasStrong := entry.strong
	q.merge(entry, e)
	switch {
	case e.Deletion != nil && entry.state == stateLater:
		heap.Remove(&q.later, entry.index)
		q.makeReady(entry)
	case entry.strong && !wasStrong:
		q.makeReady(entry) // in the other line now; what stands in the weak one is skipped
	}
	return true
}

// full tells whether there is no room for one more. There always is for a canary,
// which is one of each source and must not wait behind what others put here, and for
// what another queue hands on.
func (q *Queue) full(e Event) bool {
	c := b2i(e.Deletion != nil)
	if q.size[c] < q.limit || e.Subject.Kind == reconciler.Canary || e.Inner {
		return false
	}
	q.refused[c] = true
	return true
}

// resize counts an entry in or out of its class.
func (q *Queue) resize(strong bool, by int) {
	c := b2i(strong)
	q.size[c] += by
	if q.refused[c] && q.size[c] <= q.limit*3/4 {
		q.refused[c] = false
		q.room.ring()
	}
}

func newEntry(e Event) *Entry {
	return &Entry{
		Work:   reconciler.Work{Subject: e.Subject, Trigger: e.Trigger, Seen: e.Seen},
		strong: e.Deletion != nil,
	}
}

// merge adds what e carries. An older deletion of the same binding is let go: the
// newer one stands for it, and holds the position all the same.
func (q *Queue) merge(entry *Entry, e Event) {
	w := &entry.Work
	if e.Spelling != "" {
		w.Spelling = e.Spelling
	}
	if e.Cause.IsValid() {
		w.Cause = e.Cause
	}
	w.Accepted = w.Accepted || e.Accepted
	switch {
	case e.Message != nil:
		w.See(e.Message) // the same one may be seen often: that is no new one
	case e.Trigger == reconciler.ByEvent:
		w.Touch()
	}
	if e.Deletion == nil {
		if e.Done != nil {
			entry.dones = append(entry.dones, e.Done)
		}
		return
	}
	if !entry.strong {
		entry.strong = true
		q.resize(false, -1)
		q.resize(true, 1)
	}
	w.Trigger = e.Trigger
	w.Renew(e.Deletion.Commit)
	done := e.Done
	if done == nil {
		done = func() {}
	}
	for i, d := range w.Deletions {
		if d.Binding == e.Deletion.Binding {
			old := entry.dones[i]
			d.Trail.Leave()
			w.Deletions[i], entry.dones[i] = *e.Deletion, done
			old()
			return
		}
	}
	n := len(w.Deletions)
	w.Deletions = append(w.Deletions, *e.Deletion)
	entry.dones = append(entry.dones[:n:n], append([]func(){done}, entry.dones[n:]...)...)
}

func (q *Queue) makeReady(entry *Entry) {
	entry.state = stateReady
	if entry.strong {
		q.strong.push(entry)
	} else {
		q.weak.push(entry)
	}
	q.signal()
}

func (q *Queue) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// Take waits for something to do and takes what is pending, up to limit entries.
// Each must be given back by Finish. It fails only when ctx ends.
func (q *Queue) Take(ctx context.Context, limit int) ([]*Entry, error) {
	for {
		batch, wait := q.take(limit)
		if len(batch) > 0 {
			return batch, nil
		}
		due := time.NewTimer(wait)
		resume := reconciler.Rest(ctx)
		select {
		case <-ctx.Done():
			due.Stop()
			return nil, ctx.Err()
		case <-q.ready:
		case <-due.C:
		}
		resume()
		due.Stop()
	}
}

func (q *Queue) take(limit int) (batch []*Entry, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for len(q.later) > 0 && !q.later[0].due.After(now) {
		q.makeReady(heap.Pop(&q.later).(*Entry))
	}
	for _, f := range []*fifo{&q.strong, &q.weak} {
		for len(batch) < limit {
			entry := f.pop()
			if entry == nil {
				break
			}
			if entry.state != stateReady || entry.strong != (f == &q.strong) {
				continue // it became strong meanwhile, and stood there too
			}
			entry.state = stateRunning
			batch = append(batch, entry)
		}
	}
	q.running += len(batch)
	if q.strong.len()+q.weak.len() > 0 {
		q.signal() // for the other workers
	}
	wait = time.Hour
	if len(q.later) > 0 {
		wait = max(q.later[0].due.Sub(now), time.Millisecond)
	}
	return batch, wait
}

// Finish gives an entry back: for good, or to come back after a while.
func (q *Queue) Finish(entry *Entry, again bool, after time.Duration, heldBy reconciler.HeldBy) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	next := entry.next
	entry.next = nil
	if again {
		if next != nil {
			q.absorb(entry, next)
			after = 0
		}
		entry.heldBy = heldBy
		if after > 0 {
			entry.state = stateLater
			entry.due = q.now().Add(after)
			heap.Push(&q.later, entry)
			q.signal() // the earliest due time may have changed
		} else {
			q.makeReady(entry)
		}
		return
	}
	q.drop(entry)
	if next != nil {
		q.entries[next.Work.Subject] = next
		q.makeReady(next)
	}
}

// Hurry makes ready what waits for its time because of that.
func (q *Queue) Hurry(heldBy reconciler.HeldBy) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, entry := range slices.Clone(q.later) {
		if entry.heldBy == heldBy {
			heap.Remove(&q.later, entry.index)
			q.makeReady(entry)
		}
	}
}

// absorb merges next, which came while entry was with a worker, into it.
func (q *Queue) absorb(entry, next *Entry) {
	q.resize(next.strong, -1)
	for i := range next.Work.Deletions {
		q.merge(entry, Event{Trigger: next.Work.Trigger, Deletion: &next.Work.Deletions[i], Done: next.dones[i]})
	}
	entry.dones = append(entry.dones, next.dones[len(next.Work.Deletions):]...)
	if next.Work.Spelling != "" {
		entry.Work.Spelling = next.Work.Spelling
	}
	for _, m := range next.Work.Messages {
		entry.Work.See(m)
	}
	entry.Work.Accepted = entry.Work.Accepted || next.Work.Accepted
	if next.Work.Touched() {
		entry.Work.Touch()
	}
}

// Detach gives what acknowledges an entry to the caller: the entry will not do it.
func (q *Queue) Detach(entry *Entry) (acknowledge func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	dones := entry.dones
	entry.dones = make([]func(), len(dones)) // by deletion, still
	for i := range entry.dones {
		entry.dones[i] = func() {}
	}
	return func() {
		for _, done := range dones {
			done()
		}
	}
}

func (q *Queue) drop(entry *Entry) {
	delete(q.entries, entry.Work.Subject)
	q.resize(entry.strong, -1)
	for _, done := range entry.dones {
		done()
	}
}

// Room is a channel that is closed when there may be room again.
func (q *Queue) Room() <-chan struct{} { return q.room.rung() }

// Stats is what the queue holds.
type Stats struct {
	// Pending entries in all; Strong of them have a deletion.
	Pending int `json:"pending"`
	Strong  int `json:"strong"`
	// InHand are ready or with a worker: what a shutdown waits for.
	InHand int `json:"in_hand"`
	// Oldest is the age in seconds of the oldest entry, a grace not counted.
	Oldest float64 `json:"oldest_seconds"`
	// Waiting counts what has to come back, by what holds it.
	Waiting map[reconciler.HeldBy]int `json:"waiting,omitempty"`
}

// Stats walks the queue; it is for status and metrics, not for hot paths.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Stats{Pending: len(q.entries), Strong: q.size[1], InHand: q.running, Waiting: map[reconciler.HeldBy]int{}}
	now := q.now()
	for _, e := range q.entries {
		if e.state == stateReady {
			s.InHand++
		}
		if e.state == stateLater {
			s.Waiting[e.heldBy]++
			if e.heldBy == reconciler.HeldByGrace {
				continue // not late: it is meant to wait
			}
		}
		s.Oldest = max(s.Oldest, now.Sub(e.Work.Since()).Seconds())
	}
	return s
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
