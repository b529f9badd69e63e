package wiring

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/orphanwatch/orphanwatch/watcher"
)

const (
	// readyPatience is after what time systemd is told that the service has started,
	// though it is not ready. Usually READY=1 comes with the first 200 of /readyz, so
	// that `systemctl start` returns when deletes are followed. But a store that is away
	// is no failed start: it is waited for, as when it goes away later. Until READY=1
	// a start job is open: past TimeoutStartSec (90 s) it would be killed and begun anew
	// for as long as the outage lasts, and with EXTEND_TIMEOUT_USEC it would hold up a
	// boot. What ends the process (configuration, rights) has done so by then.
	readyPatience = 30 * time.Second
	// notifyEvery is how often the state is looked at.
	notifyEvery = time.Second
	// stoodStill is how late a look is where the process as a whole was stopped (SIGSTOP,
	// a container that is paused): no loop is to blame for that time.
	stoodStill = 10 * time.Second
	// maxStatus is the longest status line, in bytes.
	maxStatus = 300
)

// Notifier tells systemd whether the daemon is ready, how it is in one line, and that
// it is alive: only as long as no loop hangs. One that does is logged in any case.
type Notifier struct {
	ready  func() (ok bool, why string)
	status func() watcher.Status
	pulse  *watcher.Pulse
	notify func(state string) error
	// watchdog is WATCHDOG_USEC, 0 for none.
	watchdog time.Duration
	log      *slog.Logger

	said struct {
		ready         bool
		status, error string
		hangs         string
		alive         time.Time
	}
	// looked is when look was last called.
	looked time.Time
}

// NewNotifier finds systemd by NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, which
// are the library's to read: they are of the protocol, not of our configuration.
// Without them nothing is sent.
func NewNotifier(controller *watcher.Controller, pulse *watcher.Pulse, log *slog.Logger) (*Notifier, error) {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, fmt.Errorf("systemd's watchdog: %w", err)
	}
	return &Notifier{
		ready: controller.Ready, status: controller.Status, pulse: pulse, watchdog: watchdog, log: log,
		notify: func(state string) error {
			_, err := daemon.SdNotify(false, state)
			return err
		},
	}, nil
}

// Run tells until ctx ends, which is told too.
func (n *Notifier) Run(ctx context.Context) error {
	tick := time.NewTicker(n.every())
	defer tick.Stop()
	began := time.Now()
	for {
		n.look(ctx, time.Since(began))
		select {
		case <-ctx.Done():
			n.send(ctx, daemon.SdNotifyStopping+"\nSTATUS=stopping: what is in hand is finished")
			return nil
		case <-tick.C:
		}
	}
}

// every is how often it looks.
func (n *Notifier) every() time.Duration {
	if n.watchdog == 0 {
		return notifyEvery
	}
	return min(notifyEvery, n.watchdog/2)
}

// look tells what has changed. It waits for the locks that all loops need: where it
// hangs there, the watchdog is not fed either.
func (n *Notifier) look(ctx context.Context, up time.Duration) {
	now := time.Now()
	if late := now.Sub(n.looked); !n.looked.IsZero() && late > stoodStill {
		n.pulse.Pardon()
		n.log.WarnContext(ctx, "the process stood still: it was stopped, or had no CPU", "seconds", int(late.Seconds()))
	}
	n.looked = now
	hangs := n.hanging(ctx, now)
	line := n.line(hangs)
	if hangs == "" && n.watchdog > 0 && now.Sub(n.said.alive) > (n.watchdog-n.every())/2 {
		n.said.alive = now
		n.send(ctx, daemon.SdNotifyWatchdog)
	}
	if line != n.said.status {
		n.said.status = line
		n.send(ctx, "STATUS="+line)
	}
	if ok, _ := n.ready(); !n.said.ready && (ok || up >= readyPatience) {
		n.said.ready = true
		n.send(ctx, daemon.SdNotifyReady)
	}
}

// hanging names the loops that hang, and logs once that they do.
func (n *Notifier) hanging(ctx context.Context, now time.Time) string {
	stalled := n.pulse.Stalled(now)
	names := make([]string, len(stalled))
	for i, s := range stalled {
		names[i] = s.Loop
	}
	hangs := strings.Join(names, ", ")
	if hangs == n.said.hangs {
		return hangs
	}
	n.said.hangs = hangs
	if hangs == "" {
		n.log.WarnContext(ctx, "what had hung moves again")
		return ""
	}
	what := "restart the daemon; send it SIGQUIT for that, and its goroutines are printed"
	if n.watchdog > 0 {
		what = "the watchdog is not fed any more: systemd restarts the daemon, and its goroutines are printed"
	}
	n.log.ErrorContext(ctx, "the daemon hangs", "loops", hangs, "seconds", int(stalled[0].Seconds), "do", what)
	return hangs
}

// line is the state in one line.
func (n *Notifier) line(hangs string) string {
	s := n.status()
	ok, why := n.ready()
	var parts []string
	switch {
	case hangs != "":
		parts = append(parts, "hangs: "+hangs)
	case !ok:
		parts = append(parts, s.Role+", not ready: "+why)
	case s.Role == watcher.RoleLeader:
		parts = append(parts, fmt.Sprintf("leader, epoch %d", s.Epoch))
	default:
		parts = append(parts, why)
	}
	if pending := s.Queue.Pending + s.Messages.Pending; pending > 0 {
		parts = append(parts, fmt.Sprintf("%d pending, the oldest for %.0f s", pending, s.Oldest))
	}
	if s.Failing != "" {
		parts = append(parts, "failing: "+s.Failing)
	}
	// A line break would end the assignment, and begin another.
	line := strings.Join(strings.Fields(strings.Join(parts, "; ")), " ")
	return strings.ToValidUTF8(line[:min(len(line), maxStatus)], "")
}

// send logs an error once.
func (n *Notifier) send(ctx context.Context, state string) {
	err := n.notify(state)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != n.said.error {
		n.log.WarnContext(ctx, "systemd cannot be told how the daemon is: check NotifyAccess and NOTIFY_SOCKET", "error", err)
	}
	n.said.error = text
}
