package celery_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// TestPurgeAmongTraffic: while producers push and workers pop, give back and hold,
// queues are purged and restored again and again. In the end each message has been
// consumed, is in the queue, is held, or is kept: exactly one of them.
func TestPurgeAmongTraffic(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	ctx := t.Context()
	traffic, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	sent, consumed := 0, map[string]int{}
	lists := []string{"celery", "celery\x06\x163", "celery\x06\x169"}

	for producer := range 2 {
		wg.Go(func() {
			for n := 0; traffic.Err() == nil; n++ {
				batch := make([]any, 1+rand.IntN(40))
				for i := range batch {
					batch[i] = envelopeOf(fmt.Sprintf("%d-%d-%d", producer, n, i))
				}
				if err := l.client.LPush(ctx, lists[rand.IntN(len(lists))], batch...).Err(); err != nil {
					t.Error(err)
				}
				mu.Lock()
				enough := sent > 20_000
				sent += len(batch)
				mu.Unlock()
				if enough {
					return
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for traffic.Err() == nil {
				popped, err := l.client.BRPop(ctx, time.Second, lists...).Result()
				if errors.Is(err, redis.Nil) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				id := short(popped[1])
				switch rand.IntN(4) {
				case 0: // it stops, and gives it back
					l.client.RPush(ctx, popped[0], popped[1])
					continue
				case 1: // it dies; the others run
					l.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
						p.ZAdd(ctx, "unacked_index", redis.Z{Score: 1, Member: "tag-" + id})
						p.HSet(ctx, "unacked", "tag-"+id, held(popped[1], "", "celery"))
						return nil
					})
					continue
				}
				mu.Lock()
				consumed[id]++
				mu.Unlock()
			}
		})
	}
	var purged, restored atomic.Int64
	wg.Go(func() { // also of purges that go on
		for traffic.Err() == nil {
			for _, p := range l.restoreQueue("celery") {
				restored.Add(p.Restored)
				if p.Gone+p.Unplaced+p.Incomplete != 0 {
					t.Errorf("%+v", p)
				}
			}
		}
	})
	for round := range 50 {
		for _, r := range l.drain(round%3 == 0) {
			purged.Add(r.Cleaned)
		}
	}
	stop()
	wg.Wait()
	kept := int64(0)
	purges, err := l.Purged(ctx, "", 0)
	l.ok(err)
	for _, p := range purges {
		kept += p.Messages
	}
	l.restoreQueue("celery")
	for _, list := range lists {
		for _, e := range l.client.LRange(ctx, list, 0, -1).Val() {
			consumed[short(e)]++
		}
	}
	for _, v := range l.client.HVals(ctx, "unacked").Val() {
		consumed["@"+strings.TrimPrefix(short(v), "&")]++
	}
	for id, n := range consumed {
		if n != 1 {
			t.Errorf("%s is there %d times", id, n)
		}
	}
	if purged.Load() == 0 || restored.Load() == 0 || len(consumed) != sent || l.client.HLen(ctx, "unacked").Val() != l.client.ZCard(ctx, "unacked_index").Val() {
		t.Errorf("%d of %d", len(consumed), sent)
	}
	t.Logf("%d sent; %d purged and %d restored meanwhile, %d kept at the end", sent, purged.Load(), restored.Load(), kept)
}

