package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func (c *cli) purgeQueuesCommand() *cobra.Command {
	var queues []string
	unacked := false
	cmd := &cobra.Command{
		Use:   "purge-queues",
		Short: "Empty queues, after showing what is in them",
		Long: `Take every message out of queues, of living rows too. It shows first what is there, by
queue and task name. On a terminal the queue's name has to be typed (all, for more
than one); elsewhere it needs --yes.

The messages are kept for policy.quarantine: orphanwatch restore --queue Q puts them
back. Messages in workers' hands stay, unless --include-unacked; what a worker runs
it finishes all the same. Bindings are not touched.`,
		Example: `  orphanwatch purge-queues --dry-run
  orphanwatch purge-queues --queue celery
  orphanwatch purge-queues --queue celery --yes`,
	}
	u := c.cleanupFlags(cmd, false)
	cmd.Flags().StringSliceVar(&queues, "queue", nil, "only these queues (default: all)")
	cmd.Flags().BoolVar(&unacked, "include-unacked", false, "also messages that workers hold")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := c.operator(cmd.Context())
		if err != nil {
			return err
		}
		defer o.Close()
		return perform(cmd.Context(), u, asking[reconciler.QueuesReport]{
			do: func(ctx context.Context, how reconciler.Cleanup) (reconciler.QueuesReport, error) {
				return o.PurgeQueues(ctx, queues, unacked, how)
			},
			filter: map[string]any{"queues": &queues, "include_unacked": unacked},
			show:   c.printQueues,
			count: func(r reconciler.QueuesReport) (n int64) {
				for _, q := range r.Queues {
					n += q.Messages
					if unacked {
						n += q.Unacked
					}
				}
				return n
			},
			ask: func(r reconciler.QueuesReport) error {
				for _, q := range r.Queues { // one that appears meanwhile was not shown
					if !slices.Contains(queues, q.Queue) {
						queues = append(queues, q.Queue)
					}
				}
				return c.askQueue(r)
			},
		})
	}
	return cmd
}

// askQueue wants the name of the queue, or all for more than one.
func (c *cli) askQueue(r reconciler.QueuesReport) error {
	want := "all"
	if len(r.Queues) == 1 {
		want = r.Queues[0].Queue
	}
	fmt.Fprintf(c.err, "to empty this, type %q: ", want)
	answer, err := bufio.NewReader(c.in).ReadString('\n')
	if strings.TrimSpace(answer) != want {
		return notAllowedError{errors.Join(errors.New("not confirmed"), err)}
	}
	return nil
}

func (c *cli) printQueues(r reconciler.QueuesReport) error {
	if c.output == outputJSON {
		return c.printJSON(r)
	}
	var rows []table.Row
	for _, q := range r.Queues {
		row := table.Row{q.Queue, q.Messages, q.Unacked, q.Cleaned}
		for i, name := range slices.Sorted(maps.Keys(q.Tasks)) {
			if i > 0 {
				row = table.Row{"", "", "", ""}
			}
			shown := name
			if name == "" {
				shown = "(unreadable)"
			}
			rows = append(rows, append(row, fmt.Sprintf("%d %s", q.Tasks[name], shown)))
		}
		if len(q.Tasks) == 0 {
			rows = append(rows, append(row, ""))
		}
	}
	if len(rows) > 0 {
		if err := c.printTable(table.Row{"queue", "waiting", "unacked", "taken out", "tasks"}, rows); err != nil {
			return err
		}
	}
	if r.DryRun {
		c.progress("nothing was taken out")
	} else {
		c.progress("%d messages taken out; to put them back: orphanwatch restore --queue Q", r.Cleaned)
	}
	return nil
}
