package main

import (
	"bufio"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func (c *cli) tasksCommand() *cobra.Command {
	var orphaned, code bool
	cmd := &cobra.Command{
		Use:   "tasks",
		Short: "List what Redis holds of tasks, with a verdict on each",
		Long: `List what Redis holds of tasks: messages that wait or are in workers' hands, then
results and companion keys, each with the verdict and the reason:

  living    the row exists
  orphaned  the row is gone; a listing does not wait for the grace
  unknown   nothing tells whose it is
  foreign   of tasks that no binding is about

It streams: any number of keys takes the same memory. A key may be listed twice where
keys come and go meanwhile.`,
		Example: `  orphanwatch tasks --orphaned
  orphanwatch tasks -o json | jq -r '.tasks[] | select(.verdict == "unknown") | .key'
  orphanwatch tasks --orphaned --exit-code > /dev/null || echo "there are some"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := c.operator(cmd.Context())
			if err != nil {
				return err
			}
			defer o.Close()
			list := c.taskList(orphaned)
			orphans, m := 0, c.meter()
			defer m.done()
			err = o.Reconciler.Tasks(cmd.Context(), orphaned, func(tasks []reconciler.TaskInfo) error {
				for _, t := range tasks {
					if t.Orphaned {
						orphans++
					}
				}
				if !isTerminal(c.out) { // else the list itself shows that it goes on
					done, total := o.Celery.Scanned()
					m.tell(reconciler.Progress{Stage: "listing", Done: done, Total: total})
				}
				return list.add(tasks)
			})
			if err != nil {
				list.flush()
				return ended(err)
			}
			if err := list.end(); err != nil {
				return err
			}
			if code && orphans > 0 {
				return exitCode(exitOrphans)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&orphaned, "orphaned", false, "only those whose row is gone")
	cmd.Flags().BoolVar(&code, "exit-code", false, "exit 3 if there is any orphan")
	return cmd
}

// taskList writes tasks as they come: lines of columns, or the API's JSON.
type taskList struct {
	*cli
	out          *bufio.Writer
	orphanedOnly bool
	n            int
}

func (c *cli) taskList(orphanedOnly bool) *taskList {
	return &taskList{cli: c, out: bufio.NewWriter(c.out), orphanedOnly: orphanedOnly}
}

const taskLine = "%-36s  %-10s  %-8s  %-24s  %s\n"

func (l *taskList) add(tasks []reconciler.TaskInfo) error {
	for _, t := range tasks {
		if l.output != outputJSON {
			if l.n == 0 {
				fmt.Fprintf(l.out, taskLine, "TASK ID", "WHAT", "VERDICT", "NAME", "REASON")
			}
			l.n++
			fmt.Fprintf(l.out, taskLine, oneLine(t.ID), t.Kind, t.Verdict, oneLine(t.Name), t.Reason)
			continue
		}
		before := ",\n    "
		if l.n == 0 {
			before = "{\n  \"tasks\": [\n    "
		}
		l.n++
		body, err := json.Marshal(t)
		if err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		_, _ = l.out.WriteString(before) // the error stays until the flush
		_, _ = l.out.Write(body)
	}
	return l.flush()
}

func (l *taskList) flush() error {
	if err := l.out.Flush(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func (l *taskList) end() error {
	if l.output == outputJSON {
		before := "\n  ],"
		if l.n == 0 {
			before = "{\n  \"tasks\": [],"
		}
		fmt.Fprintf(l.out, "%s\n  \"count\": %d,\n  \"orphaned_only\": %t,\n  \"next_cursor\": \"\"\n}\n", before, l.n, l.orphanedOnly)
	}
	if err := l.flush(); err != nil {
		return err
	}
	if l.output != outputJSON {
		what := "in all"
		if l.orphanedOnly {
			what = "orphaned"
		}
		l.progress("%d %s", l.n, what)
	}
	return nil
}
