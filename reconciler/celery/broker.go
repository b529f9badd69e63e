package celery

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// BrokerOptions of a Broker.
type BrokerOptions struct {
	// Client is of the broker's server and database; DB is that database's number,
	// which the channel of remote control bears.
	Client   redis.UniversalClient
	DB       int
	Bindings []reconciler.Binding
	// KeyPrefix is the broker transport's global_keyprefix, as it is.
	KeyPrefix string
	// Queues are known beside those that are found.
	Queues []string
	// PrioritySteps and Sep are the broker transport's priority_steps (empty: 0, 3,
	// 6, 9) and sep (empty: the bytes 06 16); ControlExchange is Celery's
	// control_exchange (empty: celery).
	PrioritySteps   []int
	Sep             string
	ControlExchange string
	// Terminate is the signal by which a revoke ends running tasks, or off (empty: off).
	Terminate string
	// Quarantine is how long a pulled message is kept, 0 for not at all.
	Quarantine time.Duration
	// Share is the part of the server's time that looks and pulls may take, 0 for 0.5.
	Share float64
}

// Broker is the Redis that holds Celery's messages. It is safe for concurrent use.
type Broker struct {
	client  redis.UniversalClient
	options BrokerOptions
	reader  *Reader
	keys    *Keys
	seed    maphash.Seed
	// discovered: Discover has been.
	discovered atomic.Bool
	near       int64 // pullNear, but in tests
	pacer      *pacer
	clock      clock
	// unreadable is of the last complete sweep.
	unreadable atomic.Int64

	mu sync.Mutex
	// exchanges are what binding sets say; unbound are lists in use without one.
	exchanges map[string][]bound
	unbound   map[string]bool
	// lists are the keys of all lists that are known, sorted.
	lists []string
	// news are keys that events named and that are no known list: a sweep looks at
	// them first.
	news   map[string]struct{}
	states map[string]*listState
}

// listState is what is remembered of one list.
type listState struct {
	// newest are hashes of elements that were at the head when it was last read.
	newest []uint64
	// window is how many of its elements one call reads, as last found.
	window window
	// drift is how far the last pulled message was above the index that it was read at.
	drift int64
	// tombstones are ours that should be in it; marked are those since its last
	// sweep began.
	tombstones, marked int64
}

var _ reconciler.Messages = (*Broker)(nil)

// NewBroker makes a Broker; it does no I/O.
func NewBroker(o BrokerOptions) *Broker {
	if len(o.PrioritySteps) == 0 {
		o.PrioritySteps = []int{0, 3, 6, 9}
	}
	o.PrioritySteps = slices.Sorted(slices.Values(o.PrioritySteps))
	if o.Sep == "" {
		o.Sep = "\x06\x16"
	}
	if o.ControlExchange == "" {
		o.ControlExchange = "celery"
	}
	if o.Terminate == "" {
		o.Terminate = "off"
	}
	b := &Broker{
		pacer:  newPacer(share(o.Share), brokerBurst),
		client: o.Client, options: o, reader: NewReader(o.Bindings), keys: NewKeys("", o.Bindings), seed: maphash.MakeSeed(), near: pullNear,
		exchanges: map[string][]bound{}, unbound: map[string]bool{}, news: map[string]struct{}{}, states: map[string]*listState{},
	}
	b.relist()
	return b
}

// Unreadable is how many elements of the last complete sweep were no messages
// that we can read: they are left alone.
func (b *Broker) Unreadable() int64 { return b.unreadable.Load() }

// brokerBurst is how much of the server's time may be taken at once, in short
// calls: what is in queues of usual lengths is found without a pause.
const brokerBurst = 50 * time.Millisecond

// Counts are Unreadable and Tombstones.
func (b *Broker) Counts() (unreadable, tombstones int64) { return b.Unreadable(), b.Tombstones() }

func (b *Broker) pace() *pacer { return b.pacer }

// with calls f with what is remembered of a list.
func (b *Broker) with(list string, f func(*listState)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.states[list]
	if s == nil {
		s = &listState{}
		b.states[list] = s
	}
	f(s)
}

// timed runs one call and owes the server the pause for it.
func timed(pace *pacer, f func() error) error {
	return bounded(pace, func() (time.Duration, error) { return time.Hour, f() })
}

// bounded is timed for a call of which is known how much of the server's time it
// costs at most: on a busy machine most of the waiting is our own.
func bounded(pace *pacer, f func() (atMost time.Duration, err error)) error {
	began := time.Now()
	atMost, err := f()
	pace.owe(min(time.Since(began), atMost))
	return err
}

// revokeIDs go in one message: a worker's main loop handles 1000 in half a second.
const revokeIDs = 500

// Revoke publishes to all workers not to run these tasks: heard is how many heard
// it, 0 also where the channel is not theirs; workers, how many there should be: if
// none has heard it, those that have bound a queue for remote control (one that was
// killed is still counted). It is not stored anywhere but in their memory, and
// cannot be taken back: where epoch is not the newest leader's, or the rows were read
// too long ago, or in a pause, it is not published (reconciler.ErrStale, ErrLate, ErrPaused).
func (b *Broker) Revoke(ctx context.Context, epoch uint64, looked time.Time, ids []string) (heard, workers int, err error) {
	channel := b.ControlChannel()
	deadline, err := b.clock.deadlines(ctx, b.client)
	if err != nil {
		return 0, 0, failed("revoke", err)
	}
	for page := range slices.Chunk(ids, revokeIDs) {
		message, err := revokeMessage(page, b.options.Terminate)
		if err != nil {
			return heard, 0, failed("revoke", err)
		}
		reply, err := revokeScript.one(ctx, b.client, []string{controlKey}, epoch, deadline(looked), channel, message)
		if err != nil {
			return heard, 0, failed("revoke", err)
		}
		switch n, _ := reply.(int64); n {
		case -1:
			return heard, 0, reconciler.ErrStale
		case -2:
			b.clock.forget()
			return heard, 0, reconciler.ErrLate
		case -3:
			return heard, 0, reconciler.ErrPaused
		default:
			heard = max(heard, int(n))
		}
	}
	if heard == 0 {
		workers, err = b.Workers(ctx)
	}
	return heard, max(workers, heard), err
}

// Workers is how many workers have bound a queue for remote control. A worker
// that was killed is still counted.
func (b *Broker) Workers(ctx context.Context) (int, error) {
	n, err := b.client.SCard(ctx, b.bindingPrefix()+b.options.ControlExchange+".pidbox").Result()
	return int(n), failed("count workers", err)
}
