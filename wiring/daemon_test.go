package wiring_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// daemon is a copy of the daemon, as a process of its own.
type daemon struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string
	log  *logBuffer
	done chan struct{}
	err  error
}

// run starts the daemon and awaits that it is ready; env is over the defaults.
func (w *world) run(env ...string) *daemon {
	w.t.Helper()
	d := w.start(env...)
	w.daemon = d
	d.ready(recovery)
	return d
}

// start starts a copy and does not wait.
func (w *world) start(env ...string) *daemon {
	w.t.Helper()
	d := &daemon{t: w.t, addr: sandbox.FreeAddr(w.t), log: &logBuffer{}, done: make(chan struct{})}
	d.cmd = exec.Command(os.Args[0])
	d.cmd.Env = slices.Concat([]string{
		asDaemon + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + w.t.TempDir(),
		"ORPHANWATCH_HTTP_ADDR=" + d.addr, "ORPHANWATCH_LOG_FORMAT=text",
	}, w.environ(), env)
	d.cmd.Stderr = d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(w.t, d.cmd.Start())
	go func() {
		d.err = d.cmd.Wait()
		close(d.done)
	}()
	w.t.Cleanup(func() {
		d.kill()
		if strings.Contains(d.log.String(), "the daemon hangs") {
			w.t.Error("no fault of a test makes a loop hang")
		}
		if w.t.Failed() {
			w.t.Logf("the daemon's log:\n%s", d.log)
		}
	})
	return d
}

func (d *daemon) alive() bool {
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill() // it may have ended
	<-d.done
}

// stop is what an orchestrator does; it gives the time that it took.
func (d *daemon) stop() time.Duration {
	d.t.Helper()
	start := time.Now()
	require.NoError(d.t, d.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-d.done:
	case <-time.After(15 * time.Second):
		d.t.Fatal("SIGTERM did not end the daemon in 15 s")
	}
	require.NoError(d.t, d.err, "the daemon's exit code")
	return time.Since(start)
}

func (d *daemon) get(path string) (int, string, error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.addr+path, nil)
	if err != nil {
		return 0, "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), errors.Join(err, resp.Body.Close())
}

// up awaits that the process listens; its stores may be away.
func (d *daemon) up() {
	d.t.Helper()
	sandbox.AwaitTB(d.t, recovery, "the daemon to be up", func() error {
		_, _, err := d.get("/livez")
		return err
	})
}

func (d *daemon) ready(timeout time.Duration) {
	d.t.Helper()
	sandbox.AwaitTB(d.t, timeout, "the daemon to be ready", func() error {
		if !d.alive() {
			d.t.Fatalf("the daemon has ended: %v", d.err)
		}
		code, body, err := d.get("/readyz")
		if err == nil && code != http.StatusOK {
			err = errors.New(body)
		}
		return err
	})
}

// metric is the sum of all series of that name which have all of these labels.
func (d *daemon) metric(name string, labels ...string) float64 {
	d.t.Helper()
	_, body, err := d.get("/metrics")
	require.NoError(d.t, err)
	sum := 0.0
	lines := bufio.NewScanner(strings.NewReader(body))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		at := max(strings.LastIndexByte(lines.Text(), ' '), 0) // labels may have spaces
		series, value := lines.Text()[:at], strings.TrimSpace(lines.Text()[at:])
		if series != name && !strings.HasPrefix(series, name+"{") {
			continue
		}
		all := true
		for _, l := range labels {
			all = all && strings.Contains(series, l)
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil && all {
			sum += v
		}
	}
	return sum
}

// proc reads a figure of the daemon's process: VmRSS in KiB.
func (d *daemon) proc(field string) int {
	d.t.Helper()
	body, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.cmd.Process.Pid), "status"))
	require.NoError(d.t, err)
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			require.NoError(d.t, err)
			return n
		}
	}
	d.t.Fatalf("no %s in /proc", field)
	return 0
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// awaitLog waits for a text in the daemon's log.
func (d *daemon) awaitLog(timeout time.Duration, text string) {
	d.t.Helper()
	sandbox.AwaitTB(d.t, timeout, fmt.Sprintf("%q in the log", text), sandbox.Until(func() bool {
		return strings.Contains(d.log.String(), text)
	}))
}
