package wiring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	apitrace "go.opentelemetry.io/otel/trace"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// Telemetry is the OpenTelemetry SDK: metrics always for /metrics, traces and
// metrics to wherever the OTEL_* variables say. A bare start exports nothing. A
// command has traces alone.
type Telemetry struct {
	registry *prometheus.Registry
	metrics  *metric.MeterProvider
	traces   *trace.TracerProvider
}

// NewTelemetry installs the global providers; whatever makes instruments must be
// made after it.
func NewTelemetry(ctx context.Context, instance Instance, version Version, log *slog.Logger) (*Telemetry, error) {
	t, res, err := newTraces(ctx, instance, version, log)
	if err != nil {
		return nil, err
	}
	t.registry = prometheus.NewRegistry()
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	prom, err := promexporter.New(promexporter.WithRegisterer(t.registry), promexporter.WithoutScopeInfo())
	if err != nil {
		return nil, fmt.Errorf("metrics for /metrics: %w", err)
	}
	reader, err := autoexport.NewMetricReader(ctx, autoexport.WithFallbackMetricReader(func(context.Context) (metric.Reader, error) {
		return metric.NewManualReader(), nil
	}))
	if err != nil {
		return nil, fmt.Errorf("OTEL_METRICS_EXPORTER: %w", err)
	}
	t.metrics = metric.NewMeterProvider(metric.WithResource(res), metric.WithReader(prom), metric.WithReader(reader))
	otel.SetMeterProvider(t.metrics)
	return t, nil
}

// newTraces installs the global provider of traces.
func newTraces(ctx context.Context, instance Instance, version Version, log *slog.Logger) (*Telemetry, *resource.Resource, error) {
	res, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName("orphanwatch"), semconv.ServiceVersion(string(version)), semconv.ServiceInstanceID(string(instance))),
		resource.WithFromEnv())
	if err != nil {
		return nil, nil, fmt.Errorf("telemetry resource: %w", err)
	}
	otel.SetErrorHandler(&exportErrors{log: log})
	t := &Telemetry{}
	exporter, err := autoexport.NewSpanExporter(ctx, autoexport.WithFallbackSpanExporter(func(context.Context) (trace.SpanExporter, error) {
		return noSpans{}, nil
	}))
	if err != nil {
		return nil, nil, fmt.Errorf("OTEL_TRACES_EXPORTER: %w", err)
	}
	otel.SetTextMapPropagator(propagation.TraceContext{})
	if _, none := exporter.(noSpans); none || autoexport.IsNoneSpanExporter(exporter) {
		return t, res, nil
	}
	t.traces = trace.NewTracerProvider(trace.WithResource(res), trace.WithSpanProcessor(newSpanGate(exporter, log)))
	otel.SetTracerProvider(t.traces)
	return t, res, nil
}

// storeAttributes are what spans tell of the stores.
func storeAttributes(c *Config) (reconciler.Stores, error) {
	db, err := pgx.ParseConfig(c.Postgres.URL.Reveal())
	if err != nil {
		return reconciler.Stores{}, fmt.Errorf("postgres URL: %w", err)
	}
	results, err := redis.ParseURL(c.Redis.Results().Reveal())
	if err != nil {
		return reconciler.Stores{}, fmt.Errorf("redis URL: %w", err)
	}
	broker, err := redis.ParseURL(c.Redis.Broker().Reveal())
	if err != nil {
		return reconciler.Stores{}, fmt.Errorf("redis URL: %w", err)
	}
	ofRedis := func(o *redis.Options) []attribute.KeyValue {
		namespace := semconv.DBNamespace(strconv.Itoa(o.DB))
		host, port, err := net.SplitHostPort(o.Addr)
		n, notPort := strconv.Atoi(port)
		if err != nil || notPort != nil { // a socket
			return []attribute.KeyValue{semconv.ServerAddress(o.Addr), namespace}
		}
		return []attribute.KeyValue{semconv.ServerAddress(host), semconv.ServerPort(n), namespace}
	}
	return reconciler.Stores{
		Rows:    []attribute.KeyValue{semconv.ServerAddress(db.Host), semconv.ServerPort(int(db.Port)), semconv.DBNamespace(db.Database)},
		Results: ofRedis(results), Broker: ofRedis(broker),
	}, nil
}

// exportErrors logs what keeps the exporters from their work, now and then: a collector that
// is away says so with each batch. OpenTelemetry's own handler writes lines of another form
// to stderr.
type exportErrors struct {
	log  *slog.Logger
	mu   sync.Mutex
	said time.Time
}

// Handle is otel.ErrorHandler's.
func (e *exportErrors) Handle(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.said) > spanComplaints {
		e.said = time.Now()
		e.log.Warn("telemetry cannot be exported: see the OTEL_* variables, and the collector", "error", err)
	}
}

// noSpans is where nothing is configured.
type noSpans struct{}

func (noSpans) ExportSpans(context.Context, []trace.ReadOnlySpan) error { return nil }
func (noSpans) Shutdown(context.Context) error                          { return nil }

// Handler serves the metrics, OpenMetrics with exemplars where it is asked for.
func (t *Telemetry) Handler() http.Handler {
	histograms := append(reconciler.Histograms(), watcher.Histograms()...)
	return promhttp.HandlerFor(fromZero{t.registry, histograms}, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Shutdown exports what is left.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var err error
	if t.traces != nil {
		err = t.traces.Shutdown(ctx)
	}
	if t.metrics != nil {
		err = errors.Join(err, t.metrics.Shutdown(ctx))
	}
	return err
}

// traced adds the ids of the trace to the lines that are logged within one.
type traced struct{ slog.Handler }

// Handle is slog.Handler's.
func (h traced) Handle(ctx context.Context, r slog.Record) error {
	if s := apitrace.SpanContextFromContext(ctx); s.IsValid() {
		r.AddAttrs(slog.String("trace_id", s.TraceID().String()), slog.String("span_id", s.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs is slog.Handler's.
func (h traced) WithAttrs(attrs []slog.Attr) slog.Handler { return traced{h.Handler.WithAttrs(attrs)} }

// WithGroup is slog.Handler's.
func (h traced) WithGroup(name string) slog.Handler { return traced{h.Handler.WithGroup(name)} }
