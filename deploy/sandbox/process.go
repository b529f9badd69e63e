package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// gate waits for one line, then becomes the program. Without the line (we died) it ends.
const (
	gate          = `read -r _ || exit 1; exec "$@" </dev/null`
	gateKeepStdin = `read -r _ || exit 1; exec "$@"`
)

// program describes a process to start.
type program struct {
	name string // for errors and the log file's name
	argv []string
	dir  string
	env  []string
	log  string // path; gets stderr, and stdout unless stdout is set

	credential *syscall.Credential
	farewell   syscall.Signal // not 0: asks for the quickest end that still cleans up
	stdout     *os.File       // not nil: talks to us through stdin and stdout
}

// process is a started program and the tree below it.
type process struct {
	program
	cmd   *exec.Cmd
	stdin io.WriteCloser // only if program.stdout is set
	done  chan struct{}  // closed when the leader has been reaped
	err   error          // why it ended; valid after done
}

// spawn starts p behind the gate and under the watchdog.
func (w *watchdog) spawn(p program) (*process, error) {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	defer shut(log)
	script := gate
	if p.stdout != nil {
		script = gateKeepStdin
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	defer shut(read)
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, p.name}, p.argv...)...)
	cmd.Dir, cmd.Env = p.dir, p.env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = read, log, log
	if p.stdout != nil {
		cmd.Stdout = p.stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: p.credential}
	if err := cmd.Start(); err != nil {
		shut(write)
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	proc := &process{program: p, cmd: cmd, done: make(chan struct{})}
	err = w.watch(cmd.Process.Pid)
	if err == nil {
		_, err = write.WriteString("\n")
	}
	if err != nil || p.stdout == nil {
		shut(write)
	} else {
		proc.stdin = write
	}
	go func() {
		proc.err = cmd.Wait()
		_ = w.forget(cmd.Process.Pid) // fails once the sandbox is closed: nothing to forget
		close(proc.done)
	}()
	if err != nil {
		<-proc.done
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	return proc, nil
}

// shut closes what nothing was written to, or what has failed already.
func shut(c io.Closer) { _ = c.Close() }

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// ended describes an end that nobody asked for, with the last lines of the log.
func (p *process) ended() error {
	return fmt.Errorf("%s ended: %w\n%s", p.name, errors.Join(errEnded, p.err), p.tail())
}

var errEnded = errors.New("the process is gone")

// tail returns the last lines of the log, for errors.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-12):], "\n  ")
}

// stop sends a signal to the leader alone and waits for the end of the whole tree.
func (p *process) stop(ctx context.Context, sig syscall.Signal) (time.Duration, error) {
	begin := time.Now()
	family := p.family()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return time.Since(begin), fmt.Errorf("stop %s: still running after %v: %w\n%s",
			p.name, time.Since(begin).Round(time.Millisecond), context.Cause(ctx), p.tail())
	}
	return time.Since(begin), awaitGone(ctx, p.name, family)
}

// sayFarewell lets a program clean up behind itself if that takes no time. It is a
// courtesy to the machine (PostgreSQL reaps its children and removes its System V
// segment); the watchdog sees to the rest.
func (p *process) sayFarewell() {
	if p.farewell == 0 || !p.alive() || stateOf(p.pid()) == 'T' {
		return
	}
	_ = p.cmd.Process.Signal(p.farewell)
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	}
}

// kill ends the whole tree at once.
func (p *process) kill(ctx context.Context) error {
	family := p.signalFamily(syscall.SIGSTOP)
	for _, pid := range family {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("kill %s: %w", p.name, context.Cause(ctx))
	}
	return awaitGone(ctx, p.name, family)
}

// pause stops the leader first, so that it cannot fork, then everything below it.
func (p *process) pause(ctx context.Context) error {
	family := p.signalFamily(syscall.SIGSTOP)
	return Await(ctx, p.name+" is paused", func() error {
		for _, pid := range family {
			if s := stateOf(pid); s != 'T' && !gone(s) {
				return fmt.Errorf("process %d is in state %c", pid, s)
			}
		}
		return nil
	})
}

// resume wakes the leader last: what it finds runs again.
func (p *process) resume() {
	family := p.family()
	for i := len(family) - 1; i >= 0; i-- {
		_ = syscall.Kill(family[i], syscall.SIGCONT)
	}
}

// signalFamily sends sig to the tree from the top down until no new member appears.
func (p *process) signalFamily(sig syscall.Signal) []int {
	seen := map[int]bool{}
	for {
		grown := false
		for _, pid := range p.family() {
			if !seen[pid] {
				seen[pid], grown = true, true
				_ = syscall.Kill(pid, sig)
			}
		}
		if !grown {
			break
		}
	}
	family := make([]int, 0, len(seen))
	for pid := range seen {
		family = append(family, pid)
	}
	return family
}

// family lists the leader and its living descendants, parents before children.
func (p *process) family() []int {
	if !p.alive() {
		return nil
	}
	children := map[int][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return []int{p.pid()}
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, parent := statOf(pid); parent > 0 {
			children[parent] = append(children[parent], pid)
		}
	}
	family := []int{p.pid()}
	for i := 0; i < len(family); i++ {
		family = append(family, children[family[i]]...)
	}
	return family
}

// statOf reads a process's state and parent from /proc/PID/stat; 0, 0 if there is none.
func statOf(pid int) (state byte, parent int) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0
	}
	// The second field is the name in parentheses and may hold anything.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 {
		return 0, 0
	}
	parent, _ = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent
}

func stateOf(pid int) byte { s, _ := statOf(pid); return s }

// gone: a zombie holds no memory, no files, no sockets; its parent may never reap it.
func gone(state byte) bool { return state == 0 || state == 'Z' || state == 'X' }

func awaitGone(ctx context.Context, name string, pids []int) error {
	return Await(ctx, "end of "+name, func() error {
		for _, pid := range pids {
			if s := stateOf(pid); !gone(s) {
				return fmt.Errorf("process %d is in state %c", pid, s)
			}
		}
		return nil
	})
}
