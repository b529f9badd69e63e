package reconciler

import (
	"context"
	"errors"
	"fmt"
)

// Queues are the broker's queues, to be looked at and emptied. A queue is its lists
// of all priorities; lists of replies, events and broadcasts are none. No names:
// all that are known. A name that is not known is an error, and nothing is done.
type Queues interface {
	// CountQueues counts what is there by task name. It changes nothing.
	CountQueues(ctx context.Context, names []string, progress func(done, total int64)) ([]QueueReport, error)
	// DrainQueues takes out what is there and keeps it for policy.quarantine. The
	// answer holds with an error too: what was done until then.
	DrainQueues(ctx context.Context, d QueueDrain) ([]QueueReport, error)
}

// QueueDrain says what is taken out of the broker.
type QueueDrain struct {
	Names []string
	// IncludeUnacked: also what workers hold of these queues. They are not told.
	IncludeUnacked bool
	// Epoch must be that of the broker's control hash, 0 where it has none.
	Epoch   uint64
	Trigger Trigger
	// Progress is told how many messages are done of how many, from one goroutine.
	Progress func(done, total int64)
}

var errNoQueues = errors.New("the broker's queues are not looked at")

// CountQueues tells what is in the queues with these names, by task name; no names:
// in all that are known. Messages are at about the time of the call, since workers
// go on taking them.
func (r *Reconciler) CountQueues(ctx context.Context, names []string, c Cleanup) (QueuesReport, error) {
	report := QueuesReport{Queues: []QueueReport{}, DryRun: true}
	if r.Queues == nil {
		return report, errNoQueues
	}
	queues, err := r.Queues.CountQueues(ctx, names, c.stage("reading queues"))
	if err != nil {
		return report, fmt.Errorf("count queues: %w", err)
	}
	report.Queues = append(report.Queues, queues...)
	return report, nil
}

// PurgeQueues takes everything out of the queues with these names that was in them
// when it began; no names: of all that are known. It is kept for policy.quarantine. A
// dry run is CountQueues. Else the report has no Tasks: what is there is shown
// before it is taken. With an error it tells what was done until then: ErrPaused,
// ErrStale, or that of ctx among them. Guard and bindings play no part: an operator
// names what goes.
func (r *Reconciler) PurgeQueues(ctx context.Context, term Term, names []string, includeUnacked bool, c Cleanup) (QueuesReport, error) {
	if c.DryRun {
		return r.CountQueues(ctx, names, c)
	}
	report := QueuesReport{Queues: []QueueReport{}}
	if r.Queues == nil {
		return report, errNoQueues
	}
	queues, err := r.Queues.DrainQueues(ctx, QueueDrain{
		Names: names, IncludeUnacked: includeUnacked, Epoch: term.Epoch, Trigger: c.Trigger,
		Progress: c.stage("purging queues"),
	})
	report.Queues = append(report.Queues, queues...)
	for _, q := range queues {
		report.Cleaned += q.Cleaned
	}
	if err != nil {
		return report, fmt.Errorf("purge queues: %w", err)
	}
	return report, nil
}

// stage tells Progress of one stage.
func (c Cleanup) stage(name string) func(done, total int64) {
	return func(done, total int64) { c.tell(Progress{Stage: name, Done: done, Total: total}) }
}
