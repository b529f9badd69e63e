package main

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func (c *cli) fullCleanupCommand() *cobra.Command {
	hours := 0
	cmd := &cobra.Command{
		Use:   "full-cleanup",
		Short: "cleanup-orphaned, cleanup-expired and cleanup-database, in this order",
		Long: `Do what cleanup-orphaned, cleanup-expired and cleanup-database do, in this order, with
one report. What is wrong in one part does not keep the others from being done; the
exit code is then 1, or 4 where the guard held it.

The daemon does it by itself every policy.full_cleanup_interval.`,
		Example: `  orphanwatch full-cleanup --dry-run
  orphanwatch full-cleanup --yes -o json`,
	}
	u := c.cleanupFlags(cmd, true)
	cmd.Flags().IntVar(&hours, "hours", 0, "results older than that, 1 to 168 (default: policy.max_age_hours)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkHours(cmd, hours); err != nil {
			return err
		}
		o, err := c.operator(cmd.Context())
		if err != nil {
			return err
		}
		defer o.Close()
		return perform(cmd.Context(), u, asking[reconciler.FullReport]{
			do: func(ctx context.Context, how reconciler.Cleanup) (reconciler.FullReport, error) {
				return o.FullCleanup(ctx, hours, how)
			},
			show:     c.printFull,
			failed:   func(r reconciler.FullReport) error { return ended(r.Failed()) },
			count:    reconciler.FullReport.Count,
			question: "do it?",
		})
	}
	return cmd
}

func (c *cli) printFull(r reconciler.FullReport) error {
	if c.output == outputJSON {
		return c.printJSON(r)
	}
	var err error
	if r.Orphaned != nil {
		c.progress("orphaned tasks")
		err = errors.Join(err, c.printOrphans(*r.Orphaned))
	}
	if r.Expired != nil {
		c.progress("expired results")
		err = errors.Join(err, c.printExpired(*r.Expired))
	}
	if r.Database != nil {
		c.progress("child rows without a parent")
		err = errors.Join(err, c.printDatabase(*r.Database))
	}
	for _, part := range slices.Sorted(maps.Keys(r.Errors)) {
		c.progress("%s: %s", part, r.Errors[part])
	}
	return err
}
