package main

import (
	"context"
	"errors"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/wiring"
)

func (c *cli) restoreCommand() *cobra.Command {
	var since, hold time.Duration
	queue, dryRun := "", false
	cmd := &cobra.Command{
		Use:   "restore [TASK_ID...]",
		Short: "Put back what was removed or purged",
		Long: `Put back what was removed of these tasks, or of all within --since: the original
values with what is left of their time to live, and the original messages, once, at
the end of their queue where they were. Each task is then held from being removed
again until its row exists or --hold has passed.

With --queue, put back what purge-queues took out of that queue (of all queues with
--since alone): in the order that it was in, to be run before what is in the queue
now. Stop the workers for the time if the order matters: while it runs they meet the
newest first. Such messages are not held: if a task's row is gone, they are removed.

A task that was revoked is refused by workers that have been up since then; those
that start later run it.

What is there again by now keeps its newer value (exists); what would have expired
by itself stays away (expired); what is older than policy.quarantine is lost (gone);
a message whose queue is not known stays kept (unplaced).
Exit code 1 if nothing is remembered of a given id.`,
		Example: `  orphanwatch restore 5f0c6b0e-8f0a-4c39-9d2b-7b6f3a1c2d4e
  orphanwatch restore --since 10m --dry-run
  orphanwatch restore --since 10m --hold 2h
  orphanwatch restore --queue celery --dry-run`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, ids []string) error {
			switch {
			case len(ids) == 0 && since <= 0 && queue == "" || since < 0:
				return usageError{errors.New("give task ids, or --since with a duration such as 10m, or --queue with a name\n  see: orphanwatch restore --help")}
			case len(ids) > 0 && (since != 0 || queue != ""):
				return usageError{errors.New("give task ids, or --since and --queue, not both\n  see: orphanwatch restore --help")}
			case hold < 0:
				return usageError{errors.New("--hold must not be negative")}
			}
			_, stores, err := c.stores()
			if err != nil {
				return err
			}
			defer stores.Close()
			r := &restore{cli: c, stores: stores, hold: hold, dryRun: dryRun}
			do := func() (any, error) {
				switch {
				case len(ids) > 0:
					err := r.ids(cmd.Context(), ids)
					return r.report, err
				case queue != "":
					err := r.queue(cmd.Context(), queue, since)
					return r.report, err
				}
				err := r.since(cmd.Context(), since)
				return r.report, err
			}
			if dryRun {
				_, err = do()
				return err
			}
			filter := map[string]any{"task_ids": ids, "since": since.String(), "queue": queue}
			return c.audited(cmd.Context(), wiring.AuditEntry{Action: "restore", Filter: filter}, do)
		},
	}
	cmd.Flags().DurationVar(&since, "since", 0, "all that was removed within that time, such as 10m")
	cmd.Flags().StringVar(&queue, "queue", "", "what purge-queues took out of that queue; with --since, within that time")
	cmd.Flags().DurationVar(&hold, "hold", time.Hour, "for how long it is not removed again")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only list what would be restored")
	return cmd
}

// restore is one run of the command.
type restore struct {
	*cli
	stores *wiring.Stores
	hold   time.Duration
	dryRun bool
	all    []wiring.Restored
	queues []wiring.PurgedQueue
	report wiring.RestoreReport // once it is printed
}

func (r *restore) ids(ctx context.Context, ids []string) error {
	missing := 0
	for _, id := range ids {
		restored, err := r.one(ctx, id)
		if err != nil {
			return err
		}
		if len(restored) == 0 {
			r.progress("%s: nothing is remembered of it", id)
			missing++
		}
		r.all = append(r.all, restored...)
	}
	if err := r.print(); err != nil {
		return err
	}
	if missing > 0 {
		return exitCode(exitError)
	}
	return nil
}

func (r *restore) one(ctx context.Context, id string) ([]wiring.Restored, error) {
	ctx, cancel := wiring.Bounded(ctx)
	defer cancel()
	if r.dryRun {
		return r.stores.RestorePreview(ctx, id)
	}
	return r.stores.Celery.Restore(ctx, []string{id}, r.hold)
}

func (r *restore) since(ctx context.Context, since time.Duration) error {
	// The first answer must come soon; then the pages may take their time.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.AfterFunc(restorePatience, func() { cancel(errors.New("redis does not answer")) })
	defer patience.Stop()
	collect := func(page []wiring.Restored) error {
		patience.Reset(restorePatience)
		r.all = append(r.all, page...)
		return nil
	}
	var err error
	if r.dryRun {
		err = r.stores.RestorePreviewSince(ctx, since, collect)
	} else {
		err = r.stores.Celery.RestoreSince(ctx, since, r.hold, collect)
	}
	patience.Stop()
	if err == nil {
		err = r.purged(ctx, "", since)
	}
	nothing := len(r.all) == 0 && len(r.queues) == 0
	if nothing && err == nil {
		r.progress("nothing was removed in the last %s", span(since))
	}
	if nothing && err != nil {
		return err
	}
	return errors.Join(err, r.print())
}

// restorePatience is for how long one page may take.
const restorePatience = 10 * time.Second

func (r *restore) print() error {
	r.report = wiring.NewRestoreReport(r.all, r.queues, r.dryRun)
	if r.output == outputJSON {
		return r.printJSON(r.report)
	}
	var rows []table.Row
	revoked := 0
	for _, s := range r.all {
		if !s.RevokedAt.IsZero() && len(s.Keys) > 0 {
			revoked++
		}
		until := ""
		if !s.HoldUntil.IsZero() {
			until = clock(s.HoldUntil)
		}
		if len(s.Keys) == 0 {
			rows = append(rows, table.Row{s.Kind, s.ID, "", "nothing left to restore", until})
		}
		for _, key := range s.Keys {
			status := key.Status
			if r.dryRun && status == "restored" {
				status = "would be restored"
			}
			name := key.Key
			if key.Tag != "" {
				name = "message " + key.Tag + " of queue " + key.Key
			}
			rows = append(rows, table.Row{s.Kind, s.ID, name, status, until})
		}
	}
	rows = append(rows, r.queueRows()...)
	if len(rows) > 0 {
		if err := r.printTable(table.Row{"kind", "id", "key", "status", "held until"}, rows); err != nil {
			return err
		}
	}
	n := r.report.Keys
	verb := "restored"
	if r.dryRun {
		verb = "would be restored"
	}
	r.progress("%d %s, %d exist again, %d expired, %d gone", n["restored"], verb, n["exists"], n["expired"], n["gone"])
	if n["unplaced"] > 0 {
		r.progress("%d messages have no queue that is known, and stay kept: they are in Redis, in orphanwatch:messages:task:<id> or orphanwatch:purged:<id>", n["unplaced"])
	}
	if n["incomplete"] > 0 {
		r.progress("%d are no complete messages, and stay kept: a worker would die on them", n["incomplete"])
	}
	if revoked > 0 {
		r.progress("%d of these tasks were revoked: workers that have been up since then refuse them; restart the workers to have them run", revoked)
	}
	return nil
}
