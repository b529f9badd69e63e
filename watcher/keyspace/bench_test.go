package keyspace

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// BenchmarkBacklog: events per second of a backlog that waits in the server, from
// there to the sink, beside what go-redis gives a loop that does nothing else. keys is
// how many different ones were written.
func BenchmarkBacklog(b *testing.B) {
	for _, bench := range []struct {
		name string
		keys int
	}{{"few keys", 100}, {"many keys", 50_000}} {
		b.Run(bench.name+"/source", func(b *testing.B) { drainSource(b, bench.keys) })
		b.Run(bench.name+"/bare", func(b *testing.B) { drainBare(b, bench.keys) })
	}
}

const lastID = "the last one"

// backlog leaves b.N events and a last one in the server, which does not disconnect
// whoever is behind, and starts the clock.
func backlog(b *testing.B, f *fixture, keys int) {
	b.Helper()
	f.do("CONFIG", "SET", flagsName, "K$", "client-output-buffer-limit", "pubsub 0 0 0")
	f.write(b.N, keys)
	f.do("SET", meta+lastID, "v")
	b.ResetTimer()
}

// counter is a sink with room for everything.
type counter struct {
	sink
	offered int
	last    chan struct{}
}

func (c *counter) Offer(e watcher.Event) bool {
	c.offered++
	if e.Subject.ID == lastID {
		close(c.last)
	}
	return true
}

func drainSource(b *testing.B, keys int) {
	f := &fixture{t: b, client: dial(b, sandbox.NewRedis(b).URL())}
	source := New(Options{Client: f.client, Keys: newKeys()})
	sink := &counter{last: make(chan struct{})}
	ctx, cancel := context.WithCancel(b.Context())
	var drain sync.WaitGroup
	defer drain.Wait()
	defer cancel()
	drain.Go(func() { source.drain(ctx, sink) })

	gate := make(chan struct{})
	exact, globs, read := source.opts.channels(ModeKeyspace, source.canaryKey)
	sub := &subscription{mode: ModeKeyspace, canary: source.canaryKey, parse: read}
	sub.hint = func(key string, seen time.Time) {
		<-gate
		source.hint(sink, key, seen)
	}
	sub.start(ctx, f.client, exact, globs)
	defer sub.close()
	<-sub.confirmed
	backlog(b, f, keys)
	began := time.Now()
	close(gate)
	select {
	case <-sink.last:
	case <-sub.ctx.Done(): // the gate was closed for longer than the guard allows
		b.Fatal(sub.cause())
	}
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "events/s")
	b.ReportMetric(float64(sink.offered)/float64(b.N), "offers/event")
	if len(sink.gaps) != 0 {
		b.Fatalf("gaps %v", sink.gaps)
	}
}

func drainBare(b *testing.B, keys int) {
	f := &fixture{t: b, client: dial(b, sandbox.NewRedis(b).URL())}
	pubsub := f.client.PSubscribe(b.Context(), channelPrefix(0)+meta+"*")
	defer pubsub.Close()
	if _, err := pubsub.Receive(b.Context()); err != nil {
		b.Fatal(err)
	}
	backlog(b, f, keys)
	began := time.Now()
	for range b.N {
		if _, err := pubsub.ReceiveMessage(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "events/s")
}
