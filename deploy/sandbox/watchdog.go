package sandbox

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

//go:embed watchdog.sh
var watchdogScript string

// watchdog is the helper process that outlives us for the moment it needs to kill
// the servers and to remove their files.
type watchdog struct {
	mu   sync.Mutex
	pipe *os.File
	cmd  *exec.Cmd
}

func startWatchdog(dir string) (*watchdog, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	defer shut(read)
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "orphanwatch-sandbox-watchdog", dir)
	cmd.Stdin = read
	cmd.Dir = "/"
	// Its own group: Ctrl-C and a kill of our group must not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		shut(write)
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	return &watchdog{pipe: write, cmd: cmd}, nil
}

// watch names a process tree that must not outlive us.
func (w *watchdog) watch(pid int) error { return w.tell('+', pid) }

// forget tells that a tree has ended, for its number may be given again.
func (w *watchdog) forget(pid int) error { return w.tell('-', pid) }

func (w *watchdog) tell(op rune, pid int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pipe == nil {
		return fmt.Errorf("watchdog: %w", os.ErrClosed)
	}
	if _, err := fmt.Fprintf(w.pipe, "%c %d\n", op, pid); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	return nil
}

// close has the watchdog kill and remove everything, and waits for it.
func (w *watchdog) close() error {
	w.mu.Lock()
	pipe := w.pipe
	w.pipe = nil
	w.mu.Unlock()
	if pipe == nil {
		return nil
	}
	shut(pipe)
	// Its last command may fail (an rm that lost a race): the directory tells.
	var exit *exec.ExitError
	if err := w.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("await watchdog: %w", err)
	}
	return nil
}
