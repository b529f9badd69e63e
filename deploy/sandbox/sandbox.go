package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	startTimeout = 60 * time.Second // a loaded two-core machine, first initdb included
	dirPattern   = "orphanwatch-sandbox-"
)

var errClosed = errors.New("the sandbox is closed")

// Options say what Start starts. The zero value: one PostgreSQL and one Redis.
type Options struct {
	Postgres PostgresOptions
	Redis    RedisOptions

	WithoutPostgres bool
	WithoutRedis    bool
}

// Sandbox is a set of servers with one directory and one watchdog.
type Sandbox struct {
	Postgres *Postgres // nil with WithoutPostgres
	Redis    *Redis    // nil with WithoutRedis

	dir      string
	watchdog *watchdog

	mu      sync.Mutex
	closed  bool
	names   map[string]int
	procs   []*process
	closers []func()
}

// Start starts the servers side by side and returns when all serve. Close ends them;
// so does the end of this process, whatever its reason.
func Start(ctx context.Context, opts Options) (*Sandbox, error) {
	dir, err := makeDir()
	if err != nil {
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	sb := &Sandbox{dir: dir, names: map[string]int{}}
	if sb.watchdog, err = startWatchdog(dir); err != nil {
		return nil, fmt.Errorf("start sandbox: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	var wg sync.WaitGroup
	var pgErr, redisErr error
	if !opts.WithoutPostgres {
		wg.Go(func() { sb.Postgres, pgErr = sb.StartPostgres(ctx, opts.Postgres) })
	}
	if !opts.WithoutRedis {
		wg.Go(func() { sb.Redis, redisErr = sb.StartRedis(ctx, opts.Redis) })
	}
	wg.Wait()
	if err := errors.Join(pgErr, redisErr); err != nil {
		return nil, fmt.Errorf("start sandbox: %w", errors.Join(err, sb.Close()))
	}
	return sb, nil
}

// Dir is the sandbox's directory; it is removed by Close.
func (sb *Sandbox) Dir() string { return sb.dir }

// NewDatabase creates an empty database on Postgres and returns its URL.
func (sb *Sandbox) NewDatabase(ctx context.Context) (string, error) {
	if sb.Postgres == nil {
		return "", errors.New("create database: this sandbox has no PostgreSQL")
	}
	return sb.Postgres.NewDatabase(ctx)
}

// Close kills everything and removes the directory. A second call does nothing.
func (sb *Sandbox) Close() error {
	sb.mu.Lock()
	if sb.closed {
		sb.mu.Unlock()
		return nil
	}
	sb.closed = true
	procs, closers := sb.procs, sb.closers
	sb.mu.Unlock()

	for _, c := range closers {
		c()
	}
	for _, p := range procs {
		p.sayFarewell()
	}
	err := sb.watchdog.close()
	for _, p := range procs {
		<-p.done
	}
	if _, statErr := os.Stat(sb.dir); statErr == nil {
		err = errors.Join(err, os.RemoveAll(sb.dir))
	}
	if err != nil {
		return fmt.Errorf("close sandbox: %w", err)
	}
	return nil
}

// spawn starts a program that ends with the sandbox.
func (sb *Sandbox) spawn(p program) (*process, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.closed {
		return nil, fmt.Errorf("start %s: %w", p.name, errClosed)
	}
	proc, err := sb.watchdog.spawn(p)
	if err != nil {
		return nil, err
	}
	living := sb.procs[:0]
	for _, old := range sb.procs {
		if old.alive() {
			living = append(living, old)
		}
	}
	sb.procs = append(living, proc)
	return proc, nil
}

// reservePort reserves a port for as long as the sandbox exists.
func (sb *Sandbox) reservePort() (int, error) {
	port, token, err := reservePort()
	if err != nil {
		return 0, err
	}
	return port, sb.onClose(func() { shut(token) })
}

// onClose runs c when the sandbox closes; at once if it is closed.
func (sb *Sandbox) onClose(c func()) error {
	sb.mu.Lock()
	closed := sb.closed
	if !closed {
		sb.closers = append(sb.closers, c)
	}
	sb.mu.Unlock()
	if closed {
		c()
		return errClosed
	}
	return nil
}

// serverDir makes a directory for a server: redis, redis2, redis3 …
func (sb *Sandbox) serverDir(kind string) (name, dir string, err error) {
	sb.mu.Lock()
	sb.names[kind]++
	n := sb.names[kind]
	sb.mu.Unlock()
	name = kind
	if n > 1 {
		name += strconv.Itoa(n)
	}
	dir = filepath.Join(sb.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("start %s: %w", name, err)
	}
	return name, dir, nil
}

// makeDir makes the sandbox's directory where another user (postgres) may enter and
// where the path of a Unix socket stays under its 107 bytes.
func makeDir() (string, error) {
	base := os.TempDir()
	if len(base) > 48 || (os.Getuid() == 0 && !enterable(base)) {
		base = "/tmp"
	}
	dir, err := os.MkdirTemp(base, dirPattern)
	if err != nil {
		return "", err
	}
	if os.Getuid() == 0 {
		err = os.Chmod(dir, 0o711)
	}
	return dir, err
}

// enterable tells whether everybody may pass through dir.
func enterable(dir string) bool {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// environment is ours without what would change the servers' behavior.
func environment(extra ...string) []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch {
		case strings.HasPrefix(name, "PG"), strings.HasPrefix(name, "LC_"), strings.HasPrefix(name, "PYTHON"),
			strings.HasPrefix(name, "CELERY"), name == "LANG", name == "LANGUAGE", name == "NOTIFY_SOCKET", name == "TZ":
		default:
			env = append(env, e)
		}
	}
	return append(env, append([]string{"LC_ALL=C.UTF-8", "TZ=UTC"}, extra...)...)
}

// Tails returns the last lines of the log of every program that runs, for failures.
func (sb *Sandbox) Tails() string {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	var b strings.Builder
	for _, p := range sb.procs {
		fmt.Fprintf(&b, "%s (%s):\n%s\n", p.name, p.log, p.tail())
	}
	return b.String()
}