// TestPurgeModel compares purges and restores of lists of any sizes with a model.
func TestPurgeModel(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	ctx := t.Context()
	rapid.Check(t, func(rt *rapid.T) {
		l.ok(l.client.Del(ctx, append(l.ours(), "celery")...).Err())
		var list []string
		sent := 0
		element := func(rt *rapid.T) string {
			sent++
			switch rapid.IntRange(0, 9).Draw(rt, "kind") {
			case 0:
				return celery.Tombstone
			case 1:
				return fmt.Sprintf(`{"no": "message %d"}`, sent)
			case 2: // larger than a window, at times
				size := rapid.SampledFrom([]int{10_000, 100_000, 300_000}).Draw(rt, "size")
				return strings.Replace(envelopeOf(fmt.Sprint(sent)), "()", strings.Repeat("x", size), 1)
			}
			return envelopeOf(fmt.Sprint(sent))
		}
		var purged [][]string
		for range rapid.IntRange(1, 3).Draw(rt, "rounds") {
			var pushed []any
			for range rapid.IntRange(0, 40).Draw(rt, "n") {
				e := element(rt)
				for range rapid.SampledFrom([]int{1, 1, 1, 30}).Draw(rt, "times") {
					pushed = append(pushed, e)
					list = slices.Insert(list, 0, e)
				}
			}
			if len(pushed) > 0 {
				l.ok(l.client.LPush(ctx, "celery", pushed...).Err())
			}
			if rapid.Bool().Draw(rt, "purge") {
				l.drain(false, "celery")
				purged, list = append(purged, list), nil
			}
		}
		// What was not purged comes back as it is, tombstones and all.
		for i := len(purged) - 1; i >= 0; i-- {
			for _, e := range purged[i] {
				if celery.Complete(e) && e != celery.Tombstone {
					list = append(list, e)
				}
			}
		}
		l.restoreQueue("celery")
		got := l.client.LRange(ctx, "celery", 0, -1).Val()
		if len(got) != len(list) {
			rt.Fatalf("%d elements, want %d", len(got), len(list))
		}
		for i := range got {
			if got[i] != list[i] {
				rt.Fatalf("at %d: %.60q, want %.60q", i, got[i], list[i])
			}
		}
	})
}

// TestPurgeBehindAWorker: a real worker goes on with what it holds and with what is
// sent later; what was purged does not run before it is restored, and then once.
func TestPurgeBehindAWorker(t *testing.T) {
	t.Parallel()
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	ctx := t.Context()
	client := sb.Redis.Client(0)
	t.Cleanup(func() { _ = client.Close() })
	l := &brokerLab{TB: t, redis: sb.Redis, client: client, Broker: celery.NewBroker(celery.BrokerOptions{Client: client, Quarantine: time.Hour})}
	producer, err := sb.StartProducer(ctx, sandbox.Celery{})
	l.ok(err)
	send := func(options map[string]any, n int) []string {
		tasks := make([]sandbox.Task, n)
		for i := range tasks {
			tasks[i] = sandbox.Task{Name: sandbox.OtherTask, Args: []any{i}, Options: options}
		}
		ids, err := producer.Send(ctx, tasks...)
		l.ok(err)
		return ids
	}
	worker, err := sb.StartWorker(ctx, sandbox.WorkerOptions{Pool: "solo", Args: []string{"--without-heartbeat"}})
	l.ok(err)
	awaitAll := func(what string, ids []string) {
		for _, id := range ids {
			sandbox.AwaitTB(t, 30*time.Second, what+" "+id, func() error { return client.Get(ctx, "celery-task-meta-"+id).Err() })
		}
	}
	awaitAll("the first", send(nil, 1))
	// The worker holds one until tomorrow; nothing tells it of the purge.
	late := send(map[string]any{"countdown": 86400}, 1)
	sandbox.AwaitTB(t, 10*time.Second, "the worker to hold it", sandbox.Until(func() bool { return client.HLen(ctx, "unacked").Val() == 1 }))
	l.ok(worker.Pause(ctx))
	sandbox.AwaitTB(t, 10*time.Second, "what it has asked for to end", sandbox.Until(func() bool {
		return strings.Contains(client.Info(ctx, "clients").Val(), "blocked_clients:0")
	}))
	waiting := append(send(map[string]any{"priority": 5}, 20), send(nil, 20)...)
	l.wantQueues(l.count(), fmt.Sprintf(`celery: 40 waiting, 1 unacked, 0 cleaned, %q 41`, sandbox.OtherTask))
	l.wantQueues(l.drain(false, "celery"), "celery: 40 waiting, 1 unacked, 40 cleaned")
	if held, err := client.HVals(ctx, "unacked").Result(); err != nil || len(held) != 1 || !strings.Contains(held[0], late[0]) {
		t.Fatalf("%v, %v", held, err)
	}
	worker.Resume()
	awaitAll("a task sent after the purge", send(nil, 5))
	if n := client.Exists(ctx, metas(waiting)...).Val(); n != 0 {
		t.Errorf("%d of the purged tasks have run", n)
	}
	var back int64
	for _, p := range l.restoreQueue("celery") {
		back += p.Restored
	}
	if back != 40 {
		t.Errorf("%d restored", back)
	}
	awaitAll("a restored task", waiting)
	runs, err := sandbox.ReadRuns(ctx, client, 0)
	l.ok(err)
	times := map[string]int{}
	for _, r := range runs {
		times[r.ID]++
	}
	for _, id := range waiting {
		if times[id] > 1 {
			t.Errorf("%s ran %d times", id, times[id])
		}
	}
	l.wantQueues(l.drain(true, "celery"), "celery: 0 waiting, 1 unacked, 1 cleaned")
	if n := client.Exists(ctx, "unacked", "unacked_index").Val(); n != 0 {
		t.Error("it is still held")
	}
	if !worker.Running() {
		t.Error("the worker has died")
	}
}

