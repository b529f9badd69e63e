package watcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Judge is the reconciler as the controller needs it.
type Judge interface {
	Reconcile(ctx context.Context, term reconciler.Term, works []*reconciler.Work) ([]reconciler.Verdict, error)
	Resync(ctx context.Context, term reconciler.Term, reason string, observe bool, submit func(context.Context, []reconciler.Suspect) error) (more bool, err error)
	LookAtMessages(ctx context.Context, scan reconciler.MessageScan, onlyDeleted bool, submit func(context.Context, []reconciler.Suspect) error) (deleted int, err error)
	BeginTerm()
}

// Desk is where operators leave their orders and find the state: the control key
// in Redis, so that they reach whichever copy leads.
type Desk interface {
	// ClaimEpoch makes this copy the newest leader.
	ClaimEpoch(ctx context.Context) (uint64, error)
	// Orders carries out what operators ask for, and tells why a resync is
	// wanted, "" for no reason. reconciler.ErrStale ends the term.
	Orders(ctx context.Context) (resync string, err error)
	// Publish shows the state to whoever asks.
	Publish(ctx context.Context, s Status) error
}

// Options are what a Controller needs.
type Options struct {
	Leadership Leadership
	Keyspace   Source
	// Broker tells which of its lists have changed; Queues reads them, and FindQueues
	// finds which there are.
	Broker     Source
	Queues     Queues
	FindQueues func(ctx context.Context) error
	Judge      Judge
	Desk       Desk
	// Remember is told of every deletion, before it is judged.
	Remember func(reconciler.Subject)
	Log      *slog.Logger
	// Pulse watches over the loops; nil for nobody.
	Pulse *Pulse

	// QueueLimit bounds the entries with a deletion, and those without, each.
	QueueLimit int
	// Workers reconcile batches side by side.
	Workers int
	// ResyncInterval is how often a pass is made without a reason.
	ResyncInterval time.Duration
	// Grace is policy.grace: how long what a pass submits is in the queue at least.
	Grace time.Duration
	// ObserveFirst: the pass at start only counts (policy.cleanup_on_startup false).
	ObserveFirst bool
	// DrainTimeout is how long a shutdown waits for what is in hand.
	DrainTimeout time.Duration
}

// Controller leads while it holds the replication slot: it runs the sources, the
// queue and the workers of one term, and begins anew when the term ends. Nothing
// outlives a term but what the stores hold, so there is nothing to repair.
type Controller struct {
	Options
	state     state
	telemetry *telemetry
	started   bool
	observed  bool // ObserveFirst has been done
}

// New is a Controller.
func New(o Options) (*Controller, error) {
	c := &Controller{Options: o}
	c.state.health = map[string]Health{}
	t, err := newTelemetry(c)
	if err != nil {
		return nil, fmt.Errorf("instruments: %w", err)
	}
	c.telemetry = t
	return c, nil
}

const (
	batchLimit = 1000
	// sweepLimit is how many entries one sweep over the broker serves.
	sweepLimit = 10_000
	// lasting is how long a term takes that is not one of a series of failures.
	lasting = 10 * time.Second
)

// Run leads, stands by and leads again until ctx ends. It fails where waiting
// does not help: at the first start with what an operator must mend, later only
// when a loop of its own has died.
func (c *Controller) Run(ctx context.Context) error {
	publishing, stop := context.WithCancel(ctx)
	var published sync.WaitGroup
	published.Go(func() { c.publish(publishing) })
	defer published.Wait()
	defer stop()

	var wait retry
	for ctx.Err() == nil {
		session, err := c.Leadership.Acquire(ctx, c.standby)
		if err == nil {
			began := time.Now()
			err = c.term(ctx, session)
			if time.Since(began) > lasting {
				wait.succeeded()
			}
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to stop, and stopped
		}
		var hinted *reconciler.Hinted
		if dead := (*deadLoopError)(nil); errors.As(err, &dead) || (!c.started && errors.As(err, &hinted)) {
			return err
		}
		c.state.end(err)
		c.Log.ErrorContext(ctx, "not leading: will try again", "error", err, "in", wait.next().String())
		if !wait.sleep(ctx) {
			return nil
		}
	}
	return nil
}

func (c *Controller) standby(holder string) {
	c.started = true
	if c.state.standby(holder) {
		c.Log.Info("standing by: another copy holds the replication slot", "holder", holder)
	}
}

// deadLoopError is why the process must end: a loop returned that never should.
type deadLoopError struct {
	loop string
	err  error
}

func (e *deadLoopError) Error() string { return fmt.Sprintf("%s has died: %v", e.loop, e.err) }
func (e *deadLoopError) Unwrap() error { return e.err }

