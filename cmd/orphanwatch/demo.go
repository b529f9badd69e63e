package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// demoGrace is policy.grace in the demo, shortened so that orphans are seen to go.
const demoGrace = 2 * time.Second

// demo is one run of the command.
type demo struct {
	*cli
	*world
	screen *screen
	length time.Duration

	sb       *sandbox.Sandbox
	database string
	daemon   *demoDaemon
	worker   *sandbox.Worker   // nil: we write the results ourselves
	later    *sandbox.Worker   // consumes laterQueue, in the end
	producer *sandbox.Producer // nil like worker
}

func (c *cli) demoCommand() *cobra.Command {
	var keep bool
	var length time.Duration
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole thing on throw-away servers",
		Long: `Start a throw-away PostgreSQL and Redis, Celery workers where Python has Celery, and
the daemon; then insert rows, run their tasks, delete rows one by one and in bulk,
and while their tasks run or wait, set orphan keys, kill the daemon with kill -9 and
start it again.

In the end every row is compared with its result: exit 0 if each deleted row's
result is gone (lost: 0), each living row's is there, byte for byte (wrongly
removed: 0), and no task ran that waited when its row was deleted, else exit 1.
No process and no file is left, whatever ends it.`,
		Example: `  orphanwatch demo
  orphanwatch demo --keep      # the servers stay until Ctrl-C, to try things`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if length <= 0 {
				return usageError{errors.New("--duration must be positive")}
			}
			d := &demo{cli: c, length: length, screen: newScreen(c.out, c.environ, length)}
			return d.run(cmd.Context(), keep, cmd.Root())
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave everything running until Ctrl-C")
	cmd.Flags().DurationVar(&length, "duration", 30*time.Second, "about how long it takes; less than 20s is not kept")
	return cmd
}

func (d *demo) run(ctx context.Context, keep bool, root *cobra.Command) (err error) {
	defer func() {
		if closeErr := d.close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
		if ctx.Err() != nil && err != nil {
			err = errors.New("demo: interrupted; nothing is left behind")
		}
	}()
	if err := d.setUp(ctx); err != nil {
		return d.failed(err)
	}
	v, err := d.perform(ctx)
	if err != nil {
		return d.failed(err)
	}
	bad := d.report(v)
	if keep {
		d.keep(ctx, root)
	}
	if bad {
		return d.failed(errors.New("something was lost or wrongly removed, or ran"))
	}
	return nil
}

// perform plays the script beside the table and the observer, and judges.
func (d *demo) perform(ctx context.Context) (v verdict, err error) {
	g, ctx := errgroup.WithContext(ctx)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	g.Go(func() error { d.screen.run(watching, d.world, d.daemon.describe); return nil })
	g.Go(func() error {
		for sleep(watching, time.Second) == nil {
			if err := errors.Join(d.daemon.ended(), d.look(ctx)); err != nil && watching.Err() == nil {
				return err
			}
		}
		return nil
	})
	g.Go(func() error {
		defer stop()
		if err := d.script(ctx); err != nil {
			return err
		}
		v, err = d.settle(ctx)
		return err
	})
	return v, g.Wait()
}

// report prints the summary and tells whether anything is bad.
func (d *demo) report(v verdict) (bad bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := func(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }
	p("")
	p("%s", d.screen.bold("summary"))
	p("  removed  %6d  result keys of deleted rows, and orphan keys", v.removed)
	for i, w := range d.waves {
		note := w.note
		if i == oneByOne {
			note = d.lag() + " after the commit" + load()
		}
		p("    %-26s %6d  %s", waveNames[i], len(w.ids), note)
	}
	p("  kept     %6d  results of living rows, byte for byte", v.kept)
	bad = len(v.lost)+len(v.wrong)+len(v.ran) > 0
	color := "32"
	if bad {
		color = "31"
	}
	p("  %s", d.screen.paint(color, fmt.Sprintf("lost: %d", len(v.lost))))
	p("  %s", d.screen.paint(color, fmt.Sprintf("wrongly removed: %d", len(v.wrong))))
	p("  %s", d.screen.paint(color, fmt.Sprintf("ran though its row was deleted: %d", len(v.ran))))
	for _, key := range v.lost[:min(5, len(v.lost))] {
		p("    left without a row: %s", key)
	}
	wrong := slices.Sorted(maps.Keys(v.wrong))
	for _, key := range wrong[:min(5, len(wrong))] {
		p("    %s: %s", key, v.wrong[key])
	}
	return bad
}

// load tells how busy the machine is, without which a lag says little; "" where that
// is not known.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	one, _, _ := strings.Cut(string(text), " ")
	return fmt.Sprintf(" (%d CPUs, load %s)", runtime.NumCPU(), one)
}

// failed prints what helps to see why.
func (d *demo) failed(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if d.daemon != nil {
		fmt.Fprintf(d.err, "\nthe daemon's last lines (%s):\n%s\n", d.daemon.log, d.daemon.tail())
	}
	return fmt.Errorf("demo: %w", err)
}

// keep leaves everything to the user until Ctrl-C.
func (d *demo) keep(ctx context.Context, root *cobra.Command) {
	if d.worker != nil {
		if err := d.worker.Start(ctx); err != nil {
			fmt.Fprintln(d.err, "the Celery worker does not start again:", err)
		}
	}
	program, err := os.Executable()
	if err != nil {
		program = "orphanwatch"
	}
	p := func(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }
	p("\neverything stays until Ctrl-C; the daemon's log is %s", d.daemon.log)
	p("in another terminal:\n")
	p("  export DATABASE_URL='%s'", d.database)
	p("  export REDIS_URL='%s'", d.sb.Redis.URL())
	p(`  psql "$DATABASE_URL" -c 'DELETE FROM scan_tasks WHERE id = (SELECT id FROM scan_tasks LIMIT 1) RETURNING id'`)
	p(`  redis-cli -u "$REDIS_URL" EXISTS %s<id>`, resultPrefix)
	p(`  redis-cli -u "$REDIS_URL" SETEX %s%s 3600 x    # gone after %v`, resultPrefix, newUUID(), demoGrace)
	p("  curl -s http://%s/metrics | grep ^orphanwatch_", d.daemon.addr)
	for _, args := range []string{"status", "doctor", "restore --since 10m"} {
		name, _, _ := strings.Cut(args, " ")
		if found, _, err := root.Find([]string{name}); err == nil && found.Name() == name {
			p("  %s %s", program, args)
		}
	}
	p("")
	for sleep(ctx, time.Second) == nil {
		if err := d.daemon.ended(); err != nil {
			fmt.Fprintf(d.err, "%v; its last lines:\n%s\n", err, d.daemon.tail())
			return
		}
	}
	fmt.Fprintln(d.err, "stopping")
}

// close ends everything, the daemon first.
func (d *demo) close() error {
	var errs []error
	if d.daemon != nil {
		errs = append(errs, d.daemon.stop())
	}
	if d.world != nil {
		errs = append(errs, d.redis.Close())
	}
	if d.sb != nil {
		errs = append(errs, d.sb.Close())
	}
	return errors.Join(errs...)
}
