package watcher

import (
	"context"
	"sync"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Queues reads the broker's lists, each call within the share of the server's time
// that looks may take.
type Queues interface {
	// Sweep yields all messages.
	Sweep(ctx context.Context, yield func([]reconciler.Message) error) error
	// Arrivals yields what is new in a list since it was last asked; the key may also
	// be of a binding, which is then read again.
	Arrivals(ctx context.Context, key string, yield func([]reconciler.Message) error) error
	// PurgeTombstones takes tombstones out of lists where that is cheap.
	PurgeTombstones(ctx context.Context) error
	// Counts are what the last sweep could not read and left alone, and the
	// tombstones that are in the lists.
	Counts() (unreadable, tombstones int64)
}

const (
	// afterDeleted is when messages are looked at again after some were taken. One
	// that a worker was just popping is in no key at that moment.
	afterDeleted = time.Second
	// cleanPasses in a row end that.
	cleanPasses = 2
	// arrivalsEvery is the least time between two looks at what has just come: those of
	// a busy queue are looked at together.
	arrivalsEvery = 50 * time.Millisecond
	// watchEvery is how often all messages are looked at for those of deleted rows,
	// where no event tells: retries and messages that are given back.
	watchEvery = 30 * time.Second
	// pollEvery is how often all are compared with the rows while there are no events.
	pollEvery = time.Second
	// findEvery is how often queues are searched for while there are no events.
	findEvery = 30 * time.Second
	// purgeEvery is how often tombstones are tried.
	purgeEvery = time.Second
	// restFactor times as long as it took, nothing is swept after a sweep.
	restFactor = 4
)

// looks is when messages are to be looked at next, and why.
type looks struct {
	// follow: after a deletion, zero for none; every and clean are of these passes.
	follow time.Time
	every  time.Duration
	clean  int

	watch, poll, find, purge time.Time
	// arrived is when new messages were last looked at.
	arrived time.Time
	// lost: there were more lists than are noted.
	lost bool
}

// look looks at messages: at those that have just come, at all where nothing tells
// of them, and again after some were taken. It ends with ctx.
func (t *term) look(ctx context.Context) error {
	ctx, leave := t.c.Pulse.Enter(ctx, "look", callLimit)
	defer leave()
	now := time.Now()
	l := looks{watch: now.Add(watchEvery), poll: now.Add(pollEvery), purge: now.Add(purgeEvery)}
	for {
		wait := time.NewTimer(time.Until(l.next()))
		reconciler.Beat(ctx) // the wait ends within purgeEvery
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-t.deleted:
			l.deleted(time.Now())
		case <-t.lists.filled:
		case <-wait.C:
		}
		wait.Stop()
		if err := t.lookNow(ctx, &l); err != nil && ctx.Err() == nil {
			t.c.telemetry.logFailure(ctx, t.c.Log, err)
			if !pause(ctx, time.Second) {
				return nil
			}
		}
	}
}

// deleted: messages of deleted rows were looked for. One deletion after another does
// not put off the next look.
func (l *looks) deleted(now time.Time) {
	if next := now.Add(afterDeleted); l.follow.IsZero() || next.Before(l.follow) {
		l.follow = next
	}
	l.every, l.clean = afterDeleted, 0
}

func (l *looks) next() time.Time {
	next := l.watch
	for _, at := range []time.Time{l.poll, l.purge, l.follow} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return next
}

// lookNow does what is due.
func (t *term) lookNow(ctx context.Context, l *looks) error {
	changed, lost := t.lists.take()
	l.lost = l.lost || lost
	if len(changed) > 0 && !pause(ctx, time.Until(l.arrived.Add(arrivalsEvery))) {
		return nil
	}
	l.arrived = time.Now()
	for list := range changed {
		_, err := t.lookAt(ctx, func(ctx context.Context, yield func([]reconciler.Message) error) error {
			return t.c.Queues.Arrivals(ctx, list, yield)
		}, false)
		if err != nil {
			for list := range changed {
				t.lists.add(list)
			}
			return err
		}
		delete(changed, list)
	}
	now := time.Now()
	if !l.purge.After(now) {
		l.purge = now.Add(purgeEvery)
		if err := t.c.Queues.PurgeTombstones(ctx); err != nil {
			return err
		}
	}
	due := func(at time.Time) bool { return !at.IsZero() && !at.After(now) }
	if due(l.poll) {
		l.poll = now.Add(pollEvery)
		if l.lost || !t.c.state.connected(SourceBroker) {
			l.lost = false
			err := t.poll(ctx, l)
			l.lost = err != nil
			l.poll = rest(now, pollEvery)
			return err
		}
	}
	if !due(l.follow) && !due(l.watch) {
		return nil
	}
	found, err := t.lookAt(ctx, t.c.Queues.Sweep, true)
	l.watch = rest(now, watchEvery)
	if l.follow.IsZero() || err != nil {
		return err
	}
	l.clean++
	if found > 0 {
		l.clean, l.every = 0, min(2*l.every, watchEvery)
	}
	if l.follow = rest(now, l.every); l.clean >= cleanPasses {
		l.follow = time.Time{}
	}
	return nil
}

// poll looks at everything, since nothing tells what is new.
func (t *term) poll(ctx context.Context, l *looks) error {
	if now := time.Now(); !l.find.After(now) {
		if err := t.c.FindQueues(ctx); err != nil {
			return err
		}
		l.find = rest(now, findEvery)
	}
	_, err := t.lookAt(ctx, t.c.Queues.Sweep, false)
	return err
}

func (t *term) lookAt(ctx context.Context, scan reconciler.MessageScan, onlyDeleted bool) (deleted int, err error) {
	return t.c.Judge.LookAtMessages(ctx, scan, onlyDeleted, func(ctx context.Context, suspects []reconciler.Suspect) error {
		return t.offerAll(ctx, reconciler.ByEvent, suspects)
	})
}

// rest is when to sweep again after one that began then.
func rest(began time.Time, every time.Duration) time.Time {
	now := time.Now()
	return now.Add(max(every, restFactor*now.Sub(began)))
}

// noteDeleted says that messages of deleted rows were looked for.
func (t *term) noteDeleted() {
	select {
	case t.deleted <- struct{}{}:
	default:
	}
}

// maxLists is how many lists are noted: those of other applications are told of, too.
const maxLists = 10_000

// lists are the keys of lists in which something is new.
type lists struct {
	mu   sync.Mutex
	keys map[string]struct{}
	// lost: there were more, so that all have to be looked at.
	lost   bool
	filled chan struct{} // has a token while there may be some
}

func newLists() *lists {
	return &lists{keys: map[string]struct{}{}, filled: make(chan struct{}, 1)}
}

func (l *lists) add(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keys[key] = struct{}{}; len(l.keys) > maxLists {
		l.keys, l.lost = map[string]struct{}{}, true
	}
	select {
	case l.filled <- struct{}{}:
	default:
	}
}

func (l *lists) take() (keys map[string]struct{}, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys, lost = l.keys, l.lost
	l.keys, l.lost = map[string]struct{}{}, false
	return keys, lost
}
