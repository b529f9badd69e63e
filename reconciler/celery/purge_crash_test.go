package celery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// lossy is a connection that is lost after so many scripts: the last one has had its
// effect, and its answer never arrives.
type lossy struct{ left int }

var errLost = errors.New("the connection is lost")

func (*lossy) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (*lossy) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h *lossy) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if h.left < 0 {
			return errLost
		}
		err := next(ctx, cmds)
		if cmds[0].Name() == "evalsha" && !strings.HasPrefix(fmt.Sprint(cmds[0].Err()), "NOSCRIPT") {
			if h.left--; h.left < 0 {
				for _, cmd := range cmds {
					cmd.SetErr(errLost)
				}
				return errLost
			}
		}
		return err
	}
}

// TestPurgeCrash ends purges and restores after every number of steps: nothing is
// lost or doubled, and the order is what it was.
func TestPurgeCrash(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	ctx := t.Context()
	broker := func(steps int) *celery.Broker {
		client := redis.NewClient(&redis.Options{Network: "unix", Addr: l.redis.Socket(), MaxRetries: -1})
		t.Cleanup(func() { _ = client.Close() })
		client.AddHook(&lossy{left: steps})
		return celery.NewBroker(celery.BrokerOptions{Client: client, Quarantine: time.Hour, Queues: []string{"celery"}})
	}
	ended := 0
	for steps := 0; ended < 2; steps++ {
		ended = 0
		l.run("flushdb")
		l.ok(l.SetEpoch(ctx, l.epoch))
		l.fill(2600, func(int) bool { return false })
		for i := range 250 {
			tag := fmt.Sprint("u", i)
			l.ok(l.client.HSet(ctx, "unacked", tag, held(envelopeOf(tag), "", "celery")).Err())
			l.ok(l.client.ZAdd(ctx, "unacked_index", redis.Z{Score: 1, Member: tag}).Err())
		}
		want := l.client.LRange(ctx, "celery", 0, -1).Val()
		d := reconciler.QueueDrain{IncludeUnacked: true, Epoch: l.epoch}
		_, err := broker(steps).DrainQueues(ctx, d)
		if err == nil {
			ended++
		} else if !errors.Is(err, errLost) {
			t.Fatal(err)
		}
		_, err = broker(1000).DrainQueues(ctx, d)
		l.ok(err)
		if n := l.client.Exists(ctx, "celery", "unacked", "unacked_index").Val(); n != 0 {
			t.Fatalf("after %d steps: %d keys left", steps, n)
		}
		if _, err = broker(steps).RestorePurged(ctx, "celery", 0, nil); err == nil {
			ended++
		} else if !errors.Is(err, errLost) {
			t.Fatal(err)
		}
		l.restoreQueue("celery")
		got := l.client.LRange(ctx, "celery", 0, -1).Val()
		if len(got) != 2850 || !slices.Equal(got[:2600], want) {
			t.Fatalf("after %d steps: %d messages, or another order", steps, len(got))
		}
		back := map[string]bool{}
		for _, e := range got[2600:] {
			back[short(e)] = true
		}
		if len(back) != 250 || len(l.ours()) != 0 {
			t.Fatalf("after %d steps: %d unacked came back, %v", steps, len(back), l.ours())
		}
	}
}

// meddler does something just before the first script.
type meddler struct{ do func() }

func (*meddler) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (*meddler) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h *meddler) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if do := h.do; do != nil && cmds[0].Name() == "evalsha" {
			h.do = nil
			do()
		}
		return next(ctx, cmds)
	}
}

// TestPurgeMeddled: what has changed since it was read is left as it is.
func TestPurgeMeddled(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	ctx := t.Context()
	meddled := func(do func()) *celery.Broker {
		client := redis.NewClient(&redis.Options{Network: "unix", Addr: l.redis.Socket()})
		t.Cleanup(func() { _ = client.Close() })
		client.AddHook(&meddler{do})
		return celery.NewBroker(celery.BrokerOptions{Client: client, Quarantine: time.Hour, Queues: []string{"celery"}})
	}
	// The worker gives one back, and fetches it again; another is acknowledged.
	l.run("hset unacked t1 &a t2 &b t3 &c", "zadd unacked_index 1 t1 1 t2 1 t3")
	reports, err := meddled(func() {
		l.ok(l.client.HSet(ctx, "unacked", "t1", held(redeliver("a"), "", "celery")).Err())
		l.run("hdel unacked t2", "zrem unacked_index t2")
	}).DrainQueues(ctx, reconciler.QueueDrain{IncludeUnacked: true, Epoch: l.epoch})
	l.ok(err)
	l.wantQueues(reports, "celery: 0 waiting, 1 unacked, 1 cleaned")
	if left := l.client.HKeys(ctx, "unacked").Val(); !slices.Equal(left, []string{"t1"}) || l.client.ZCard(ctx, "unacked_index").Val() != 1 {
		t.Errorf("left are %v", left)
	}
	l.restoreQueue("celery")
	l.run("del celery")

	// Another restore is faster.
	l.push("celery", "@d", "{no message", "@e")
	l.drain(false)
	_, err = meddled(func() { l.restoreQueue("celery") }).RestorePurged(ctx, "celery", 0, nil)
	l.ok(err)
	if got := l.client.LRange(ctx, "celery", 0, -1).Val(); !slices.Equal(got, []string{envelopeOf("d"), envelopeOf("e")}) {
		t.Errorf("%q", got)
	}
}
