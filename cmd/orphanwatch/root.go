package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

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

// notAllowedError is what is refused, or was not confirmed.
type notAllowedError struct{ error }

func (e notAllowedError) Unwrap() error { return e.error }

// cli is what all commands share.
type cli struct {
	streams
	environ    []string
	configPath string
	// output is table or json.
	output string
	// config is what load has read.
	config *wiring.Config
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
	var notAllowed notAllowedError
	var cannotTell cannotTellError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		fmt.Fprintln(s.err, "orphanwatch:", err)
		return exitUsage
	case errors.As(err, &notAllowed):
		fmt.Fprintln(s.err, "orphanwatch:", err)
		return exitNotAllowed
	case errors.Is(err, reconciler.ErrUnreachable), errors.As(err, &cannotTell):
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

Configuration: DATABASE_URL and REDIS_URL are enough. Everything else is in the file
that --config names, or in ORPHANWATCH_<SECTION>_<KEY>.

Exit codes: 0 ok, 1 error, 2 usage or configuration, 3 orphans found, 4 not allowed
or not confirmed, 5 a dependency is unreachable, 6 doctor findings.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVarP(&c.configPath, "config", "c", "", "configuration file (default: what ORPHANWATCH_CONFIG names, else none)")
	root.PersistentFlags().StringVarP(&c.output, "output", "o", outputTable, "what goes to stdout: table or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputTable, outputJSON}, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w\n  see: %s --help", err, cmd.CommandPath())}
	})
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if c.output != outputTable && c.output != outputJSON {
			return usageError{fmt.Errorf("--output is %q, not table or json\n  see: %s --help", c.output, cmd.CommandPath())}
		}
		return nil
	}
	root.AddCommand(
		c.runCommand(), c.demoCommand(), c.statusCommand(), c.doctorCommand(), c.setupCommand(), c.teardownCommand(),
		c.tasksCommand(), c.cleanupOrphanedCommand(), c.cleanupExpiredCommand(), c.cleanupDatabaseCommand(),
		c.purgeQueuesCommand(), c.fullCleanupCommand(), c.checkCommand(), c.healthCommand(),
		c.pauseCommand(), c.resumeCommand(), c.restoreCommand(), c.historyCommand(),
		c.tokenCommand(), c.configCommand(), c.versionCommand(),
	)
	strict(root)
	return root
}

// strict makes errors of usage of wrong arguments and unknown commands, in cmd and
// all below it.
func strict(cmd *cobra.Command) {
	if cmd.HasSubCommands() {
		cmd.Args, cmd.SuggestionsMinimumDistance = cobra.ArbitraryArgs, 2
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			err := fmt.Errorf("unknown command %q for %s", args[0], cmd.CommandPath())
			for _, s := range cmd.SuggestionsFor(args[0]) {
				err = fmt.Errorf("%w; did you mean %s?", err, s)
			}
			return usageError{fmt.Errorf("%w\n  see: %s --help", err, cmd.CommandPath())}
		}
		for _, sub := range cmd.Commands() {
			strict(sub)
		}
		return
	}
	args := cmd.Args
	if args == nil {
		args = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, a []string) error {
		if err := args(cmd, a); err != nil {
			return usageError{fmt.Errorf("%w\n  see: %s --help", err, cmd.CommandPath())}
		}
		return nil
	}
}

// load reads the configuration.
func (c *cli) load() (*wiring.Config, error) {
	config, err := wiring.Load(wiring.LoadOptions{Path: c.configPath, Environ: c.environ})
	if err != nil {
		return nil, usageError{err}
	}
	c.config = config
	return config, nil
}

// stores opens both stores as configured; the caller closes them. Errors tell what a log would.
func (c *cli) stores() (*wiring.Config, *wiring.Stores, error) {
	config, err := c.load()
	if err != nil {
		return nil, nil, err
	}
	stores, err := wiring.OpenStores(config, nil)
	if err != nil {
		return nil, nil, usageError{err}
	}
	return config, stores, nil
}

// operator is stores with the reconciler; the caller closes it. What it warns of is
// told on stderr.
func (c *cli) operator(ctx context.Context) (*wiring.Operator, error) {
	config, err := c.load()
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(c.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	o, err := wiring.OpenOperator(ctx, config, wiring.Version(version), log)
	if err != nil {
		return nil, usageError{err}
	}
	return o, nil
}
