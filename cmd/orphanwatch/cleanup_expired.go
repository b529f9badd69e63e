package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func (c *cli) cleanupExpiredCommand() *cobra.Command {
	hours := 0
	cmd := &cobra.Command{
		Use:   "cleanup-expired",
		Short: "Remove results that are older than some hours",
		Long: `Remove results whose task ended more than --hours ago, by the date_done in them,
whether their row exists or not. A result that has neither a date nor a time to live
is given one: the same hours. What has a date that cannot be read is left.

What was removed can be restored. On a terminal it shows how many there are and
asks; elsewhere it needs --yes.`,
		Example: `  orphanwatch cleanup-expired --dry-run
  orphanwatch cleanup-expired --hours 48 --yes`,
	}
	u := c.cleanupFlags(cmd, false)
	cmd.Flags().IntVar(&hours, "hours", 0, "older than that, 1 to 168 (default: policy.max_age_hours)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkHours(cmd, hours); err != nil {
			return err
		}
		o, err := c.operator(cmd.Context())
		if err != nil {
			return err
		}
		defer o.Close()
		return perform(cmd.Context(), u, asking[reconciler.ExpiredReport]{
			do: func(ctx context.Context, how reconciler.Cleanup) (reconciler.ExpiredReport, error) {
				return o.CleanupExpired(ctx, hours, how)
			},
			filter:   map[string]any{"hours": hours},
			show:     c.printExpired,
			count:    func(r reconciler.ExpiredReport) int64 { return r.Cleaned + r.TTLSet },
			question: "remove them?",
		})
	}
	return cmd
}

func checkHours(cmd *cobra.Command, hours int) error {
	if cmd.Flags().Changed("hours") && (hours < 1 || hours > 168) {
		return usageError{errors.New("--hours must be from 1 to 168")}
	}
	return nil
}

func (c *cli) printExpired(r reconciler.ExpiredReport) error {
	if c.output == outputJSON {
		return c.printJSON(r)
	}
	verb, given := "removed", "were given one"
	if r.DryRun {
		verb, given = "would be removed", "would be given one"
	}
	c.progress("%d of %d results %s: older than %d h", r.Cleaned, r.Scanned, verb, r.MaxAgeHours)
	if r.Undated > 0 {
		c.progress("%d have no date that can be read; %d of these had no time to live and %s", r.Undated, r.TTLSet, given)
	}
	if r.Held > 0 {
		c.progress("%d were restored by an operator, and left", r.Held)
	}
	if r.Changed > 0 {
		c.progress("%d were written again meanwhile, and left", r.Changed)
	}
	return nil
}
