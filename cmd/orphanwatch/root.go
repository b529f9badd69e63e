package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// The exit codes; scripts rely on them.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2 // or configuration
	exitOrphans     = 3
	exitNotAllowed  = 4 // or not confirmed
	exitUnreachable = 5
	exitFindings    = 6
)

// exitCode is an error that has been told already, and asks for its code.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// usageError is one of the command line or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// streams are what a command reads and writes: data on out, progress on err.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// cli is what all commands share.
type cli struct {
	streams
	environ    []string
	configPath string
	output     string
}

func execute(ctx context.Context, args []string, s streams, environ []string) int {
	c := &cli{streams: s, environ: environ}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	err := root.ExecuteContext(ctx)
	var code exitCode
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		fmt.Fprintln(s.err, "orphanwatch:", err)
		return exitUsage
	case errors.Is(err, reconciler.ErrUnreachable):
		fmt.Fprintln(s.err, "orphanwatch:", err)
		return exitUnreachable
	}
	fmt.Fprintln(s.err, "orphanwatch:", err)
	return exitError
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "orphanwatch",
		Short: "Remove from Redis what Celery left there of deleted PostgreSQL rows",
		Long: `orphanwatch follows the deletes of a PostgreSQL table (scan_tasks) and the result
keys that Celery writes to Redis. Whatever belongs to a deleted row is removed
within milliseconds; nothing of a row that exists is ever touched.

Configuration: DATABASE_URL and REDIS_URL are enough. Everything else is in
orphanwatch.yaml or ORPHANWATCH_<SECTION>_<KEY>.

Exit codes: 0 ok, 1 error, 2 usage or configuration, 3 orphans found, 4 not allowed
or not confirmed, 5 a dependency is unreachable, 6 doctor findings.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVarP(&c.configPath, "config", "c", "", "configuration file (default: ORPHANWATCH_CONFIG, else orphanwatch.yaml where it exists)")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w\n  see: %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(c.runCommand(), c.versionCommand())
	for _, cmd := range root.Commands() {
		if cmd.Args == nil {
			cmd.Args = cobra.NoArgs
		}
		args := cmd.Args
		cmd.Args = func(cmd *cobra.Command, a []string) error {
			if err := args(cmd, a); err != nil {
				return usageError{fmt.Errorf("%w\n  see: %s --help", err, cmd.CommandPath())}
			}
			return nil
		}
	}
	return root
}

// load reads the configuration.
func (c *cli) load() (*wiring.Config, error) {
	config, err := wiring.Load(wiring.LoadOptions{Path: c.configPath, Environ: c.environ})
	if err != nil {
		return nil, usageError{err}
	}
	return config, nil
}
