package replication

import (
	"sync"
	"sync/atomic"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// ledger knows which commits are unfinished, and so the position that may be
// confirmed: the end of the newest commit before which nothing is unfinished.
// It holds unfinished commits only; its memory is bounded by what the queue holds.
type ledger struct {
	mu        sync.Mutex
	confirmed reconciler.LSN
	// first and last are the unfinished commits, in the order of the log.
	first, last *commit
	// read is the end of the newest commit that was read whole.
	read reconciler.LSN
	// progress is called, without the lock, when confirmed has moved.
	progress func()
}

// commit is one unfinished transaction.
type commit struct {
	ledger *ledger
	// unfinished are its events, and one while it is being read.
	unfinished atomic.Int64
	prev, next *commit
	// through is the end of the newest finished commit right behind it, or its own.
	through reconciler.LSN
	// gone: finished or released. Guarded by the ledger's lock.
	gone bool
	// done is the method finish, made once for all events.
	done func()
}

// newLedger starts at what the slot has confirmed.
func newLedger(confirmed reconciler.LSN, progress func()) *ledger {
	return &ledger{confirmed: confirmed, read: confirmed, progress: progress}
}

// Confirmed is the position that may be confirmed. It never goes back.
func (l *ledger) Confirmed() reconciler.LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confirmed
}

// Begin opens the transaction that follows all others in the log.
func (l *ledger) Begin() *commit {
	c := &commit{ledger: l}
	c.unfinished.Store(1)
	c.done = c.finish
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.prev = l.last; c.prev != nil {
		c.prev.next = c
	} else {
		l.first = c
	}
	l.last = c
	return c
}

// Add counts one event, before it is offered; done takes it back or finishes it.
func (c *commit) Add() { c.unfinished.Add(1) }

// End closes a transaction that was read up to end.
func (l *ledger) End(c *commit, end reconciler.LSN) {
	l.mu.Lock()
	c.through = end
	l.read = max(l.read, end)
	l.mu.Unlock()
	c.finish()
}

// Advance moves the position where nothing is open or unfinished: everything
// before pos was read, and was nothing of ours.
func (l *ledger) Advance(pos reconciler.LSN) {
	l.mu.Lock()
	idle := l.first == nil
	if idle {
		l.read = max(l.read, pos)
	}
	moved := idle && l.move(pos)
	l.mu.Unlock()
	if moved {
		l.progress()
	}
}

// Release gives up what is unfinished: it confirms up to the newest commit that
// was read whole. A transaction that is being read stays.
func (l *ledger) Release() {
	l.mu.Lock()
	open := l.last
	if open != nil && open.through != 0 {
		open = nil
	}
	for c := l.first; c != nil && c != open; c = c.next {
		c.gone = true
	}
	if l.first, l.last = open, open; open != nil {
		open.prev = nil
	}
	moved := l.move(l.read)
	l.mu.Unlock()
	if moved {
		l.progress()
	}
}

// finish takes one off the commit, and the commit out of the list with the last.
func (c *commit) finish() {
	if c.unfinished.Add(-1) != 0 {
		return
	}
	l := c.ledger
	l.mu.Lock()
	moved := false
	if !c.gone {
		c.gone = true
		if c.prev != nil {
			c.prev.next, c.prev.through = c.next, max(c.prev.through, c.through)
		} else {
			l.first = c.next
			moved = l.move(c.through)
		}
		if c.next != nil {
			c.next.prev = c.prev
		} else {
			l.last = c.prev
		}
	}
	l.mu.Unlock()
	if moved {
		l.progress()
	}
}

// move raises confirmed. The lock is held.
func (l *ledger) move(to reconciler.LSN) bool {
	if to <= l.confirmed {
		return false
	}
	l.confirmed = to
	return true
}
