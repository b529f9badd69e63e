package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// queue puts back what purges took out of one queue.
func (r *restore) queue(ctx context.Context, queue string, since time.Duration) error {
	err := r.purged(ctx, queue, since)
	switch {
	case len(r.queues) > 0:
		return errors.Join(err, r.print())
	case err != nil:
		return err
	}
	others, err := r.kept(ctx, "", 0)
	if err != nil {
		return err
	}
	if err := r.print(); err != nil {
		return err
	}
	r.progress("%s: nothing that was purged of it is kept", queue)
	var names []string
	for _, p := range others {
		names = append(names, p.Queue)
	}
	if names = slices.Compact(slices.Sorted(slices.Values(names))); len(names) > 0 {
		r.progress("  there is something of: %s (older than --since, if that is given)", strings.Join(names, ", "))
	}
	return exitCode(exitError)
}

// purged puts back what purges took, of all queues for "".
func (r *restore) purged(ctx context.Context, queue string, since time.Duration) (err error) {
	if r.dryRun {
		r.queues, err = r.kept(ctx, queue, since)
		return err
	}
	m := r.meter()
	defer m.done()
	r.queues, err = r.stores.Broker.RestorePurged(ctx, queue, since, func(done, total int64) {
		m.tell(reconciler.Progress{Stage: "restoring messages", Done: done, Total: total})
	})
	return err
}

func (r *restore) kept(ctx context.Context, queue string, since time.Duration) ([]wiring.PurgedQueue, error) {
	ctx, cancel := wiring.Bounded(ctx)
	defer cancel()
	return r.stores.Broker.Purged(ctx, queue, since)
}

// queueRows are the purges as rows.
func (r *restore) queueRows() []table.Row {
	var rows []table.Row
	for _, p := range r.queues {
		restored, verb := p.Restored, "restored"
		if r.dryRun {
			restored, verb = p.Messages, "would be restored"
		}
		status := fmt.Sprintf("%d %s %s", restored, p.Kind, verb)
		for _, more := range []struct {
			name string
			n    int64
		}{{"incomplete", p.Incomplete}, {"unplaced", p.Unplaced}, {"gone", p.Gone}} {
			if more.n > 0 {
				status += fmt.Sprintf(", %d %s", more.n, more.name)
			}
		}
		rows = append(rows, table.Row{"queue", p.Queue, "purged " + clock(p.At) + " from " + printable(p.List), status, ""})
	}
	return rows
}

// printable writes what a terminal would act on, such as the separator of priorities, as \x06.
func printable(s string) string {
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
