package wiring_test

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/postgres"
	"github.com/orphanwatch/orphanwatch/wiring"
)

var storesAway = flag.Duration("stores.away", 4*time.Second, "for how long both stores answer nothing in TestSystemd; over 7 min are over all limits of loops")

// systemd is the other end of NOTIFY_SOCKET.
type systemd struct {
	path string
	mu   sync.Mutex
	msgs []notification
}

type notification struct {
	at   time.Time
	text string
}

func newSystemd(t *testing.T) *systemd {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify") // a socket's path is short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &systemd{path: filepath.Join(dir, "socket")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"})
	require.NoError(t, err)
	ended := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-ended })
	go func() {
		defer close(ended)
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.msgs = append(s.msgs, notification{time.Now(), string(b[:n])})
			s.mu.Unlock()
		}
	}()
	return s
}

// heard are those with that prefix since then.
func (s *systemd) heard(prefix string, since time.Time) (found []notification) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.msgs {
		if strings.HasPrefix(m.text, prefix) && !m.at.Before(since) {
			found = append(found, m)
		}
	}
	return found
}

// await waits for a message from then on.
func (s *systemd) await(t *testing.T, prefix string, since time.Time) notification {
	t.Helper()
	sandbox.AwaitTB(t, recovery, "systemd to hear "+prefix, func() error {
		if len(s.heard(prefix, since)) == 0 {
			return fmt.Errorf("it heard %v", s.heard("", since))
		}
		return nil
	})
	return s.heard(prefix, since)[0]
}

// A daemon under systemd is ready when its sources are subscribed, feeds the watchdog
// also while neither store answers, says what is wrong, and that it stops.
//
//	go test ./wiring -run TestSystemd -stores.away 9m -v -timeout 15m
func TestSystemd(t *testing.T) {
	t.Parallel()
	const watchdog = 2 * time.Second
	w := newWorld(t)
	s := newSystemd(t)
	redisProxy, pgProxy := sandbox.NewProxy(t, w.sb.Redis.Addr()), sandbox.NewProxy(t, w.sb.Postgres.Addr())
	start := time.Now()
	d := w.start("REDIS_URL="+redisProxy.URL(w.redisURL()), "DATABASE_URL="+pgProxy.URL(w.watchURL()),
		"NOTIFY_SOCKET="+s.path, fmt.Sprintf("WATCHDOG_USEC=%d", watchdog.Microseconds()))
	ready := s.await(t, "READY=1", start)
	code, body, err := d.get("/readyz")
	require.NoError(t, err)
	assert.Equal(t, 200, code, body)
	s.await(t, "STATUS=leader, epoch 1", start)
	t.Logf("ready after %v", ready.at.Sub(start).Round(time.Millisecond))

	redisProxy.Stall()
	pgProxy.Stall()
	away := time.Now()
	waitFor(t, *storesAway)
	s.await(t, "STATUS=leader, not ready: ", away)
	require.NoError(t, redisProxy.Heal())
	require.NoError(t, pgProxy.Heal())
	healed := time.Now()
	s.await(t, "STATUS=leader, epoch", healed)
	s.await(t, "WATCHDOG=1", healed)
	require.NotContains(t, d.log.String(), "the daemon hangs")
	beats := s.heard("WATCHDOG=1", start)
	longest := time.Duration(0)
	for i := range beats[1:] {
		longest = max(longest, beats[i+1].at.Sub(beats[i].at))
	}
	assert.Less(t, longest, watchdog, "systemd would have killed it")
	t.Logf("%d beats, at most %v apart, both stores away for %v", len(beats), longest.Round(time.Millisecond), healed.Sub(away).Round(time.Second))

	stopped := time.Now()
	took := d.stop()
	s.await(t, "STOPPING=1\nSTATUS=stopping", stopped)
	assert.Len(t, s.heard("READY=1", start), 1)
	last := s.heard("", start)
	assert.True(t, strings.HasPrefix(last[len(last)-1].text, "STOPPING=1"), "said last: %v", last[max(0, len(last)-3):])
	t.Logf("stopped in %v", took.Round(time.Millisecond))
}

