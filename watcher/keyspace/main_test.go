package keyspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
	"github.com/orphanwatch/orphanwatch/watcher"
)

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{}) // it tells of each attempt to reach a server that we have stopped
	goleak.VerifyTestMain(m)
}

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

const meta = "celery-task-meta-"

// sink records; it has no room while full.
type sink struct {
	mu     sync.Mutex
	events []watcher.Event
	gaps   []string
	health watcher.Health
	full   bool
	room   chan struct{}
}

func newSink() *sink { return &sink{room: make(chan struct{})} }

func (s *sink) Offer(e watcher.Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.full {
		s.events = append(s.events, e)
	}
	return !s.full
}

func (s *sink) Room() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room
}

func (s *sink) setFull(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
	if !full {
		close(s.room)
		s.room = make(chan struct{})
	}
}

func (s *sink) Gap(_, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaps = append(s.gaps, reason)
}

func (s *sink) Report(_ string, h watcher.Health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = h
}

func (s *sink) now() (events []watcher.Event, gaps []string, h watcher.Health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events), slices.Clone(s.gaps), s.health
}

func (s *sink) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events, s.gaps = nil, nil
}

// saw tells whether an event of that task or row has come.
func (s *sink) saw(id string) bool {
	events, _, _ := s.now()
	return slices.ContainsFunc(events, func(e watcher.Event) bool { return e.Subject.ID == id })
}

// ids are what was seen, canaries and sentinels left out, sorted and without repetition.
func (s *sink) ids() []string {
	events, _, _ := s.now()
	out := []string{}
	for _, e := range events {
		if e.Subject.Kind != reconciler.Canary && !strings.HasPrefix(e.Subject.ID, "sentinel") {
			out = append(out, e.Subject.ID)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// fixture is a source that runs against a server of its own.
type fixture struct {
	t      testing.TB
	server *sandbox.Redis
	// client is another user of the same database: the application.
	client *redis.Client
	sink   *sink
	source *Source
	log    *logBuffer
	ready  chan struct{}
	done   chan error
	cancel context.CancelFunc
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

func newKeys(companions ...string) *celery.Keys {
	return celery.NewKeys("", []reconciler.Binding{{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true, Companions: companions}})
}

func dial(t testing.TB, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	return client
}

// run starts a source on the database at url and returns at once.
func run(t testing.TB, server *sandbox.Redis, url string, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{
		t: t, server: server, client: dial(t, server.URL()), sink: newSink(), log: &logBuffer{},
		ready: make(chan struct{}), done: make(chan error, 1),
	}
	o := Options{Client: dial(t, url), Keys: newKeys(), Log: slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&o)
	}
	f.source = New(o)
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	go func() { f.done <- f.source.Run(ctx, f.sink, func() { close(f.ready) }) }()
	t.Cleanup(func() {
		f.stop()
		if t.Failed() {
			t.Log(f.log.String())
		}
	})
	return f
}

// watching is run, until ready.
func watching(t testing.TB, server *sandbox.Redis, change func(*Options)) *fixture {
	t.Helper()
	f := run(t, server, server.URL(), change)
	f.awaitReady()
	return f
}

func (f *fixture) awaitReady() {
	f.t.Helper()
	select {
	case <-f.ready:
	case <-time.After(20 * time.Second):
		f.t.Fatalf("not ready: %s", f.log)
	}
}

// stop ends Run, which must say that all is well.
func (f *fixture) stop() {
	if f.cancel == nil {
		return
	}
	f.cancel()
	f.cancel = nil
	if err := <-f.done; err != nil {
		f.t.Errorf("Run: %v", err)
	}
}

func (f *fixture) await(what string, cond func() bool) {
	f.t.Helper()
	f.awaitFor(20*time.Second, what, cond)
}

func (f *fixture) awaitFor(limit time.Duration, what string, cond func() bool) {
	f.t.Helper()
	sandbox.AwaitTB(f.t, limit, what, func() error {
		if cond() {
			return nil
		}
		_, gaps, h := f.sink.now()
		return fmt.Errorf("gaps %v, health %+v", gaps, h)
	})
}

func (f *fixture) awaitGap(reason string) {
	f.t.Helper()
	f.await("gap "+reason, func() bool {
		_, gaps, _ := f.sink.now()
		return slices.Contains(gaps, reason)
	})
}

// awaitMode waits until a way of watching is in use, and returns why no better one.
func (f *fixture) awaitMode(mode string) string {
	f.t.Helper()
	f.await("mode "+mode, func() bool {
		_, _, h := f.sink.now()
		return h.Mode == mode && h.Connected == (mode != ModeScan)
	})
	_, _, h := f.sink.now()
	return h.Err
}

// do runs a command of the application.
func (f *fixture) do(args ...any) {
	f.t.Helper()
	if err := f.client.Do(context.Background(), args...).Err(); err != nil && !errors.Is(err, redis.Nil) {
		f.t.Fatalf("%v: %v", args, err)
	}
}

// settle returns when everything that was written before has been offered. What one
// take of the set holds comes in any order, so it needs two sentinels.
func (f *fixture) settle() {
	f.t.Helper()
	for range 2 {
		id := "sentinel" + instance()
		f.do("SET", meta+id, "x")
		f.await("sentinel", func() bool { return f.sink.saw(id) })
	}
}

// alive asserts that a write is seen.
func (f *fixture) alive() {
	f.t.Helper()
	f.settle()
}
