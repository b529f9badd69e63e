package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// statementsReport is what setup and teardown print.
type statementsReport struct {
	Statements []string `json:"statements"`
	DryRun     bool     `json:"dry_run"`
}

func (c *cli) printStatements(statements []string, dryRun bool) error {
	if c.output == outputJSON {
		return c.printJSON(statementsReport{append([]string{}, statements...), dryRun})
	}
	for _, sql := range statements {
		if _, err := fmt.Fprintln(c.out, sql); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

func (c *cli) setupCommand() *cobra.Command {
	dryRun := false
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Create the replication slot and the publication",
		Long: `Create the publication and the replication slot, as far as they are missing. run
does the same at its start where its role may; setup is for a role that may more.

From then on PostgreSQL keeps its log for the slot: start the daemon soon, and use
teardown when orphanwatch is not needed any more.`,
		Example: `  orphanwatch setup --dry-run
  DATABASE_URL=postgres://owner@db/app orphanwatch setup`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, stores, err := c.stores()
			if err != nil {
				return err
			}
			defer stores.Close()
			statements, err := missing(cmd.Context(), stores)
			switch {
			case err != nil:
				return err
			case len(statements) == 0:
				c.progress("nothing to do: publication and slot are there")
			case dryRun:
				c.progress("this would be run:")
			default:
				c.progress("a new slot waits for the transactions that are open now")
				err := c.audited(cmd.Context(), wiring.AuditEntry{Action: "setup"}, func() (any, error) {
					return nil, stores.Replication.Setup(cmd.Context())
				})
				if err != nil {
					return err
				}
				c.progress("done:")
			}
			return c.printStatements(statements, dryRun)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print the SQL")
	return cmd
}

// missing is what Setup would run.
func missing(ctx context.Context, stores *wiring.Stores) ([]string, error) {
	bounded, cancel := wiring.Bounded(ctx)
	defer cancel()
	return stores.SetupSQL(bounded)
}

func (c *cli) teardownCommand() *cobra.Command {
	dryRun, yes := false, false
	cmd := &cobra.Command{
		Use:   "teardown",
		Short: "Drop the replication slot and the publication",
		Long: `Drop the replication slot and the publication. A forgotten slot fills the disk of
PostgreSQL, so do this when orphanwatch is not needed any more.

It refuses (exit 4) while a copy of the daemon reads the slot, and without --yes
where it cannot ask.`,
		Example: `  orphanwatch teardown --dry-run
  orphanwatch teardown --yes`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, stores, err := c.stores()
			if err != nil {
				return err
			}
			defer stores.Close()
			statements := stores.Replication.TeardownSQL()
			if dryRun {
				c.progress("this would be run:")
				return c.printStatements(statements, true)
			}
			if err := refuseWhileRead(cmd.Context(), stores); err != nil {
				return err
			}
			err = c.confirm(yes, fmt.Sprintf("Drop slot %s and publication %s? Deletes from now on are not seen.", config.Replication.Slot, config.Replication.Publication))
			if err != nil {
				return err
			}
			err = c.audited(cmd.Context(), wiring.AuditEntry{Action: "teardown"}, func() (any, error) {
				return nil, stores.Replication.Teardown(cmd.Context())
			})
			if err != nil {
				return err
			}
			c.progress("done:")
			return c.printStatements(statements, false)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print the SQL")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// refuseWhileRead says so before anybody is asked; Teardown itself refuses too.
func refuseWhileRead(ctx context.Context, stores *wiring.Stores) error {
	bounded, cancel := wiring.Bounded(ctx)
	defer cancel()
	slot, err := stores.Slot(bounded)
	if err != nil {
		return err
	}
	if slot.Active {
		return notAllowedError{reconciler.Hint(errors.New("slot "+slot.Name+" is in use by "+slot.Holder), "stop orphanwatch first, every copy of it")}
	}
	return nil
}
