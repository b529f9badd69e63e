package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// demoDaemon is "orphanwatch run" as a child.
type demoDaemon struct {
	environ []string
	dir     string
	addr    string
	log     string

	mu     sync.Mutex
	cmd    *exec.Cmd
	done   chan struct{} // closed when it has ended
	killed bool
	state  string
}

var errDaemonEnded = errors.New("the daemon has ended by itself")

// newDaemon prepares a daemon with nothing configured but what the demo needs.
func newDaemon(environ []string, sb *sandbox.Sandbox, database string, grace time.Duration) (*demoDaemon, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	if err != nil {
		return nil, fmt.Errorf("find a port for the daemon: %w", err)
	}
	defer listener.Close()
	d := &demoDaemon{dir: sb.Dir(), addr: listener.Addr().String(), log: filepath.Join(sb.Dir(), "orphanwatch.log"), state: "not started"}
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		switch {
		case strings.HasPrefix(name, "ORPHANWATCH_"), strings.HasPrefix(name, "DATABASE_URL"), strings.HasPrefix(name, "REDIS_URL"),
			strings.HasPrefix(name, "CELERY_"), strings.HasPrefix(name, "PG"):
		default:
			d.environ = append(d.environ, e)
		}
	}
	d.environ = append(d.environ, "DATABASE_URL="+database, "REDIS_URL="+sb.Redis.URL(),
		"ORPHANWATCH_HTTP_ADDR="+d.addr, "ORPHANWATCH_POLICY_GRACE="+grace.String())
	return d, nil
}

// start starts it, again after a kill.
func (d *demoDaemon) start() error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(program, "run") //nolint:noctx // stop ends it, with its last words
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = d.dir, d.environ, log, log
	cmd.SysProcAttr = apart()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // whoever waits for done reads ProcessState
		close(done)
	}()
	d.mu.Lock()
	d.cmd, d.done, d.killed, d.state = cmd, done, false, fmt.Sprintf("runs (pid %d)", cmd.Process.Pid)
	d.mu.Unlock()
	return nil
}

// ready waits until it does its job.
func (d *demoDaemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return sandbox.Await(ctx, "the daemon is ready", func() error {
		if err := d.ended(); err != nil {
			cancel()
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.addr+"/readyz", http.NoBody)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("/readyz says %s", strings.TrimSpace(string(body)))
		}
		return err
	})
}

// ended tells how it ended, nil while it runs or after a kill.
func (d *demoDaemon) ended() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.killed {
		return nil
	}
	select {
	case <-d.done:
		return fmt.Errorf("%w: %s", errDaemonEnded, d.cmd.ProcessState)
	default:
		return nil
	}
}

// kill is kill -9.
func (d *demoDaemon) kill() (pid int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.cmd.Process.Kill() // it has ended already, which is what we want
	<-d.done
	d.killed, d.state = true, "dead (kill -9)"
	return d.cmd.Process.Pid
}

// stop ends it as a service manager does. A daemon that is not there is fine.
func (d *demoDaemon) stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return nil
	}
	select {
	case <-d.done:
		return nil
	default:
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // if it ends just now, done tells
	limit := time.NewTimer(12 * time.Second)
	defer limit.Stop()
	select {
	case <-d.done:
	case <-limit.C:
		_ = d.cmd.Process.Kill()
		<-d.done
		return errors.New("the daemon did not stop within 12 s of SIGTERM")
	}
	if code := d.cmd.ProcessState.ExitCode(); code != exitOK {
		return fmt.Errorf("the daemon stopped with exit code %d", code)
	}
	return nil
}

func (d *demoDaemon) describe() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

// tail is the last lines of its log.
func (d *demoDaemon) tail() string {
	text, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-15):], "\n  ")
}