func metas(ids []string) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = "celery-task-meta-" + id
	}
	return out
}

// TestMillionPurge purges and restores a queue of 1,000,000 messages of 950 bytes,
// and tells the longest calls:
//
//	go test ./reconciler/celery -run TestMillionPurge -million -v
func TestMillionPurge(t *testing.T) {
	if !*million {
		return
	}
	const total, size = 1_000_000, 950
	l := newBrokerLab(t)
	ctx := t.Context()
	for at := 0; at < total; at += 500 {
		batch := make([]any, 500)
		for i := range batch {
			e := envelopeOf(fmt.Sprint("task-", at+i))
			batch[i] = strings.Replace(e, `"argsrepr": "()"`, `"argsrepr": "(`+strings.Repeat("x", size-len(e))+`)"`, 1)
		}
		l.ok(l.client.LPush(ctx, "celery", batch...).Err())
	}
	l.ok(l.redis.Reconfigure(ctx, map[string]string{"slowlog-log-slower-than": "1000", "slowlog-max-len": "100000", "latency-monitor-threshold": "1"}))
	measured := func(what string, f func()) {
		l.run("slowlog reset", "config resetstat")
		began := time.Now()
		f()
		t.Logf("%s of %d messages of %d bytes within %v", what, total, size, time.Since(began).Round(10*time.Millisecond))
		logSlow(l, what)
	}
	measured("count", func() { l.count() })
	measured("purge", func() {
		l.wantQueues(l.drain(false), "celery: 1000000 waiting, 0 unacked, 1000000 cleaned")
	})
	t.Logf("%d keys hold it", len(l.ours()))
	measured("restore", func() { l.restoreQueue("celery") })
	if n := l.client.LLen(ctx, "celery").Val(); n != total || len(l.ours()) != 0 {
		t.Errorf("%d messages, %v", n, l.ours())
	}
	_, err := l.DrainQueues(ctx, reconciler.QueueDrain{Epoch: l.epoch})
	l.ok(err)
	measured("expiry, without lazyfree", func() {
		l.run("config set lazyfree-lazy-expire no", "latency reset")
		for _, key := range l.ours() {
			l.ok(l.client.PExpire(ctx, key, 10*time.Millisecond).Err())
		}
		sandbox.AwaitTB(t, time.Minute, "it to expire", sandbox.Until(func() bool { return l.client.DBSize(ctx).Val() <= 1 }))
	})
	latency, err := l.client.Do(ctx, "latency", "latest").Result()
	l.ok(err)
	t.Logf("latency latest: %v", latency)
}
