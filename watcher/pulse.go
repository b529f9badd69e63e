package watcher

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// How long a loop may go without a step. A step is an answer of a store, or its
// error: an outage is a series of these. So a limit is above what the longest single
// call may take by its own timeouts.
const (
	// callLimit: 47 s for a command to a Redis that answers nothing (a place in the
	// pool, five attempts to connect, write, read), 24 s for a lookup in PostgreSQL.
	callLimit = 2 * time.Minute
	// PassLimit: a statement over a whole table may be silent for 5 min.
	PassLimit = 7 * time.Minute
	// SourceLimit is of the sources' loops, whose calls end within 10 s.
	SourceLimit = time.Minute
)

// Pulse tells loops that hang from those that work or wait. A nil one watches over
// nothing.
type Pulse struct {
	mu    sync.Mutex
	loops map[*loop]struct{}
}

// NewPulse watches over the loops that enter.
func NewPulse() *Pulse { return &Pulse{loops: map[*loop]struct{}{}} }

// loop is one that runs.
type loop struct {
	name  string
	limit time.Duration
	// born is of the monotonic clock, beat counts ns since; -1 while it rests.
	born time.Time
	beat atomic.Int64
}

// Beat is reconciler.Pulse's.
func (l *loop) Beat() { l.beat.Store(int64(time.Since(l.born))) }

// Rest is reconciler.Pulse's.
func (l *loop) Rest() { l.beat.Store(-1) }

// Enter watches over a loop until leave: it must call reconciler.Beat with the
// context that it gets, or what it calls must, once in every limit.
func (p *Pulse) Enter(ctx context.Context, name string, limit time.Duration) (within context.Context, leave func()) {
	if p == nil {
		return ctx, func() {}
	}
	l := &loop{name: name, limit: limit, born: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loops[l] = struct{}{}
	return reconciler.WithPulse(ctx, l), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.loops, l)
	}
}

// Pardon counts from now for all loops: the process as a whole has stood still.
func (p *Pulse) Pardon() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.loops {
		if beat := l.beat.Load(); beat >= 0 {
			l.beat.CompareAndSwap(beat, int64(time.Since(l.born))) // unless it has just begun to rest
		}
	}
}

// Stall is a loop that hangs.
type Stall struct {
	Loop string `json:"loop"`
	// Seconds since its last step.
	Seconds float64 `json:"seconds"`
}

// Alive tells whether all loops move, and which do not.
func (p *Pulse) Alive() (ok bool, why string) {
	var names []string
	for _, s := range p.Stalled(time.Now()) {
		names = append(names, s.Loop)
	}
	if len(names) > 0 {
		return false, "hangs: " + strings.Join(names, ", ")
	}
	return true, "alive"
}

// Stalled are the loops that have not moved for longer than they may, by name.
func (p *Pulse) Stalled(now time.Time) (stalled []Stall) {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.loops {
		beat := l.beat.Load()
		if still := now.Sub(l.born) - time.Duration(beat); beat >= 0 && still > l.limit {
			stalled = append(stalled, Stall{Loop: l.name, Seconds: still.Seconds()})
		}
	}
	slices.SortFunc(stalled, func(a, b Stall) int { return strings.Compare(a.Loop, b.Loop) })
	return stalled
}
