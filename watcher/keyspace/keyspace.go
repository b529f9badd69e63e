package keyspace

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// The ways of watching, best first: the values of Health.Mode.
const (
	ModeKeyspace = watcher.ModeKeyspace
	ModePublish  = watcher.ModePublish
	ModeScan     = watcher.ModeScan
)

// The values of Options.Configure.
const (
	ConfigureAuto  = "auto"
	ConfigureNever = "never"
)

const (
	// answerTimeout is how long the server may take to answer anything of ours.
	answerTimeout = 3 * time.Second
	// pingEvery is how often the subscribed connection is asked for a sign of life.
	pingEvery = time.Second
	// silenceLimit is how long it may give none.
	silenceLimit = 3 * time.Second
	// maxID is the longest id, in bytes, that can be one of a task or row.
	maxID = 1 << 10
	// canaryPrefix is of the canary's key, and of its channel under celery publish.
	canaryPrefix = "orphanwatch:canary:"
)

// Keys knows the keys of tasks and rows; *celery.Keys does.
type Keys interface {
	// Patterns are the globs of all keys to watch, that of result keys first.
	Patterns() []string
	// AppendLooks appends what a key is an artifact of, nothing for a foreign key.
	AppendLooks(to []reconciler.Look, key string) []reconciler.Look
}

// Options say what to watch, and how.
type Options struct {
	// Client is of the Redis and the database that hold the results. Only its
	// options are used: see ownClient.
	Client *redis.Client
	Keys   Keys
	// Lists: the events of lists are watched, in the Redis and the database that is
	// the broker; Keys says what each is of.
	Lists bool
	// Prefix stands before every key of the broker, and Publish are the channels on
	// which workers are told something. Both are only for the check of rights.
	Prefix  string
	Publish []string
	// Configure is whether missing flags of notify-keyspace-events may be added:
	// ConfigureAuto (the default) or ConfigureNever.
	Configure string
	// Both: results and messages are on one server. What an operator is told to set there
	// are the flags for both, since one command undoes the other.
	Both bool
	// Log is where the source tells what it does; none if nil.
	Log *slog.Logger
	// Pulse watches over the source's loops; nil for nobody.
	Pulse *watcher.Pulse
	// CanaryEvery is how often the whole path is proven; 10 s if 0.
	CanaryEvery time.Duration
	// RetryEvery is how often a better way of watching is tried; 1 min if 0.
	RetryEvery time.Duration
	// MaxPending is how many keys wait for the sink before they are dropped for a
	// gap; 65,536 if 0.
	MaxPending int
}

// Source watches Redis; it implements watcher.Source.
type Source struct {
	opts      Options
	kind      kind
	canaryKey string
	maxKey    int
	set       *set
	// ignored counts events of keys that cannot be of a task or row.
	ignored atomic.Int64
}

var _ watcher.Source = (*Source)(nil)

// New makes a source; nothing happens before Run, which may be called again once it has returned.
func New(o Options) *Source {
	if o.Configure == "" {
		o.Configure = ConfigureAuto
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.CanaryEvery == 0 {
		o.CanaryEvery = 10 * time.Second
	}
	if o.RetryEvery == 0 {
		o.RetryEvery = time.Minute
	}
	if o.MaxPending == 0 {
		o.MaxPending = 1 << 16
	}
	s := &Source{opts: o, kind: o.kind(), canaryKey: canaryPrefix + instance(), set: newSet(o.MaxPending)}
	if o.Lists {
		s.maxKey = maxID
	}
	for _, p := range o.Keys.Patterns() {
		s.maxKey = max(s.maxKey, len(p)+maxID)
	}
	return s
}

// ownClient reaches the same server by the same options, with connections of its
// own, so that nothing waits behind the work of others. It says what is wrong at
// once: trying again is ours, and a pool that has seen a server die would go on
// answering for it when it is back.
func ownClient(of *redis.Client) *redis.Client {
	o := *of.Options()
	o.ContextTimeoutEnabled = true
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = answerTimeout, answerTimeout, answerTimeout, answerTimeout
	o.MaxRetries, o.DialerRetries = -1, 1
	o.MinIdleConns, o.PipelinePoolSize = 0, -1
	return redis.NewClient(&o)
}

// instance tells this process's canary from those of others.
func instance() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Name is the source's name in metrics and logs.
func (s *Source) Name() string { return s.kind.source }

// Ignored is how many events were of keys that cannot be of a task or row: without
// an id, or with one over 1 KiB.
func (s *Source) Ignored() int64 { return s.ignored.Load() }

// Run watches until ctx ends, then returns nil. A server that is lost is tried for
// ever; the only errors are of configuration. ready is called when the first
// subscription is confirmed and proven, or when it is settled that there is none to
// be had and only resyncs see writes.
func (s *Source) Run(ctx context.Context, sink watcher.Sink, ready func()) error {
	if c := s.opts.Configure; c != ConfigureAuto && c != ConfigureNever {
		return fmt.Errorf("redis.configure is %q: must be %s or %s", c, ConfigureAuto, ConfigureNever)
	}
	ctx, cancel := context.WithCancel(ctx)
	var drain sync.WaitGroup
	defer drain.Wait()
	defer cancel()
	drain.Go(func() { s.drain(ctx, sink) })

	w := &watch{Source: s, sink: sink, ready: ready}
	if err := w.run(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// hint takes a key from the receiving goroutine: it must not block.
func (s *Source) hint(sink watcher.Sink, key string, seen time.Time) {
	if len(key) > s.maxKey {
		s.ignored.Add(1)
		return
	}
	if !s.set.add(key, seen) {
		s.opts.Log.LogAttrs(context.Background(), slog.LevelWarn, "too many keys wait for the queue: dropped them for a resync",
			slog.Int("keys", s.opts.MaxPending))
		sink.Gap(s.kind.source, gapOverflow)
	}
}

// drain moves what is in the set into the sink, at the sink's pace.
func (s *Source) drain(ctx context.Context, sink watcher.Sink) {
	ctx, leave := s.opts.Pulse.Enter(ctx, s.kind.source+" events", watcher.SourceLimit)
	defer leave()
	var looks []reconciler.Look
	for {
		resume := reconciler.Rest(ctx)
		select {
		case <-ctx.Done():
			return
		case <-s.set.filled:
		}
		resume()
		for key, seen := range s.set.take() {
			if looks = s.looks(looks[:0], key); len(looks) == 0 {
				s.ignored.Add(1)
			}
			for _, l := range looks {
				e := watcher.Event{Subject: l.Subject, Spelling: l.Spelling, Trigger: reconciler.ByEvent, Seen: seen}
				if !offer(ctx, sink, e) {
					return
				}
			}
		}
	}
}

func (s *Source) looks(to []reconciler.Look, key string) []reconciler.Look {
	if key == s.canaryKey {
		return append(to, reconciler.Look{Subject: reconciler.Subject{Kind: reconciler.Canary, ID: s.kind.source}})
	}
	return s.opts.Keys.AppendLooks(to, key)
}

// offer waits for room; it reports false when ctx ended first.
func offer(ctx context.Context, sink watcher.Sink, e watcher.Event) bool {
	for !sink.Offer(e) {
		room := sink.Room()
		// There may have been room before Room was asked for.
		if sink.Offer(e) {
			return true
		}
		resume := reconciler.Rest(ctx) // whoever makes room has a pulse of its own
		select {
		case <-ctx.Done():
			return false
		case <-room:
		}
		resume()
	}
	return true
}
