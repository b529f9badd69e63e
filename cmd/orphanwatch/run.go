package main

import (
	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/wiring"
)

func (c *cli) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: `Run the daemon until SIGTERM or SIGINT, which let it finish what is in hand.

Several copies may run: the one that holds the replication slot leads, the others
stand by. What is missing in PostgreSQL (publication, slot) and Redis (keyspace
events) is created where the rights allow it; else the error names the fix.`,
		Example: `  DATABASE_URL=postgres://app@db/app REDIS_URL=redis://redis:6379/0 orphanwatch run
  ORPHANWATCH_POLICY_REMOVE=none orphanwatch run     # only look, decide and count`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := c.load()
			if err != nil {
				return err
			}
			return wiring.Run(cmd.Context(), config, wiring.NewLog(config, c.err), wiring.Version(version))
		},
	}
}
