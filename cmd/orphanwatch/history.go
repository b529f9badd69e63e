package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/wiring"
)

func (c *cli) historyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "history TASK_ID",
		Short: "Show what was removed of a task, when, why and on what evidence",
		Long: `Show what was removed of a task, and of the row with that key: when, why, on what
evidence, and what can still be restored. It is remembered for policy.remember.
Exit code 1 if nothing is.`,
		Example: `  orphanwatch history 5f0c6b0e-8f0a-4c39-9d2b-7b6f3a1c2d4e`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, stores, err := c.stores()
			if err != nil {
				return err
			}
			defer stores.Close()
			ctx, cancel := wiring.Bounded(cmd.Context())
			defer cancel()
			entries, err := stores.Celery.History(ctx, args[0])
			if err != nil {
				return err
			}
			if c.output == outputJSON {
				err = c.printJSON(append([]wiring.HistoryEntry{}, entries...))
			} else {
				err = c.printHistory(entries)
			}
			if err == nil && len(entries) == 0 {
				c.progress("%s: nothing is remembered of it (policy.remember is %s)", args[0], span(config.Policy.Remember))
				return exitCode(exitError)
			}
			return err
		},
	}
}

func (c *cli) printHistory(entries []wiring.HistoryEntry) error {
	var rows []table.Row
	add := func(name, format string, args ...any) {
		rows = append(rows, table.Row{name, fmt.Sprintf(format, args...)})
	}
	for i, e := range entries {
		if i > 0 {
			add("", "")
		}
		add(e.Kind, "%s", e.ID)
		if e.Table != "" {
			add("row", "%s, key %s", e.Table, e.Key)
		}
		add("removed", "%s", clock(e.Removed))
		if !e.RemovedAgain.IsZero() {
			add("last removed", "%s", clock(e.RemovedAgain))
		}
		var counts []string
		for _, kind := range slices.Sorted(maps.Keys(e.Count)) {
			counts = append(counts, fmt.Sprintf("%d %s", e.Count[kind], kind))
		}
		add("what", "%s", strings.Join(counts, ", "))
		evidence := "absent: no such row, no delete seen"
		if e.Evidence == "deleted" {
			evidence = "deleted: the delete was seen"
			if !e.CommitTime.IsZero() {
				evidence += ", committed " + clock(e.CommitTime)
			}
			if e.LSN != "" {
				evidence += fmt.Sprintf(", lsn %s, xid %d", e.LSN, e.XID)
			}
		}
		add("evidence", "%s", evidence)
		add("trigger", "%s", e.Trigger)
		if e.TraceID != "" {
			add("trace", "%s", e.TraceID)
		}
		if !e.RevokedAt.IsZero() {
			heard := ""
			if e.RevokeHeard != nil {
				heard = fmt.Sprintf(", heard by %d workers", *e.RevokeHeard)
			}
			add("revoked", "%s%s", clock(e.RevokedAt), heard)
		}
		if !e.RestoredAt.IsZero() {
			add("restored", "%s, held until %s", clock(e.RestoredAt), clock(e.HoldUntil))
		}
		for _, key := range slices.Sorted(maps.Keys(e.Undo)) {
			add("can be restored", "%s", key)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return c.printTable(nil, rows)
}