// term is one time as the leader. It returns why it ended; nil when ctx did.
func (c *Controller) term(ctx context.Context, session Session) error {
	// Three circles: everything, the session, and what feeds the queue. At a
	// shutdown the innermost ends first, and the session only when what is in
	// hand is done, so that it is acknowledged.
	outer, stopAll := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAll()
	g, all := errgroup.WithContext(outer)
	feed, stopFeed := context.WithCancel(all)
	defer stopFeed()

	room := newBell()
	t := &term{
		c: c, queue: newQueue(c.QueueLimit, room), messages: newQueue(c.QueueLimit, room), session: session,
		reasons: make(chan string, 64), deleted: make(chan struct{}, 1), lists: newLists(),
	}
	c.Judge.BeginTerm()
	c.state.hold(t.queue, t.messages)
	g.Go(func() error { return orEnded(session.Run(all, t)) })
	// Claimed only now that the slot is held, and compared in every removal.
	epoch, err := claim(all, ctx, c.Desk, c.Log)
	if err != nil {
		stopAll()
		err = errors.Join(err, ignoreEnd(g.Wait()))
		c.state.end(err)
		return err
	}
	t.term = reconciler.Term{Epoch: epoch, Position: session.Position}
	c.started = true
	c.state.lead(t.term)
	c.Log.InfoContext(ctx, "leading", "epoch", epoch)

	subscribed := make(chan struct{})
	var unready atomic.Int32
	sources := map[string]Source{SourceRedis: c.Keyspace, SourceBroker: c.Broker}
	unready.Store(int32(len(sources)))
	for name, source := range sources {
		g.Go(func() error {
			err := source.Run(feed, t, sync.OnceFunc(func() {
				if unready.Add(-1) == 0 {
					close(subscribed)
					c.state.subscribe()
				}
			}))
			if feed.Err() != nil {
				return nil
			}
			return &deadLoopError{"the source " + name, err}
		})
	}
	for i := range c.Workers {
		g.Go(func() error { return t.work(all, fmt.Sprintf("worker %d", i+1), t.queue, batchLimit) })
	}
	g.Go(func() error { return t.work(all, "message worker", t.messages, sweepLimit) })
	g.Go(func() error { return t.look(feed) })
	g.Go(func() error { return t.resyncLoop(feed, subscribed) })
	g.Go(func() error { return t.orders(feed) })
	g.Go(func() error {
		select {
		case <-all.Done():
			return nil
		case <-ctx.Done():
		}
		session.Quiesce()
		stopFeed()
		t.drain(all)
		return errDrained
	})
	err = ignoreEnd(g.Wait())
	c.state.end(err)
	return err
}

var (
	errDrained      = errors.New("drained")
	errSessionEnded = errors.New("the replication session has ended")
)

func orEnded(err error) error {
	if err == nil {
		return errSessionEnded
	}
	return err
}

func ignoreEnd(err error) error {
	if errors.Is(err, errDrained) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// claim increments the epoch, however long Redis is away.
func claim(ctx, shutdown context.Context, d Desk, log *slog.Logger) (uint64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(shutdown, cancel)()
	var wait retry
	for {
		epoch, err := d.ClaimEpoch(ctx)
		if err == nil {
			return epoch, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		log.ErrorContext(ctx, "cannot claim the epoch in Redis: will try again", "error", err, "in", wait.next().String())
		if !wait.sleep(ctx) {
			return 0, ctx.Err()
		}
	}
}

const deskInterval = time.Second

// publish shows the state, whoever leads. Its errors are the state of Redis,
// which others tell.
func (c *Controller) publish(ctx context.Context) {
	ctx, leave := c.Pulse.Enter(ctx, "publish", callLimit)
	defer leave()
	for {
		reconciler.Beat(ctx)
		_ = c.Desk.Publish(ctx, c.Status())
		if !pause(ctx, deskInterval) {
			return
		}
	}
}

// retry spaces attempts out: 0.2 s doubling to 5 s, with jitter.
type retry struct {
	n     int
	delay time.Duration
}

func (r *retry) next() time.Duration {
	r.delay = min(200*time.Millisecond<<min(r.n, 5), 5*time.Second)
	r.delay += rand.N(r.delay / 4) //nolint:gosec // jitter
	r.n++
	return r.delay.Round(time.Millisecond)
}

func (r *retry) sleep(ctx context.Context) bool { return pause(ctx, r.delay) }

func (r *retry) succeeded() { r.n = 0 }

// pause waits, and tells whether ctx is still there.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// firstOnly lets a message through once every interval.
type firstOnly struct{ last atomic.Int64 }

func (f *firstOnly) allow(every time.Duration) bool {
	now := time.Now().UnixNano()
	last := f.last.Load()
	return now-last >= int64(every) && f.last.CompareAndSwap(last, now)
}
