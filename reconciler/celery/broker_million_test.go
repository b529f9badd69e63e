package celery_test

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
)

var million = flag.Bool("million", false, "let TestMillion measure")

// TestMillion pulls 10,000 victims out of a queue of 1,000,000 messages of 931
// bytes, while a consumer pops and a producer pushes:
//
//	go test ./reconciler/celery -run TestMillion -million -v
func TestMillion(t *testing.T) {
	if !*million {
		return
	}
	const total, every, size = 1_000_000, 100, 931
	l := newBrokerLab(t)
	ctx := t.Context()
	began := time.Now()
	message := func(kind string, n int) string {
		e := envelopeOf(fmt.Sprintf("%s-%d", kind, n))
		return strings.Replace(e, `"argsrepr": "()"`, `"argsrepr": "(`+strings.Repeat("x", size-len(e))+`)"`, 1)
	}
	for at := 0; at < total; at += 500 {
		batch := make([]any, 500)
		for i := range batch {
			kind := "living"
			if (at+i)%every == every/2 {
				kind = "victim"
			}
			batch[i] = message(kind, at+i)
		}
		l.ok(l.client.LPush(ctx, "celery", batch...).Err())
	}
	t.Logf("%d messages of %d bytes pushed within %v", total, size, time.Since(began).Round(time.Millisecond))
	l.ok(l.redis.Reconfigure(ctx, map[string]string{"slowlog-log-slower-than": "1000", "slowlog-max-len": "100000"}))
	l.run("slowlog reset", "config resetstat")

	traffic := newTraffic(l, message)
	var heap atomic.Uint64
	sample := func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		heap.Store(max(heap.Load(), m.HeapInuse))
	}
	began = time.Now()
	removed, swept := 0, 0
	for round := 0; ; round++ {
		began := time.Now()
		victims := map[string]reconciler.Message{}
		l.ok(l.Sweep(ctx, func(messages []reconciler.Message) error {
			if swept += len(messages); swept%100_000 < 500 {
				sample()
			}
			for _, m := range messages {
				if strings.HasPrefix(m.ID, "victim") {
					// As a queue that outlives the window would hold it.
					m.Place.Envelope = strings.Clone(m.Place.Envelope)
					victims[m.ID] = m
				}
			}
			return nil
		}))
		sweep := time.Since(began)
		if len(victims) == 0 {
			break
		}
		began = time.Now()
		all := make([]reconciler.Message, 0, len(victims))
		for _, m := range victims {
			all = append(all, m)
		}
		slices.SortFunc(all, func(x, y reconciler.Message) int { return int(x.Place.Index - y.Place.Index) })
		statuses := map[reconciler.RemoveStatus]int{}
		for batch := range slices.Chunk(all, 1000) {
			for _, s := range l.pull(batch...) {
				statuses[s]++
			}
			sample()
		}
		removed += statuses[reconciler.Removed]
		t.Logf("round %d: swept %d messages within %v; %v within %v", round, swept, sweep.Round(time.Millisecond), statuses, time.Since(began).Round(time.Millisecond))
	}
	wall := time.Since(began)
	stones := l.Tombstones()
	traffic.stop()

	t.Logf("wall %v, removed %d, %d tombstones, heap in use %d MiB at most", wall.Round(time.Millisecond), removed, stones, heap.Load()>>20)
	t.Logf("pops: %s", spread(traffic.delays))
	t.Logf("pops of an idle server: %s", spread(traffic.floor))
	logSlow(l, "sweeps and pulls")

	l.run("slowlog reset")
	for l.Tombstones() > 0 {
		// As if consumers had caught up with a part of the queue.
		l.ok(l.client.LTrim(ctx, "celery", 0, max(0, l.client.LLen(ctx, "celery").Val()-3500)-1).Err())
		l.ok(l.PurgeTombstones(ctx))
	}
	logSlow(l, "purge, beside LTRIM")
	if popped := traffic.victims.Load(); int(popped)+removed != total/every {
		t.Errorf("removed %d, and %d were popped before, of %d", removed, popped, total/every)
	}
}

func logSlow(l *brokerLab, what string) {
	entries, err := l.client.SlowLogGet(l.Context(), 100_000).Result()
	l.ok(err)
	entries = slices.DeleteFunc(entries, func(e redis.SlowLog) bool { return e.Args[0] == "ltrim" })
	slices.SortFunc(entries, func(x, y redis.SlowLog) int { return int(y.Duration - x.Duration) })
	over := map[string]int{}
	for _, e := range entries {
		over[fmt.Sprintf("%s > %d ms", e.Args[0], e.Duration.Milliseconds())]++
	}
	l.Logf("%s: %d calls over 1 ms: %v", what, len(entries), over)
	stats, err := l.client.Info(l.Context(), "commandstats").Result()
	l.ok(err)
	for line := range strings.Lines(stats) {
		if strings.Contains(line, "evalsha:") || strings.Contains(line, "lrange:") {
			l.Log("  ", strings.TrimSpace(line))
		}
	}
	for _, e := range entries[:min(5, len(entries))] {
		l.Logf("  %v %.60v", e.Duration, e.Args)
	}
}

// traffic pops about 1000 messages a second, and pushes about 500. Beside it, the
// same goes to a server that nobody else uses: what it is delayed by is the machine.
type traffic struct {
	delays, floor []time.Duration
	victims       atomic.Int64
	cancel        context.CancelFunc
	wg            sync.WaitGroup
}

func newTraffic(l *brokerLab, message func(string, int) string) *traffic {
	ctx, cancel := context.WithCancel(l.Context())
	t := &traffic{cancel: cancel}
	idle := sandbox.NewRedis(l.TB)
	drive := func(r *sandbox.Redis, delays *[]time.Duration) {
		client := r.Client(0)
		defer client.Close()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			if r == idle || n%2 == 0 {
				client.LPush(ctx, "celery", message("pushed", n))
			}
			began := time.Now()
			reply, err := client.BRPop(context.WithoutCancel(ctx), time.Second, "celery").Result()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				l.Error(err)
				return
			}
			*delays = append(*delays, time.Since(began))
			if strings.Contains(reply[1], `"id": "victim`) {
				t.victims.Add(1)
			}
			<-tick.C
		}
	}
	t.wg.Go(func() { drive(l.redis, &t.delays) })
	t.wg.Go(func() { drive(idle, &t.floor) })
	return t
}

func (t *traffic) stop() {
	t.cancel()
	t.wg.Wait()
	slices.Sort(t.delays)
	slices.Sort(t.floor)
}

func spread(d []time.Duration) string {
	return fmt.Sprintf("p50 %v, p99 %v, max %v of %d", d[len(d)/2], d[len(d)*99/100], d[len(d)-1], len(d))
}