// What the unit and its environment file set, and what the file only suggests, are
// variables that exist, with values that are good.
func TestTheUnitsEnvironment(t *testing.T) {
	credentials := t.TempDir()
	unit, err := os.ReadFile("../deploy/systemd/orphanwatch.service")
	require.NoError(t, err)
	var environ []string
	for line := range strings.Lines(string(unit)) {
		line = strings.TrimSpace(line)
		if variable, ok := strings.CutPrefix(line, "Environment="); ok {
			environ = append(environ, strings.ReplaceAll(variable, "%d", credentials))
		}
		if credential, ok := strings.CutPrefix(line, "LoadCredential="); ok {
			name, from, _ := strings.Cut(credential, ":")
			require.Equal(t, "/etc/orphanwatch/"+name, from)
			url := map[string]string{"database_url": "postgres://app:secret@db/app\n", "redis_url": "redis://redis/0\n"}[name]
			require.NoError(t, os.WriteFile(filepath.Join(credentials, name), []byte(url), 0o400))
		}
	}
	c, err := wiring.Load(wiring.LoadOptions{Environ: environ})
	require.NoError(t, err)
	require.Equal(t, "postgres://app:secret@db/app", c.Postgres.URL.Reveal())
	require.Equal(t, "redis://redis/0", c.Redis.URL.Reveal())

	file, err := os.ReadFile("../deploy/systemd/orphanwatch.env")
	require.NoError(t, err)
	suggested := 0
	for line := range strings.Lines(string(file)) {
		if variable, ok := strings.CutPrefix(strings.TrimSpace(line), "#"); ok && !strings.HasPrefix(variable, " ") && !strings.HasPrefix(variable, "ORPHANWATCH_CONFIG=") {
			environ = append(environ, variable)
			suggested++
		}
	}
	require.Positive(t, suggested)
	c, err = wiring.Load(wiring.LoadOptions{Environ: environ})
	require.NoError(t, err)
	require.Equal(t, "none", c.Policy.Remove)
}

// steps counts the steps of a loop.
type steps struct{ n atomic.Int64 }

func (s *steps) Beat() { s.n.Add(1) }
func (s *steps) Rest() {}

// Each call of a store is a step of the loop that makes it, whether it is answered or not.
func TestACallOfAStoreIsAStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rows := w.rows(1)
	clients := func(redisURL, databaseURL string) (*redis.Client, *postgres.Store) {
		c, err := wiring.Load(wiring.LoadOptions{Environ: []string{"REDIS_URL=" + redisURL, "DATABASE_URL=" + databaseURL}})
		require.NoError(t, err)
		client, err := wiring.NewRedis(c)
		require.NoError(t, err)
		t.Cleanup(func() { _ = client.Close() })
		store, err := wiring.NewRows(c)
		require.NoError(t, err)
		t.Cleanup(store.Close)
		return client, store
	}
	look := []reconciler.Look{{Subject: reconciler.TaskSubject(rows[0])}}
	ping := func(ctx context.Context) func(redis.Pipeliner) error {
		return func(p redis.Pipeliner) error { p.Ping(ctx); return nil }
	}
	client, store := clients(w.redisURL(), w.watchURL())
	away, gone := clients("redis://"+sandbox.FreeAddr(t), "postgres://nobody@"+sandbox.FreeAddr(t)+"/none")
	for name, call := range map[string]func(ctx context.Context) error{
		"a command":  func(ctx context.Context) error { return client.Ping(ctx).Err() },
		"a pipeline": func(ctx context.Context) error { _, err := client.Pipelined(ctx, ping(ctx)); return err },
		"a lookup":   func(ctx context.Context) error { _, err := store.Look(ctx, look); return err },
		"a whole table": func(ctx context.Context) error {
			return store.EachID(ctx, 0, func(string) error { return nil })
		},
	} {
		var s steps
		require.NoError(t, call(reconciler.WithPulse(t.Context(), &s)), name)
		require.Positive(t, s.n.Load(), name)
	}
	for name, call := range map[string]func(ctx context.Context) error{
		"a command":  func(ctx context.Context) error { return away.Ping(ctx).Err() },
		"a pipeline": func(ctx context.Context) error { _, err := away.Pipelined(ctx, ping(ctx)); return err },
		"a lookup":   func(ctx context.Context) error { _, err := gone.Look(ctx, look); return err },
	} {
		var s steps
		require.Error(t, call(reconciler.WithPulse(t.Context(), &s)), name)
		require.Positive(t, s.n.Load(), name)
	}
}
