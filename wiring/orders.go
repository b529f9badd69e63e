package wiring

import (
	"context"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// OrderReport is what pause and resume answer.
type OrderReport struct {
	Paused   bool             `json:"paused"`
	Since    time.Time        `json:"since,omitzero"`
	By       string           `json:"by,omitempty"`
	Guard    *reconciler.Trip `json:"guard"`
	Accepted bool             `json:"accepted,omitempty"`
	// Leader is the copy that carries the order out, "" where none leads.
	Leader string `json:"leader"`
	DryRun bool   `json:"dry_run"`
}

// Ordered is what holds now: pause, guard and leader.
func (s *Stores) Ordered(ctx context.Context) (OrderReport, error) {
	state, err := s.Celery.State(ctx)
	if err != nil {
		return OrderReport{}, err
	}
	r := OrderReport{Paused: state.Paused, Since: state.PausedSince, By: state.PausedBy}
	if r.Guard, err = TripOf(state); err != nil {
		return r, err
	}
	daemons, err := s.Daemons(ctx)
	if err != nil {
		return r, err
	}
	for _, d := range daemons {
		if d.Role == watcher.RoleLeader {
			r.Leader = d.Instance
			if d.Guard != nil {
				r.Guard = d.Guard
			}
			break
		}
	}
	return r, nil
}

// RestoreReport is what restore answers.
type RestoreReport struct {
	Restored []Restored    `json:"restored"`
	Queues   []PurgedQueue `json:"queues"`
	// Keys counts keys and messages by what became of them.
	Keys   map[string]int `json:"counts"`
	DryRun bool           `json:"dry_run"`
}

// NewRestoreReport counts what came back. A dry run of purges has not told yet what
// would: all of it.
func NewRestoreReport(restored []Restored, queues []PurgedQueue, dryRun bool) RestoreReport {
	r := RestoreReport{
		Restored: append([]Restored{}, restored...), Queues: append([]PurgedQueue{}, queues...), DryRun: dryRun,
		Keys: map[string]int{"restored": 0, "exists": 0, "expired": 0, "gone": 0, "unplaced": 0},
	}
	for _, s := range restored {
		for _, key := range s.Keys {
			r.Keys[key.Status]++
		}
	}
	for _, q := range queues {
		back := q.Restored
		if dryRun {
			back = q.Messages
		}
		r.Keys["restored"] += int(back)
		for status, n := range map[string]int64{"incomplete": q.Incomplete, "unplaced": q.Unplaced, "gone": q.Gone} {
			if n > 0 {
				r.Keys[status] += int(n)
			}
		}
	}
	return r
}

// Counts is what the audit log keeps of it.
func (r RestoreReport) Counts() map[string]int64 {
	out := make(map[string]int64, len(r.Keys))
	for status, n := range r.Keys {
		out[status] = int64(n)
	}
	return out
}
