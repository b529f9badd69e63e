package wiring

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace"
)

// slowExporter takes so long for a batch, and fails with err.
type slowExporter struct {
	takes time.Duration
	err   error

	mu   sync.Mutex
	took int
}

func (e *slowExporter) ExportSpans(_ context.Context, spans []trace.ReadOnlySpan) error {
	time.Sleep(e.takes)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		e.took += len(spans)
	}
	return e.err
}

func (e *slowExporter) Shutdown(context.Context) error { return nil }

// A burst of spans is many times what may wait. Whatever the exporter does, the end of a
// span takes no time.
func TestSpanGate(t *testing.T) {
	const burst = 6 * spanQueue
	for name, c := range map[string]struct {
		exporter *slowExporter
		atMost   time.Duration // for the whole burst
		lost     bool
	}{
		"an exporter that works": {&slowExporter{takes: 10 * time.Millisecond}, burst / 512 * 10 * time.Millisecond, false},
		"one that is slow":       {&slowExporter{takes: 500 * time.Millisecond}, spanPatience, true},
		"one that fails":         {&slowExporter{takes: 10 * time.Millisecond, err: errors.New("refused")}, spanPatience, true},
		"one that hangs":         {&slowExporter{takes: time.Hour}, spanPatience, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := newSpanGate(c.exporter, slog.New(slog.DiscardHandler))
				provider := trace.NewTracerProvider(trace.WithSpanProcessor(gate))
				tracer := provider.Tracer("test")
				began := time.Now()
				for range burst {
					_, span := tracer.Start(t.Context(), "span")
					at := time.Now()
					span.End()
					require.Zero(t, time.Since(at), "the end of a span has waited")
				}
				require.LessOrEqual(t, time.Since(began), c.atMost)
				_ = provider.Shutdown(t.Context()) // the one that fails
				c.exporter.mu.Lock()
				defer c.exporter.mu.Unlock()
				require.Equal(t, c.lost, gate.dropped > 0)
				if !c.lost {
					require.Equal(t, burst, c.exporter.took)
				}
			})
		})
	}
}

// A collector that is away is told in the log, as the other lines are, and not with each batch.
func TestExportErrorsAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		errs := exportErrors{log: slog.New(slog.NewJSONHandler(&out, nil))}
		for range 3 {
			errs.Handle(errors.New("refused"))
		}
		require.Equal(t, 1, strings.Count(out.String(), `"error":"refused"`), out.String())
		time.Sleep(spanComplaints + time.Second)
		errs.Handle(errors.New("refused"))
		require.Equal(t, 2, strings.Count(out.String(), `"error":"refused"`), out.String())
	})
}
