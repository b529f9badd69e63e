package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func (c *cli) cleanupOrphanedCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cleanup-orphaned",
		Short: "Remove now what is left in Redis of rows that are gone",
		Long: `Make one pass over both stores now, and remove what has no row: results, messages and
companion keys. What is found is looked at again after policy.grace, and transactions
that are open are waited for, since one may be inserting the row.

It works with the daemon up or down, and acts whatever policy.remove says. The guard
holds it, unless --force says otherwise; what was removed can be restored.
On a terminal it shows what it found and asks; elsewhere it needs --yes.`,
		Example: `  orphanwatch cleanup-orphaned --dry-run
  orphanwatch cleanup-orphaned --yes
  orphanwatch cleanup-orphaned --yes -o json | jq .cleaned_count`,
	}
	u := c.cleanupFlags(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := c.operator(cmd.Context())
		if err != nil {
			return err
		}
		defer o.Close()
		return perform(cmd.Context(), u, asking[reconciler.OrphanReport]{
			do: o.CleanupOrphaned, show: c.printOrphans,
			count:    func(r reconciler.OrphanReport) int64 { return r.Cleaned },
			question: "remove what is left of them?",
		})
	}
	return cmd
}

func (c *cli) printOrphans(r reconciler.OrphanReport) error {
	if c.output == outputJSON {
		return c.printJSON(r)
	}
	if len(r.Tasks) > 0 {
		rows := make([]table.Row, len(r.Tasks))
		for i, t := range r.Tasks {
			rows[i] = table.Row{t.ID, t.Kind, t.Name, t.Table, t.Reason}
		}
		if err := c.printTable(table.Row{"task id", "what", "name", "table", "reason"}, rows); err != nil {
			return err
		}
	}
	if r.Truncated {
		c.progress("(the first %d of them)", len(r.Tasks))
	}
	if r.DryRun {
		c.progress("%d orphaned would be removed", r.Cleaned)
	} else {
		c.progress("%d orphaned removed%s", r.Cleaned, counts(r.Removed))
	}
	for _, by := range slices.Sorted(maps.Keys(r.Held)) {
		c.progress("%d held: %s", r.Held[by], why(string(by)))
	}
	return nil
}

// counts are numbers by kind, after a colon; "" for none.
func counts(byKind map[reconciler.ArtifactKind]int64) string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		parts = append(parts, fmt.Sprintf("%d %s", byKind[kind], kind))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}
