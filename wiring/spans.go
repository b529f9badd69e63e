package wiring

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
)

// The bounds of spans that wait to be exported: some 1.5 KB each.
const (
	// spanQueue is how many make the next ones wait; spanLimit is how many there are at
	// most: those that had been started by then, of whole batches.
	spanQueue = 8192
	spanLimit = 4 * spanQueue
	// spanPatience is how long reconciling may be held up in all by an exporter that keeps
	// up with its work, but not with ours: then, until it has caught up, spans are lost, and
	// no removal is late. One that fails is not waited for.
	spanPatience = 4 * time.Second
	// spanComplaints is the least time between two log lines about lost spans, and two about
	// exporters that fail.
	spanComplaints = time.Minute
)

// spanGate stands before the SDK's batch processor, which drops what does not fit into
// its queue: under a burst of removals it lets them wait for a collector that works, so
// that no span is lost, and drops at once while it does not, so that no removal waits for it.
// The waiting is where a span starts: its end may be in the middle of anything.
type spanGate struct {
	trace.SpanProcessor
	log *slog.Logger

	mu      sync.Mutex
	pending int
	failing bool
	// waited is the patience that is used up, until half of what waits has left; waiting
	// are there since.
	waited  time.Duration
	waiting int
	since   time.Time
	// moved is closed, and made anew, whenever pending or failing change for the better.
	moved   chan struct{}
	dropped int64
	said    time.Time
}

// newSpanGate makes the processors for an exporter. The variables OTEL_BSP_… hold, but
// for the queue's size.
func newSpanGate(exporter trace.SpanExporter, log *slog.Logger) *spanGate {
	g := &spanGate{log: log, moved: make(chan struct{})}
	g.SpanProcessor = trace.NewBatchSpanProcessor(countedExporter{exporter, g}, trace.WithMaxQueueSize(spanLimit))
	return g
}

// OnStart is trace.SpanProcessor's.
func (g *spanGate) OnStart(ctx context.Context, s trace.ReadWriteSpan) {
	g.wait()
	g.SpanProcessor.OnStart(ctx, s)
}

// OnEnd is trace.SpanProcessor's.
func (g *spanGate) OnEnd(s trace.ReadOnlySpan) {
	if s.SpanContext().IsSampled() && g.enter() {
		g.SpanProcessor.OnEnd(s)
	}
}

// wait lasts until few spans wait, for as long as there is hope, and patience is left.
func (g *spanGate) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.pending >= spanQueue && !g.failing && g.patience() > 0 {
		moved, patience := g.moved, time.NewTimer(g.patience())
		if g.waiting++; g.waiting == 1 {
			g.since = time.Now()
		}
		g.mu.Unlock()
		select {
		case <-moved:
		case <-patience.C:
		}
		patience.Stop()
		g.mu.Lock()
		if g.waiting--; g.waiting == 0 {
			g.waited += time.Since(g.since)
		}
	}
}

// patience is what is left of it; the lock is held.
func (g *spanGate) patience() time.Duration {
	left := spanPatience - g.waited
	if g.waiting > 0 {
		left -= time.Since(g.since)
	}
	return left
}

// enter counts a span, and tells whether there is room for it.
func (g *spanGate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pending < spanQueue || !g.failing && g.patience() > 0 && g.pending < spanLimit {
		g.pending++
		return true
	}
	g.dropped++
	if time.Since(g.said) > spanComplaints {
		g.said = time.Now()
		g.log.Warn("spans are lost: the exporter fails or is too slow; a sampler takes fewer (OTEL_TRACES_SAMPLER)", "lost", g.dropped)
	}
	return false
}

// exported takes spans out of the count.
func (g *spanGate) exported(n int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pending -= n
	g.failing = err != nil
	if g.pending <= spanQueue/2 {
		g.waited = 0
	}
	close(g.moved)
	g.moved = make(chan struct{})
}

// countedExporter tells the gate what has left.
type countedExporter struct {
	trace.SpanExporter
	gate *spanGate
}

// ExportSpans is trace.SpanExporter's.
func (e countedExporter) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.gate.exported(len(spans), err)
	return err
}
