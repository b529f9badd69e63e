package sandbox_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

func TestStartTime(t *testing.T) {
	require.NoError(t, sandbox.New(t).Close()) // makes the template, if this machine has none
	begin := time.Now()
	sb := sandbox.New(t)
	took := time.Since(begin)
	t.Logf("PostgreSQL and Redis serve after %v", took.Round(time.Millisecond))
	require.Less(t, took, 10*time.Second, "0.2 s on an idle machine; the margin is for a loaded one")

	begin = time.Now()
	require.NoError(t, sb.Close())
	t.Logf("closed after %v", time.Since(begin).Round(time.Millisecond))
	require.NoDirExists(t, sb.Dir())
	require.NoError(t, sb.Close(), "a second Close does nothing")
}

func TestSandboxesSideBySide(t *testing.T) {
	t.Parallel()
	addrs := make(chan string, 8)
	t.Run("four", func(t *testing.T) {
		for i := range 4 {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				sb := sandbox.New(t)
				dsn, err := sb.NewDatabase(t.Context())
				require.NoError(t, err)
				require.NotEmpty(t, dsn)
				addrs <- sb.Postgres.Addr()
				addrs <- sb.Redis.Addr()
			})
		}
	})
	close(addrs)
	seen := map[string]bool{}
	for a := range addrs {
		require.False(t, seen[a], "%s was given twice", a)
		seen[a] = true
	}
	require.Len(t, seen, 8)
}

func TestSeveralServersInOneSandbox(t *testing.T) {
	t.Parallel()
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	backend, err := sb.StartRedis(t.Context(), sandbox.RedisOptions{Password: "secret"})
	require.NoError(t, err)
	require.NotEqual(t, sb.Redis.Addr(), backend.Addr())
	require.Contains(t, backend.DB(3), ":secret@127.0.0.1:")
	client := backend.Client(0)
	defer client.Close()
	require.NoError(t, client.Ping(t.Context()).Err())

	_, err = sb.NewDatabase(t.Context())
	require.ErrorContains(t, err, "has no PostgreSQL")
	require.NoError(t, sb.Close())
	_, err = sb.StartRedis(t.Context(), sandbox.RedisOptions{})
	require.Error(t, err)
}

func TestMissingServerNamesTheRepair(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := sandbox.Start(t.Context(), sandbox.Options{WithoutPostgres: true})
	require.ErrorContains(t, err, "run deploy/install-deps.sh")

	t.Setenv("ORPHANWATCH_PG_BIN", t.TempDir())
	_, err = sandbox.Start(t.Context(), sandbox.Options{WithoutRedis: true})
	require.ErrorContains(t, err, "ORPHANWATCH_PG_BIN")
}

func TestServerThatDiesAtStartTellsWhy(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	_, err := sandbox.Start(t.Context(), sandbox.Options{
		WithoutPostgres: true, Redis: sandbox.RedisOptions{Args: []string{"--maxmemory", "plenty"}},
	})
	require.ErrorContains(t, err, "argument must be a memory value")
	_, err = sandbox.Start(t.Context(), sandbox.Options{
		WithoutRedis: true, Postgres: sandbox.PostgresOptions{Settings: map[string]string{"wal_level": "wrong"}},
	})
	require.ErrorContains(t, err, "invalid value for parameter")
	require.Less(t, time.Since(begin), 20*time.Second)
}

func TestWithoutCacheDirectory(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "/proc/none")
	t.Setenv("HOME", "/proc/none")
	pg := sandbox.NewPostgres(t)
	require.NoError(t, pg.Exec(t.Context(), "postgres", "SELECT 1"))
}

func TestTemplateIsMadeOnceByMany(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Run("many", func(t *testing.T) {
		for range 3 {
			t.Run("one", func(t *testing.T) {
				// Not Parallel, for t.Setenv forbids it: three at once by hand.
				var errs [3]chan error
				for i := range errs {
					errs[i] = make(chan error, 1)
					go func() {
						sb, err := sandbox.Start(context.Background(), sandbox.Options{WithoutRedis: true})
						if err == nil {
							err = errors.Join(sb.Postgres.Exec(context.Background(), "postgres", "SELECT 1"), sb.Close())
						}
						errs[i] <- err
					}()
				}
				for _, e := range errs {
					require.NoError(t, <-e)
				}
			})
		}
	})
	made, err := filepath.Glob(filepath.Join(cache, "orphanwatch-sandbox", "*"))
	require.NoError(t, err)
	require.Len(t, made, 2, "one template and its lock: %v", made)
}

