package reconciler

import (
	"fmt"
	"math"
	"sort"
	"sync"
	"time"
)

// LSN is a position in PostgreSQL's write-ahead log, in bytes.
type LSN uint64

// String is PostgreSQL's own spelling of a pg_lsn.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// Commit is a transaction of the application, as the write-ahead log tells it.
type Commit struct {
	// XID is the top-level transaction id; its epoch is not in the log.
	XID uint32
	// LSN is the start of the commit record: rows are handed on while their
	// transaction is still being read.
	LSN LSN
	// Time is the commit's own time, by the database server's clock.
	Time time.Time
	// LocalTime is Time by our clock.
	LocalTime time.Time
	// TraceParent is what the transaction emitted under the prefix traceparent, or "".
	TraceParent string
}

// Deletion is the evidence deleted: a row of Binding with Key was deleted, or
// had its key changed, by Commit.
type Deletion struct {
	Binding int
	Key     string
	Commit  *Commit
	// Trail joins the traces of what is done about it; nil for none, or no longer.
	Trail *Trail
}

// Snapshot is pg_current_snapshot(): which transactions' effects a later
// statement of the same session is sure to see.
type Snapshot struct {
	// Xmin: every lower id has ended. Xmax: no id from here on has ended.
	Xmin, Xmax uint64
	// Running are the ids in between that have not ended, ascending.
	Running []uint64
	// At is when it was taken, by the server's clock.
	At time.Time
}

// Sees tells whether the transaction with these low 32 bits of its id has ended
// in the snapshot. The id is taken to be within 2^31 of Xmax, which PostgreSQL's
// own wraparound protection guarantees for anything that recent.
func (s Snapshot) Sees(xid uint32) bool {
	full := s.Xmax + uint64(int64(int32(xid-uint32(s.Xmax)))) //nolint:gosec // distance modulo 2^32 is what is wanted
	switch {
	case full > math.MaxInt64: // before id 0: cannot be
		return false
	case full >= s.Xmax:
		return false
	case full < s.Xmin:
		return true
	}
	i := sort.Search(len(s.Running), func(i int) bool { return s.Running[i] >= full })
	return i == len(s.Running) || s.Running[i] != full
}

// Transaction is one that runs in the bound database.
type Transaction struct {
	// ID is the virtual transaction id, or the global id of a prepared one.
	ID string
	// PID is its backend; 0 for a prepared transaction.
	PID int
	// Since is when it began, zero where the role may not see it.
	Since time.Time
	// Application is its application_name, "" where the role may not see it.
	Application string
}

// String names the transaction for people.
func (t Transaction) String() string {
	s := "transaction " + t.ID
	if t.PID != 0 {
		s = fmt.Sprintf("%s of pid %d", s, t.PID)
	}
	if t.Application != "" {
		s += " (" + t.Application + ")"
	}
	return s
}

// Running is what runs in the database at one moment.
type Running struct {
	// Asked is from before the list was read, by our clock.
	Asked time.Time
	// At is the WAL insert position from before the list was read.
	At LSN
	// Virtual are the transactions with a backend, those without an xid included.
	Virtual []Transaction
	// Prepared are the two-phase transactions; read after Virtual.
	Prepared []Transaction
}

// Fence stands for everything that was under way when a key was seen: it has
// passed once each transaction that ran then has ended, so that a row which one
// of them was inserting is visible, and once replication is past the position
// of then, so that a row which was deleted before is known to be deleted.
// Tasks that were seen together share one, so it is safe for concurrent use.
type Fence struct {
	// Taken is when, by our clock.
	Taken time.Time
	at    LSN
	mu    sync.Mutex
	// waiting are the transactions that have not been seen to end.
	virtual  map[string]Transaction
	prepared map[string]Transaction
	// converted: all of virtual are gone, and prepared holds what they may have become.
	converted bool
	// asked is of the newest list that was observed.
	asked time.Time
}

// NewFence is a fence around what runs now.
func NewFence(now time.Time, r Running) *Fence {
	f := &Fence{Taken: now, at: r.At, virtual: byID(r.Virtual), prepared: byID(r.Prepared)}
	return f
}

// Observe strikes out what has ended by the time of r, which must have been
// read after the fence was taken. One that was asked for before the newest is
// ignored: it may lack what was prepared since.
func (f *Fence) Observe(r Running) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Asked.Before(f.asked) {
		return
	}
	f.asked = r.Asked
	if !f.converted {
		retain(f.virtual, byID(r.Virtual))
		if len(f.virtual) > 0 {
			return
		}
		// PREPARE ends a virtual transaction without ending the transaction: what
		// is prepared now may be one of ours, and nothing prepared later can be.
		f.prepared = byID(r.Prepared)
		f.converted = true
		return
	}
	retain(f.prepared, byID(r.Prepared))
}

// Ended tells whether no transaction of then is still open.
func (f *Fence) Ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.converted && len(f.prepared) == 0
}

// At is the WAL position that replication must have passed.
func (f *Fence) At() LSN { return f.at }

// Waiting lists the transactions that hold the fence.
func (f *Fence) Waiting() []Transaction {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.virtual
	if f.converted {
		m = f.prepared
	}
	out := make([]Transaction, 0, len(m))
	for _, t := range m {
		out = append(out, t)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

func byID(ts []Transaction) map[string]Transaction {
	m := make(map[string]Transaction, len(ts))
	for _, t := range ts {
		m[t.ID] = t
	}
	return m
}

func retain(m, with map[string]Transaction) {
	for id := range m {
		if _, ok := with[id]; !ok {
			delete(m, id)
		}
	}
}
