package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(sandbox.Shared(m)) }

const patience = 30 * time.Second

// sink is a queue that a test fills, empties and finishes by hand.
type sink struct {
	mu sync.Mutex
	// limit is how many unfinished events fit; hold keeps them unfinished.
	limit  int
	hold   bool
	held   []watcher.Event
	events []watcher.Event
	// messages are those whose subjects are messages; they are finished at once.
	messages []watcher.Event
	gaps     []string
	health   watcher.Health
	room     chan struct{}
}

func newSink() *sink { return &sink{limit: 1 << 30, room: make(chan struct{})} }

func (s *sink) Offer(e watcher.Event) bool {
	s.mu.Lock()
	if e.Subject.Kind.OfMessages() {
		s.messages = append(s.messages, e)
		s.mu.Unlock()
		e.Done()
		return true
	}
	if len(s.held) >= s.limit {
		s.mu.Unlock()
		return false
	}
	s.events = append(s.events, e)
	hold := s.hold && e.Done != nil
	if hold {
		s.held = append(s.held, e)
	}
	s.mu.Unlock()
	if !hold && e.Done != nil {
		e.Done()
	}
	return true
}

func (s *sink) Room() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room
}

func (s *sink) Gap(source, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaps = append(s.gaps, reason)
}

func (s *sink) Report(source string, h watcher.Health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = h
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	kinds := map[reconciler.Kind]int{}
	for _, e := range s.events {
		kinds[e.Subject.Kind]++
	}
	return fmt.Sprintf("health %+v, gaps %v, events by kind %v, %d held", s.health, s.gaps, kinds, len(s.held))
}

func (s *sink) gapCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.gaps)
}

// set changes the limits and finishes the first n held events.
func (s *sink) set(limit int, hold bool, finish int) {
	s.mu.Lock()
	s.limit, s.hold = limit, hold
	finish = min(finish, len(s.held))
	done := slices.Clone(s.held[:finish])
	s.held = s.held[finish:]
	close(s.room)
	s.room = make(chan struct{})
	s.mu.Unlock()
	for _, e := range done {
		e.Done()
	}
}

// offered are the subjects of deletions, as kind:id, in their order.
func (s *sink) offered() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []string{}
	for _, e := range s.events {
		switch e.Subject.Kind {
		case reconciler.Task:
			out = append(out, "task:"+e.Subject.ID)
		case reconciler.Row:
			out = append(out, fmt.Sprintf("row%d:%s", e.Subject.Binding, e.Subject.ID))
		case reconciler.Canary:
		}
	}
	return out
}

func (s *sink) canaries() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.events {
		if e.Subject.Kind == reconciler.Canary {
			n++
		}
	}
	return n
}

func (s *sink) gapped(reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.gaps, reason)
}

func (s *sink) last() watcher.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health
}

func (s *sink) deletions() []watcher.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.events), func(e watcher.Event) bool { return e.Deletion == nil })
}

// rig is a source on a database of its own, driven as the controller drives it.
type rig struct {
	tb      testing.TB
	dsn     string
	src     *Source
	sink    *sink
	session atomic.Pointer[Session]
	// sessions counts those that were acquired, standbys the calls of standby.
	sessions, standbys atomic.Int32
	holder             atomic.Value
	fail               chan error
	stop               func() error
}

var slots atomic.Int32

// options watch table scan_tasks of the database, by celery_id.
func options(dsn string, bindings ...reconciler.Binding) Options {
	if len(bindings) == 0 {
		bindings = []reconciler.Binding{{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true}}
	}
	name := fmt.Sprintf("orphanwatch_%d", slots.Add(1))
	return Options{
		URL: dsn, Slot: name, Publication: name, Bindings: bindings, Log: slog.New(slog.DiscardHandler),
		CanaryEvery: 250 * time.Millisecond, MonitorEvery: 50 * time.Millisecond,
	}
}

func newRig(tb testing.TB, opts Options) *rig {
	return &rig{tb: tb, dsn: opts.URL, src: New(opts), sink: newSink(), fail: make(chan error, 1)}
}

// example is a running rig on the example schema.
func example(tb testing.TB, bindings ...reconciler.Binding) *rig {
	tb.Helper()
	return newRig(tb, options(sandbox.NewExampleDatabase(tb), bindings...)).run()
}

// run drives the source until stop, and returns once it streams.
func (r *rig) run() *rig {
	r.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.lead(ctx) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	r.tb.Cleanup(func() { _ = r.stop() })
	r.await("streaming", func() bool { return r.sink.last().Connected && r.sink.canaries() > 0 })
	return r
}

// lead is the controller's loop.
func (r *rig) lead(ctx context.Context) error {
	for ctx.Err() == nil {
		sess, err := r.src.Acquire(ctx, func(holder string) {
			r.holder.Store(holder)
			r.standbys.Add(1)
		})
		if err == nil {
			r.session.Store(sess.(*Session))
			r.sessions.Add(1)
			err = sess.Run(ctx, r.sink)
		} else if ctx.Err() == nil && !errors.Is(err, reconciler.ErrUnreachable) {
			select {
			case r.fail <- err:
			default:
			}
			return err
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond): // the controller's backoff
			}
		}
	}
	return nil
}

func (r *rig) await(what string, cond func() bool) {
	r.tb.Helper()
	sandbox.AwaitTB(r.tb, patience, what, func() error {
		select {
		case err := <-r.fail:
			return fmt.Errorf("leadership ended: %w", err)
		default:
		}
		if cond() {
			return nil
		}
		return errors.New(r.sink.String())
	})
}

// exec runs statements in one session.
func (r *rig) exec(statements ...string) {
	r.tb.Helper()
	conn := r.connect()
	defer closeConn(conn)
	for _, sql := range statements {
		_, err := conn.Exec(context.WithoutCancel(r.tb.Context()), sql) // a cleanup's context has ended
		require.NoError(r.tb, err, sql)
	}
}

func (r *rig) connect() *pgx.Conn {
	r.tb.Helper()
	conn, err := pgx.Connect(context.WithoutCancel(r.tb.Context()), r.dsn)
	require.NoError(r.tb, err)
	return conn
}

// scalar is the one value of a query.
func scalar[T any](r *rig, sql string, args ...any) T {
	r.tb.Helper()
	conn := r.connect()
	defer closeConn(conn)
	var v T
	require.NoError(r.tb, conn.QueryRow(r.tb.Context(), sql, args...).Scan(&v), sql)
	return v
}

// settle waits until all that is committed now has been offered.
func (r *rig) settle() {
	r.tb.Helper()
	at := scalar[int64](r, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`)
	r.exec(`SELECT pg_logical_emit_message(false, 'orphanwatch', '')`)
	r.await("position", func() bool { return r.session.Load().Position() >= reconciler.LSN(at) })
}

func (r *rig) confirmed() reconciler.LSN {
	return reconciler.LSN(scalar[int64](r, `SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = $1`,
		r.src.opts.Slot))
}