// left is what a sandbox could leave behind.
type left struct {
	Dir  string
	PIDs []int
}

func TestKilledProcessLeavesNothing(t *testing.T) {
	for _, paused := range []bool{false, true} {
		t.Run(fmt.Sprintf("paused=%v", paused), func(t *testing.T) {
			t.Parallel()
			child := exec.Command(os.Args[0], "-test.run=^TestHelperSandbox$", "-test.v")
			child.Env = append(os.Environ(), "SANDBOX_TEST_HELPER="+strconv.FormatBool(paused))
			child.Stderr = os.Stderr
			out, err := child.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, child.Start())

			var l left
			scanner := bufio.NewScanner(out)
			for scanner.Scan() {
				if text, ok := strings.CutPrefix(scanner.Text(), "left: "); ok {
					require.NoError(t, json.Unmarshal([]byte(text), &l))
					break
				}
			}
			require.NotEmpty(t, l.Dir, "the child has not started its sandbox")
			require.DirExists(t, l.Dir)
			require.Greater(t, len(l.PIDs), 8, "postgres and its helpers, redis, the worker and its pool")

			begin := time.Now()
			require.NoError(t, child.Process.Kill())
			_ = child.Wait()
			sandbox.AwaitTB(t, 20*time.Second, "nothing is left", func() error {
				if _, err := os.Stat(l.Dir); !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("%s is there: %w", l.Dir, err)
				}
				for _, pid := range l.PIDs {
					if s := state(pid); s != "" && s != "Z" {
						return fmt.Errorf("process %d is in state %s", pid, s)
					}
				}
				return nil
			})
			t.Logf("nothing left %v after kill -9", time.Since(begin).Round(time.Millisecond))
		})
	}
}

// TestHelperSandbox is the child of TestKilledProcessLeavesNothing.
func TestHelperSandbox(t *testing.T) {
	paused := os.Getenv("SANDBOX_TEST_HELPER")
	if paused == "" {
		return // not a test
	}
	ctx := context.Background()
	sb, err := sandbox.Start(ctx, sandbox.Options{})
	require.NoError(t, err)
	worker, err := sb.StartWorker(ctx, sandbox.WorkerOptions{Pool: "prefork", Concurrency: 2})
	require.NoError(t, err)
	l := left{Dir: sb.Dir()}
	for _, leader := range []int{sb.Postgres.PID(), sb.Redis.PID(), worker.PID()} {
		l.PIDs = append(append(l.PIDs, leader), childrenOf(t, leader)...)
	}
	if paused == "true" {
		require.NoError(t, sb.Postgres.Pause(ctx))
		require.NoError(t, worker.Pause(ctx))
	}
	text, err := json.Marshal(l)
	require.NoError(t, err)
	fmt.Println("left: " + string(text))
	select {} // until kill -9
}

func childrenOf(t *testing.T, pid int) (children []int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	require.NoError(t, err)
	for _, word := range strings.Fields(string(text)) {
		child, err := strconv.Atoi(word)
		require.NoError(t, err)
		children = append(children, child)
	}
	return children
}

// state is a process's letter in /proc, "" if there is none.
func state(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return rest[:1]
}

func TestInterruptOfTheGroupReachesNoServer(t *testing.T) {
	t.Parallel()
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	group, err := syscall.Getpgid(sb.Redis.PID())
	require.NoError(t, err)
	require.NotEqual(t, syscall.Getpgrp(), group)
	require.Equal(t, sb.Redis.PID(), group)
}

func TestInstallDeps(t *testing.T) {
	t.Parallel()
	const script = "../install-deps.sh"
	out, err := exec.Command("sh", "-n", script).CombinedOutput()
	require.NoError(t, err, string(out))

	begin := time.Now()
	out, err = exec.Command(script).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Empty(t, string(out), "silent when all is there")
	require.Less(t, time.Since(begin), 3*time.Second, "0.03 s on an idle machine")

	// A machine with neither the servers nor apt.
	bin := t.TempDir()
	cmd := exec.Command("/bin/sh", script)
	cmd.Env = []string{"PATH=" + bin, "ORPHANWATCH_PG_BIN=" + bin}
	out, err = cmd.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 1, exit.ExitCode())
	require.Equal(t, "install-deps.sh: no apt here; please install: redis-server curl systemd postgresql\n", string(out))
}
