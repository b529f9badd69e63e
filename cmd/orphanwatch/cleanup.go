package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// cleanup is what the commands that remove something share.
type cleanup struct {
	*cli
	action             string
	dryRun, yes, force bool
}

// cleanupFlags adds --dry-run and --yes to a command, and --force where the guard
// watches over it.
func (c *cli) cleanupFlags(cmd *cobra.Command, guarded bool) *cleanup {
	u := &cleanup{cli: c, action: cmd.Name()}
	cmd.Flags().BoolVar(&u.dryRun, "dry-run", false, "change nothing, only tell what would be done")
	cmd.Flags().BoolVarP(&u.yes, "yes", "y", false, "do not ask")
	if guarded {
		cmd.Flags().BoolVar(&u.force, "force", false, "go past the guard; it is said in the audit log")
	}
	return u
}

// asking is a cleanup that is previewed before it is confirmed.
type asking[R any] struct {
	// filter is what it is limited to, for the audit log.
	filter map[string]any
	do     func(context.Context, reconciler.Cleanup) (R, error)
	// show prints a report; count is how much there is to do by a preview.
	show  func(R) error
	count func(R) int64
	// failed is what went wrong in a part, which is shown already; nil for nothing can.
	failed func(R) error
	// ask puts the question; nil for y or n to question.
	ask      func(R) error
	question string
}

// perform shows what would be done and asks, where it is a terminal and not --yes;
// refuses elsewhere without --yes; and then does it. A dry run is always allowed.
func perform[R any](ctx context.Context, u *cleanup, a asking[R]) error {
	if !u.dryRun && !u.yes {
		if !isTerminal(u.in) || !isTerminal(u.err) {
			return notAllowedError{errors.New("not confirmed: give --yes (or --dry-run to look only), or run it on a terminal")}
		}
		preview, err := once(ctx, u, a, true)
		if err != nil || a.count(preview) == 0 {
			return err
		}
		if a.ask == nil {
			err = ask(u.in, u.err, a.question)
		} else {
			err = a.ask(preview)
		}
		if err != nil {
			return err
		}
	}
	report, err := once(ctx, u, a, u.dryRun)
	if err == nil && a.failed != nil {
		err = a.failed(report)
	}
	return err
}

func failedIf(failed bool) error {
	if failed {
		return exitCode(exitError)
	}
	return nil
}

// once does it, or looks, and shows what came of it: after an error, what was done.
func once[R any](ctx context.Context, u *cleanup, a asking[R], dryRun bool) (R, error) {
	var report R
	do := func() (any, error) {
		m := u.meter()
		defer m.done()
		var err error
		report, err = a.do(ctx, reconciler.Cleanup{Trigger: reconciler.ByCLI, DryRun: dryRun, Force: u.force, Progress: m.tell})
		return report, err
	}
	var err error
	if dryRun {
		_, err = do()
	} else {
		err = u.audited(ctx, wiring.AuditEntry{Action: u.action, Filter: a.filter, Force: u.force}, do)
	}
	if err == nil || a.count(report) > 0 {
		err = errors.Join(a.show(report), ended(err))
	} else {
		err = ended(err)
	}
	return report, err
}

// ended turns what the reconciler answers into what a user can act on.
func ended(err error) error {
	var guarded *reconciler.GuardedError
	switch {
	case errors.As(err, &guarded):
		return notAllowedError{fmt.Errorf("%w\n  fix: see what is wrong (orphanwatch status); if all is right, go past it with --force, or, where it is another database than at the first start, with orphanwatch resume --accept-absent", err)}
	case errors.Is(err, reconciler.ErrPaused):
		return notAllowedError{fmt.Errorf("%w\n  fix: orphanwatch resume", err)}
	case errors.Is(err, reconciler.ErrBusy):
		return notAllowedError{err}
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted: what is told above was done, the rest was not begun")
	}
	return err
}

// meter shows the progress of long work on stderr: one line that is drawn again on a
// terminal, a line every few seconds elsewhere, nothing in the first second.
type meter struct {
	out   io.Writer
	live  bool
	begin time.Time

	mu      sync.Mutex
	stage   string
	staged  time.Time // when the stage began
	shown   time.Time
	width   int
	wrote   bool
	now     func() time.Time
	between time.Duration
}

func (c *cli) meter() *meter {
	m := &meter{out: c.err, live: isTerminal(c.err), now: time.Now, between: 5 * time.Second}
	if m.live {
		m.between = 200 * time.Millisecond
	}
	m.begin = m.now()
	return m
}

// tell shows p, unless something was shown just now.
func (m *meter) tell(p reconciler.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if p.Stage != m.stage {
		m.stage, m.staged = p.Stage, now
	}
	if now.Sub(m.begin) < time.Second || now.Sub(m.shown) < m.between {
		return
	}
	m.shown = now
	line := describe(p, now.Sub(m.staged))
	if !m.live {
		fmt.Fprintln(m.out, line)
		return
	}
	pad := max(m.width-len(line), 0)
	m.width, m.wrote = len(line), true
	fmt.Fprint(m.out, "\r"+line+strings.Repeat(" ", pad))
}

// done ends the line.
func (m *meter) done() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wrote {
		fmt.Fprint(m.out, "\r"+strings.Repeat(" ", m.width)+"\r")
		m.wrote = false
	}
}

// describe is a line such as "scanning: 120000 of 1000000 (12 %), 60000/s, 15 s left".
func describe(p reconciler.Progress, took time.Duration) string {
	line := p.Stage
	if p.Done == 0 && p.Total == 0 {
		return line
	}
	line += fmt.Sprintf(": %d", p.Done)
	if p.Total > 0 {
		line += fmt.Sprintf(" of %d (%d %%)", p.Total, 100*min(p.Done, p.Total)/p.Total)
	}
	rate := float64(p.Done) / max(took.Seconds(), 0.001)
	if took >= 500*time.Millisecond && rate >= 1 {
		line += fmt.Sprintf(", %.0f/s", rate)
		if p.Total > p.Done {
			line += ", " + span(time.Duration(float64(p.Total-p.Done)/rate*float64(time.Second))) + " left"
		}
	}
	return line
}
