package reconciler

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Trip is why the guard holds all removals on evidence absent.
type Trip struct {
	// All: this is another database, so that nothing that was known holds.
	All    bool      `json:"all,omitempty"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Orphans of Seen tasks looked orphaned when it was last judged.
	Orphans int `json:"orphans"`
	Seen    int `json:"seen"`
}

// Tally is what a pass has found, before its first removal.
type Tally struct {
	// Seen are the tasks that are, or may be, of a bound table; Orphans those of
	// them that have no row and no known deletion.
	Seen, Orphans int
	// EmptyTables are the names of bound tables without a row.
	EmptyTables []string
	// Identity is what is wrong with the database's identity, "" for nothing.
	Identity string
}

// Guard is R5: it doubts that so many rows can be missing. Once tripped it stays
// so, across restarts, until an operator accepts what it reported.
// Its state is a Trip; keeping that is its caller's.
type Guard struct {
	maxRatio  float64
	minSample int
	window    time.Duration
	now       func() time.Time

	mu       sync.Mutex
	trip     *Trip
	accepted int // orphans that the next pass may have, 0 for none
	buckets  []bucket
}

type bucket struct {
	from          time.Time
	seen, orphans int
}

const (
	guardWindow  = 10 * time.Minute
	guardBuckets = 10
)

// NewGuard is an armed guard; trip is one that was kept from an earlier run, or nil.
func NewGuard(p Policy, trip *Trip, now func() time.Time) *Guard {
	return &Guard{maxRatio: p.MaxAbsentRatio, minSample: p.MinSample, window: guardWindow, now: now, trip: trip}
}

// Load sets the trip that another run has kept. What was accepted before, in a term that has
// ended, was another report.
func (g *Guard) Load(trip *Trip) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trip, g.accepted = trip, 0
}

// Tripped is the trip that holds now, nil for none.
func (g *Guard) Tripped() *Trip {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.trip == nil {
		return nil
	}
	t := *g.trip
	return &t
}

// JudgePass tells whether the orphans of a pass may be removed, and whether an
// operator has accepted them, which holds for this one pass.
func (g *Guard) JudgePass(t Tally) (ok, accepted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.accepted > 0 && t.Orphans <= g.accepted && t.Identity == "" {
		g.trip, g.accepted, g.buckets = nil, 0, nil
		return true, true
	}
	g.accepted = 0
	if t.Orphans == 0 && t.Identity == "" {
		return g.trip == nil, false
	}
	if reason := g.doubt(t); reason != "" {
		g.set(reason, t.Seen, t.Orphans)
		g.trip.All = g.trip.All || t.Identity != ""
	} else if g.trip != nil {
		g.trip.Seen, g.trip.Orphans = t.Seen, t.Orphans
	}
	return g.trip == nil, false
}

// Doubt is why the guard would hold a pass with that tally, "" where it would not. It
// changes nothing.
func (g *Guard) Doubt(t Tally) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case t.Orphans == 0 && t.Identity == "":
		return ""
	case g.trip != nil && (g.accepted == 0 || t.Orphans > g.accepted || t.Identity != ""):
		return g.trip.Reason
	case g.trip != nil:
		return "" // an operator accepts it
	}
	return g.doubt(t)
}

// ObserveEvents counts what events showed since the last call: tasks looked at,
// and those that look orphaned. It tells whether this has tripped the guard.
func (g *Guard) ObserveEvents(seen, orphans int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if n := len(g.buckets); n == 0 || now.Sub(g.buckets[n-1].from) >= g.window/guardBuckets {
		g.buckets = append(g.buckets, bucket{from: now})
	}
	b := &g.buckets[len(g.buckets)-1]
	b.seen += seen
	b.orphans += orphans
	for len(g.buckets) > 0 && now.Sub(g.buckets[0].from) >= g.window {
		g.buckets = g.buckets[1:]
	}
	if g.trip != nil {
		return false
	}
	var t Tally
	for _, b := range g.buckets {
		t.Seen += b.seen
		t.Orphans += b.orphans
	}
	reason := g.doubt(t)
	if reason == "" {
		return false
	}
	g.set(reason+", in the last 10 minutes of events", t.Seen, t.Orphans)
	return true
}

// TripEmpty trips the guard because tables have no row. It tells whether that is new.
func (g *Guard) TripEmpty(tables []string, orphans int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.trip != nil {
		return false
	}
	g.set(g.doubt(Tally{Seen: orphans, Orphans: orphans, EmptyTables: tables}), orphans, orphans)
	return true
}

// Accept lets the next pass remove what was reported, with a little more for
// what has come since.
func (g *Guard) Accept() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.trip == nil {
		return
	}
	g.accepted = int(withSlack(int64(g.trip.Orphans)))
}

// withSlack is how many orphans are let through where n were judged.
func withSlack(n int64) int64 { return n + n/10 + 10 }

func (g *Guard) set(reason string, seen, orphans int) {
	t := Trip{Reason: reason, Since: g.now(), Seen: seen, Orphans: orphans}
	if g.trip != nil {
		t.Since, t.All = g.trip.Since, g.trip.All
	}
	g.trip = &t
}

func (g *Guard) doubt(t Tally) string {
	switch {
	case t.Identity != "":
		return t.Identity
	case len(t.EmptyTables) > 0:
		return "table " + strings.Join(t.EmptyTables, ", ") + " is empty"
	case t.Seen >= g.minSample && float64(t.Orphans) > g.maxRatio*float64(t.Seen):
		return fmt.Sprintf("%d of %d tasks look orphaned, more than %.0f %%", t.Orphans, t.Seen, 100*g.maxRatio)
	}
	return ""
}

// guard shows the guard what the batch is about to remove on evidence absent, and
// takes it back where that trips it. What has not passed the other rules does not
// count: its row may only not be committed yet.
func (r *Reconciler) guard(ctx context.Context, works []*Work, units []*unit) error {
	seen, orphans, weak := 0, 0, 0
	var weakIn BindingSet
	for _, u := range units {
		w, d := works[u.of], &u.decision
		fromEvent := w.Trigger == ByEvent
		switch {
		case d.Outcome == OutcomeRemoved && d.Evidence == Absent && !w.Accepted:
			weak++
			weakIn |= u.row.Candidates
			if fromEvent && !w.counted {
				w.counted = true // it may come back any number of times
				seen++
				orphans++
			}
		case fromEvent && u.row.Exists && w.Attempts == 0 && !w.counted:
			w.counted = true
			seen++
		}
	}
	tripped := r.Guard.ObserveEvents(seen, orphans)
	if weak > 0 && !tripped {
		empty, err := r.Rows.EmptyTables(ctx)
		if err != nil {
			return fmt.Errorf("see whether tables are empty: %w", err)
		}
		names := r.names(empty & weakIn)
		tripped = len(names) > 0 && r.Guard.TripEmpty(names, weak)
	}
	if !tripped {
		return nil
	}
	r.logTrip(ctx)
	reason := r.Guard.Tripped().Reason
	for _, u := range units {
		u.situation.Guard = reason // an identity is judged by passes alone
		u.decision = Decide(u.situation)
	}
	return nil
}

func (r *Reconciler) logTrip(ctx context.Context) {
	t := r.Guard.Tripped()
	if t == nil {
		return
	}
	r.Log.ErrorContext(ctx, "the guard has tripped: nothing is removed on evidence absent",
		"reason", t.Reason, "orphans", t.Orphans, "seen", t.Seen,
		"fix", "look at `orphanwatch status`; when what it reports may go: orphanwatch resume --accept-absent")
}
