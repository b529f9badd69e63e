package main

import (
	"maps"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func (c *cli) cleanupDatabaseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cleanup-database",
		Short: "Remove child rows whose parent row is gone",
		Long: `Remove rows of child tables whose row in the bound table is gone. Child tables are
those of tasks[].children, else those with a foreign key to the bound table. They are
removed in small transactions that wait for no writer; rows that came after the
beginning are never touched. It cannot be undone.

The role needs SELECT and DELETE on the child tables. The guard holds it where the
bound table is empty, or more than policy.max_absent_ratio of the child rows look
orphaned; --force goes past that.`,
		Example: `  orphanwatch cleanup-database --dry-run
  orphanwatch cleanup-database --yes`,
	}
	u := c.cleanupFlags(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := c.operator(cmd.Context())
		if err != nil {
			return err
		}
		defer o.Close()
		return perform(cmd.Context(), u, asking[reconciler.DatabaseReport]{
			do:       o.CleanupDatabase,
			show:     c.printDatabase,
			failed:   func(r reconciler.DatabaseReport) error { return failedIf(len(r.Errors) > 0) },
			count:    func(r reconciler.DatabaseReport) int64 { return r.Total },
			question: "remove these rows? It cannot be undone.",
		})
	}
	return cmd
}

func (c *cli) printDatabase(r reconciler.DatabaseReport) error {
	if c.output == outputJSON {
		return c.printJSON(r)
	}
	header := table.Row{"table", "removed"}
	if r.DryRun {
		header[1] = "orphaned"
	}
	var rows []table.Row
	for _, name := range slices.Sorted(maps.Keys(r.Tables)) {
		rows = append(rows, table.Row{name, r.Tables[name]})
	}
	if len(rows) > 0 {
		if err := c.printTable(header, rows); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Left)) {
		c.progress("%s: %d are left, locked by others or too new; the next run meets them", name, r.Left[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Skipped)) {
		c.progress("%s: not cleaned: %s", name, r.Skipped[name])
	}
	if r.Guard != "" {
		c.progress("%s: the guard holds this: %s", c.warn("held"), r.Guard)
	}
	if len(rows)+len(r.Errors)+len(r.Skipped) == 0 {
		c.progress("no child tables: no foreign key leads to the bound tables, and tasks[].children names none")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Errors)) {
		c.progress("%s: %s", name, r.Errors[name])
	}
	return nil
}
