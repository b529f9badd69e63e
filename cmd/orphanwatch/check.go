package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func (c *cli) checkCommand() *cobra.Command {
	var q reconciler.RowQuery
	cmd := &cobra.Command{
		Use:   "check TASK_ID",
		Short: "Ask whether the row of a task exists",
		Long: `Ask whether the row of a task exists, as a worker does before it runs the task.
Where tasks lead to their rows by an argument (args:N, kwargs:K), give it as --key.

Exit code 0 if the row exists, 3 if it is gone, 5 if that cannot be told. A row whose
insert is not committed yet does not exist yet.`,
		Example: `  orphanwatch check 5f0c6b0e-8f0a-4c39-9d2b-7b6f3a1c2d4e && ./run-the-scan
  orphanwatch check 5f0c6b0e-8f0a-4c39-9d2b-7b6f3a1c2d4e --key 42`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := c.operator(cmd.Context())
			if err != nil {
				return err
			}
			defer o.Close()
			report, err := o.Check(cmd.Context(), args[0], q)
			if err != nil {
				return cannotTellError{err}
			}
			if c.output == outputJSON {
				err = c.printJSON(report)
			} else {
				_, err = fmt.Fprintln(c.out, report.Reason)
			}
			switch {
			case err != nil:
				return err
			case report.Exists == nil:
				return exitCode(exitUnreachable)
			case !*report.Exists:
				return exitCode(exitOrphans)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&q.Key, "key", "", "the key of its row, where its id is not that")
	cmd.Flags().StringVar(&q.Name, "name", "", "the task's name: then absence counts only for a binding that has it in its names")
	cmd.Flags().StringVar(&q.Table, "table", "", "the bound table of --key, where there are several")
	return cmd
}

// cannotTellError is any error of check: a script must not take it for an answer.
type cannotTellError struct{ error }

func (e cannotTellError) Unwrap() error { return e.error }
