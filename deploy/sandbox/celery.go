package sandbox

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

//go:embed sandbox_app.py
var celeryApp []byte

// Names of the tasks that the sandbox's Celery application has. Both take the keyword
// arguments sleep (seconds), fail (bool or text), size (bytes of padding in the
// result), retry (after the first run, retry in so many seconds) and wait (see Release);
// ScanTask also task_id, user_id, target_domain and config, by position or name.
const (
	ScanTask  = "scan_domain_task"
	OtherTask = "other_task"
)

// Celery says where an application lives. Workers and producers of one application
// get the same.
type Celery struct {
	Broker  string // URL; empty: the sandbox's Redis, database 0
	Backend string // URL; empty: the same as Broker; "disabled": no results
	// Config holds Celery's settings, such as "result_extended": true.
	Config map[string]any
	// Runs is the URL of a Redis database, apart from broker and results, in which
	// every task that starts is recorded; see ReadRuns. Empty: nowhere.
	Runs string
	// Check are the arguments of orphanwatch_celery.install, which is then found in the
	// directory CheckDir; nil for no check.
	Check    map[string]any
	CheckDir string
	// Database is the URL of a database with ExampleSchema. ScanTask begins with a
	// row in task_logs, and dies where scan_tasks does not have its task_id. Empty: none.
	Database string
}

// WorkerOptions say how a Celery worker is started.
type WorkerOptions struct {
	Celery
	Pool        string   // solo (the default: the quickest), prefork, threads
	Concurrency int      // 0: 1
	Queues      []string // empty: celery
	Args        []string // further arguments of "celery worker"
}

// Worker is a running Celery worker. Stop is a warm shutdown: it waits for the tasks
// that run.
type Worker struct {
	server
	name string
}

// Name is the worker's node name, as in Celery's events and remote control.
func (w *Worker) Name() string { return w.name }

// StartWorker starts a Celery worker and returns when it takes tasks.
func (sb *Sandbox) StartWorker(ctx context.Context, opts WorkerOptions) (*Worker, error) {
	python, err := findCelery(ctx)
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	name, dir, env, err := sb.celeryApp("worker", opts.Celery)
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	w := &Worker{name: name + "@sandbox"}
	pool := opts.Pool
	if pool == "" {
		pool = "solo"
	}
	argv := []string{
		python, "-m", "celery", "-A", "sandbox_app", "worker", "--hostname", w.name, "--loglevel", "INFO",
		"--pool", pool, "--concurrency", strconv.Itoa(max(1, opts.Concurrency)),
		"--without-gossip", "--without-mingle",
	}
	if len(opts.Queues) > 0 {
		argv = append(argv, "--queues", strings.Join(opts.Queues, ","))
	}
	log := filepath.Join(dir, "worker.log")
	var skip int // what earlier starts have written
	w.server = server{
		sandbox: sb, stopSignal: syscall.SIGTERM,
		program: program{name: name, dir: dir, env: env, argv: append(argv, opts.Args...), log: log},
		before: func() error {
			text, err := os.ReadFile(log)
			skip = len(text)
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return err
		},
		ready: func(ctx context.Context, _ *process) error {
			return Await(ctx, name+" says it is ready", func() error {
				text, err := os.ReadFile(log)
				if err == nil && !bytes.Contains(text[skip:], []byte(w.name+" ready.")) {
					err = errNotYet
				}
				return err
			})
		},
	}
	if err := w.Start(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

// celeryApp makes a directory with the application and returns its environment.
func (sb *Sandbox) celeryApp(kind string, c Celery) (name, dir string, env []string, err error) {
	if c.Broker == "" {
		if sb.Redis == nil {
			return "", "", nil, errors.New("no Celery.Broker is given, and the sandbox has no Redis")
		}
		c.Broker = sb.Redis.URL()
	}
	switch c.Backend {
	case "":
		c.Backend = c.Broker
	case "disabled":
		c.Backend = ""
	}
	if c.Config == nil {
		c.Config = map[string]any{}
	}
	config, err := json.Marshal(c.Config)
	if err != nil {
		return "", "", nil, fmt.Errorf("encode Celery.Config: %w", err)
	}
	var check []byte
	if c.Check != nil {
		if check, err = json.Marshal(c.Check); err != nil {
			return "", "", nil, fmt.Errorf("encode Celery.Check: %w", err)
		}
	}
	if name, dir, err = sb.serverDir(kind); err != nil {
		return "", "", nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "sandbox_app.py"), celeryApp, 0o644); err != nil {
		return "", "", nil, err
	}
	return name, dir, environment(
		"BROKER_URL="+c.Broker, "RESULT_BACKEND="+c.Backend, "SANDBOX_CELERY_CONFIG="+string(config),
		"SANDBOX_RUNS="+c.Runs, "SANDBOX_DATABASE_URL="+c.Database,
		"SANDBOX_CHECK="+string(check), "PYTHONPATH="+c.CheckDir,
		"PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1", "C_FORCE_ROOT=1",
	), nil
}

// findCelery looks for a Python that has Celery: Debian's package belongs to
// /usr/bin/python3, and python3 on the PATH may be another. The answer is kept: the
// question takes a third of a second.
func findCelery(ctx context.Context) (string, error) {
	celeryPython.mu.Lock()
	defer celeryPython.mu.Unlock()
	if celeryPython.path != "" {
		return celeryPython.path, nil
	}
	for _, python := range []string{os.Getenv("ORPHANWATCH_PYTHON"), "/usr/bin/python3", "python3"} {
		if python == "" {
			continue
		}
		check := exec.CommandContext(ctx, python, "-c",
			"import importlib.util as u, sys; sys.exit(not (u.find_spec('celery') and u.find_spec('redis')))")
		check.Env = environment()
		if check.Run() == nil {
			celeryPython.path = python
			return python, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("find Celery: %w", err)
	}
	return "", errors.New("find Celery: neither /usr/bin/python3 nor python3 has the modules celery and redis (run deploy/install-deps.sh, or set ORPHANWATCH_PYTHON)")
}

var celeryPython struct {
	mu   sync.Mutex
	path string
}
