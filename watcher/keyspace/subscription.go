package keyspace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// The reasons of gaps.
const (
	gapReconnect   = "reconnect"
	gapResubscribe = "resubscribe"
	gapSilent      = "silent"
	gapCanary      = "canary"
	gapIdentity    = "identity"
	gapLadder      = "ladder"
	gapOverflow    = "overflow"
)

// lost is why a subscription can no longer be trusted.
type lost struct {
	// gap is the reason as the sink is told.
	gap string
	err error
}

func (l *lost) Error() string { return l.gap + ": " + l.err.Error() }

func (l *lost) Unwrap() error { return l.err }

// subscription is one connection that is subscribed, from the first attempt to its
// end. It never comes back: whatever is wrong with it ends it.
type subscription struct {
	mode string
	// why is why there is no better one; nil in the best mode.
	why error
	// ctx ends with the subscription, its cause is a *lost.
	ctx context.Context
	end context.CancelCauseFunc
	// confirmed is closed when every channel and pattern has been.
	confirmed chan struct{}
	// echo has a token when the canary's event has come.
	echo chan struct{}
	born time.Time
	// heard is when the last frame came, ns since born: wall clocks jump.
	heard atomic.Int64

	parse   func(channel, payload string) (key string, ok bool)
	canary  string
	hint    func(key string, seen time.Time)
	pubsub  *redis.PubSub
	members sync.WaitGroup
}

// start connects and subscribes; whether that worked shows in confirmed and ctx.
// dialing ends before answerTimeout.
func (s *subscription) start(ctx context.Context, client *redis.Client, exact, globs []string) {
	s.ctx, s.end = context.WithCancelCause(ctx)
	s.confirmed = make(chan struct{})
	s.echo = make(chan struct{}, 1)
	s.born = time.Now()
	if len(exact) == 0 {
		close(s.confirmed)
		return
	}
	awaited := map[string]bool{}
	for _, c := range slices.Concat(exact, globs) {
		awaited[c] = true
	}
	s.pubsub = client.Subscribe(s.ctx)
	dialing, cancel := context.WithTimeout(s.ctx, answerTimeout)
	defer cancel()
	err := s.pubsub.Subscribe(dialing, exact...)
	if err == nil && len(globs) > 0 {
		err = s.pubsub.PSubscribe(dialing, globs...)
	}
	if err != nil {
		s.end(&lost{gapReconnect, fmt.Errorf("subscribe: %w", err)})
	}
	s.members.Go(s.guard)
	s.members.Go(s.ping)
	s.members.Go(func() { s.receive(awaited) })
}

// close ends the subscription and waits for its goroutines.
func (s *subscription) close() {
	s.end(context.Canceled)
	s.members.Wait()
}

// receive is the loop that must keep up with the server: it only parses and
// inserts.
func (s *subscription) receive(awaited map[string]bool) {
	for {
		frame, err := s.pubsub.Receive(s.ctx)
		now := time.Now()
		var answer redis.Error
		if len(awaited) == 0 && errors.As(err, &answer) {
			// A ping that the server refuses, as it does when its disk fails.
			s.heard.Store(int64(now.Sub(s.born)))
			continue
		}
		if err != nil {
			s.end(&lost{gapReconnect, fmt.Errorf("receive: %w", err)})
			return
		}
		s.heard.Store(int64(now.Sub(s.born)))
		switch m := frame.(type) {
		case *redis.Message:
			s.message(m, now)
		case *redis.Subscription:
			if !awaited[m.Channel] {
				s.end(&lost{gapResubscribe, fmt.Errorf("repeated subscription of %s: the connection was replaced", m.Channel)})
				return
			}
			if delete(awaited, m.Channel); len(awaited) == 0 {
				close(s.confirmed)
			}
		}
	}
}

func (s *subscription) message(m *redis.Message, now time.Time) {
	key, ok := s.parse(m.Channel, m.Payload)
	if !ok {
		return
	}
	if key != s.canary {
		s.hint(key, now)
		return
	}
	select {
	case s.echo <- struct{}{}:
	default:
	}
}

// ping asks for a sign of life. It may block on a connection that is stuck, so
// guard does the watching.
func (s *subscription) ping() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
			// An error shows in receive as well.
			_ = s.pubsub.Ping(s.ctx)
		}
	}
}

// guard ends a subscription that gives no sign of life, and closes the connection
// of one that has ended, which ends receive and ping.
func (s *subscription) guard() {
	tick := time.NewTicker(pingEvery / 4)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			_ = s.pubsub.Close()
			return
		case now := <-tick.C:
			if silence := now.Sub(s.lastHeard()); silence > silenceLimit {
				s.end(&lost{gapSilent, fmt.Errorf("no sign of life for %s", silence.Round(time.Millisecond))})
			}
		}
	}
}

func (s *subscription) lastHeard() time.Time { return s.born.Add(time.Duration(s.heard.Load())) }

// cause is why the subscription ended.
func (s *subscription) cause() *lost {
	var l *lost
	if err := context.Cause(s.ctx); !errors.As(err, &l) {
		l = &lost{gapReconnect, err}
	}
	return l
}
