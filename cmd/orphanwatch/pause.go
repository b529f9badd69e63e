package main

import (
	"context"
	"os"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/wiring"
)

// operator is user@host, for the others to know whom to ask.
func operator() string {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}

func (c *cli) pauseCommand() *cobra.Command {
	dryRun := false
	cmd := &cobra.Command{
		Use:   "pause",
		Short: "Stop all removals, by every copy, until resume",
		Long: `Stop all removals, by every copy of the daemon, until resume. Deletes are still
followed and what is to be removed waits. The order is in Redis, so it holds at
once and over restarts.`,
		Example: `  orphanwatch pause
  orphanwatch resume`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, stores, err := c.stores()
			if err != nil {
				return err
			}
			defer stores.Close()
			ctx, cancel := wiring.Bounded(cmd.Context())
			defer cancel()
			was, err := stores.Ordered(ctx)
			if err != nil {
				return err
			}
			by := operator()
			switch {
			case was.Paused:
				c.progress("removals are paused already, since %s by %s", clock(was.Since), was.By)
			case dryRun:
				c.progress("removals would be paused, by %s", by)
			default:
				err := c.audited(ctx, wiring.AuditEntry{Action: "pause"}, func() (any, error) { return nil, stores.Pause(ctx, by) })
				if err != nil {
					return err
				}
				c.progress("removals are paused, by %s; to go on: orphanwatch resume", by)
			}
			if was.Leader == "" && !dryRun {
				c.progress("no daemon leads now; one that starts finds removals paused")
			}
			now := was
			if !dryRun {
				if now, err = stores.Ordered(ctx); err != nil {
					return err
				}
			}
			now.DryRun = dryRun
			return c.printOrder(now)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell what would change")
	return cmd
}

func (c *cli) printOrder(r wiring.OrderReport) error {
	if c.output == outputJSON {
		return c.printJSON(r)
	}
	return nil
}

func (c *cli) resumeCommand() *cobra.Command {
	dryRun, accept := false, false
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "Let removals go on; --accept-absent lets the guard's report through",
		Long: `End a pause, and make a pass. A guard that has tripped stays so.

--accept-absent lets what the guard reported through, once: the next pass removes
the tasks that have no row, provided that there are not many more of them by then.
It also takes the database of now for the right one. Look at "orphanwatch status"
before.`,
		Example: `  orphanwatch resume
  orphanwatch resume --accept-absent --dry-run    # what the guard reported
  orphanwatch resume --accept-absent`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, stores, err := c.stores()
			if err != nil {
				return err
			}
			defer stores.Close()
			ctx, cancel := wiring.Bounded(cmd.Context())
			defer cancel()
			return c.resume(ctx, stores, accept, dryRun)
		},
	}
	cmd.Flags().BoolVar(&accept, "accept-absent", false, "the reported tasks without a row may be removed, once")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell what would change")
	return cmd
}

func (c *cli) resume(ctx context.Context, stores *wiring.Stores, accept, dryRun bool) error {
	was, err := stores.Ordered(ctx)
	if err != nil {
		return err
	}
	c.tellResume(was, accept)
	report := was
	report.Accepted, report.DryRun = accept && was.Guard != nil, dryRun
	if dryRun {
		c.progress("nothing was changed (--dry-run)")
		return c.printOrder(report)
	}
	entry := wiring.AuditEntry{Action: "resume", Filter: map[string]any{"accept_absent": report.Accepted}}
	err = c.audited(ctx, entry, func() (any, error) {
		if report.Accepted {
			return nil, stores.Accept(ctx, was.Paused)
		}
		return nil, stores.Resume(ctx)
	})
	if err != nil {
		return err
	}
	report.Paused, report.Since, report.By = false, time.Time{}, ""
	if was.Leader == "" {
		c.progress("no daemon leads now: the order waits in Redis until one does")
	}
	return c.printOrder(report)
}

// tellResume says what holds, and what will happen.
func (c *cli) tellResume(was wiring.OrderReport, accept bool) {
	trip := was.Guard
	if was.Paused {
		c.progress("removals go on; they were paused since %s by %s", clock(was.Since), was.By)
	}
	switch {
	case trip != nil:
		c.progress("the guard has tripped, at %s: %s", clock(trip.Since), trip.Reason)
		c.progress("  it holds %d orphans of %d tasks", trip.Orphans, trip.Seen)
		if accept {
			c.progress("accepted: the next pass removes them, after policy.grace, unless they are many more by then")
		} else {
			c.progress("  a pass is made, so that the report is of now; the guard stays tripped")
			c.progress("  to remove them: orphanwatch resume --accept-absent")
		}
	case accept:
		c.progress("the guard has not tripped: there is nothing to accept")
	case !was.Paused:
		c.progress("removals were not paused, and the guard has not tripped; a pass is made")
	}
}
