package main

import (
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/wiring"
)

func (c *cli) doctorCommand() *cobra.Command {
	fix := false
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything that both stores must have, with the fix for each",
		Long: `Check everything that both stores must have: a line for each, and for what is wrong
the exact command that mends it. run refuses to start, or warns, with the same words.

A line says ok, wrong, or warn for a recommendation. Exit codes: 0 nothing is
wrong, 5 a store is unreachable, 6 something is wrong.

--fix applies what is safe: flags of Redis keyspace events are added to those that
are set (not with redis.configure: never), publication and slot are made.`,
		Example: `  orphanwatch doctor
  orphanwatch doctor --fix
  orphanwatch doctor -o json | jq '.checks[] | select(.ok | not)'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, stores, err := c.stores()
			if err != nil {
				return err
			}
			defer stores.Close()
			d := stores.Diagnose(cmd.Context())
			report := doctorReport{Diagnosis: d, Fixed: []string{}}
			if fix {
				report = c.mend(cmd, stores, d)
			}
			if c.output == outputJSON {
				err = c.printJSON(report)
			} else {
				err = c.printDoctor(report)
			}
			switch {
			case err != nil:
				return err
			case len(report.Unreachable) > 0:
				return exitCode(exitUnreachable)
			case report.Findings() > 0:
				return exitCode(exitFindings)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "apply the fixes that are safe")
	return cmd
}

// doctorReport is a diagnosis, after what --fix did.
type doctorReport struct {
	*wiring.Diagnosis
	Fixed  []string `json:"fixed"`
	Failed []string `json:"failed,omitempty"`
}

// mend applies the safe fixes, and looks again.
func (c *cli) mend(cmd *cobra.Command, stores *wiring.Stores, d *wiring.Diagnosis) doctorReport {
	did, failed := stores.Mend(cmd.Context(), d)
	report := doctorReport{Diagnosis: d, Fixed: append([]string{}, did...)}
	for _, what := range did {
		c.progress("done: %s", what)
	}
	for _, err := range failed {
		c.progress("failed: %v", err)
		report.Failed = append(report.Failed, err.Error())
	}
	if len(did)+len(failed) == 0 {
		c.progress("nothing that --fix may mend")
		return report
	}
	report.Diagnosis = stores.Diagnose(cmd.Context())
	return report
}

func (c *cli) printDoctor(r doctorReport) error {
	var rows []table.Row
	warned := 0
	for _, check := range r.Checks {
		status := check.Status()
		switch status {
		case "ok":
			status = c.good(status)
		case "warn":
			status = c.warn(status)
			warned++
		default:
			status = c.bad(status)
		}
		rows = append(rows, table.Row{status, check.Store, check.Name, oneLine(check.Detail)})
		for i, line := range strings.Split(check.Fix, "\n") {
			switch {
			case line == "":
			case i == 0:
				rows = append(rows, table.Row{"", "", "", "fix: " + line})
			default:
				rows = append(rows, table.Row{"", "", "", "     " + line})
			}
		}
	}
	if err := c.printTable(nil, rows); err != nil {
		return err
	}
	ok := len(r.Checks) - r.Findings() - warned
	c.progress("%d ok, %d to mend, %d recommended", ok, r.Findings(), warned)
	return nil
}
