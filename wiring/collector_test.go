package wiring_test

import (
	"encoding/hex"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collectormetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// span is one that the collector has received.
type span struct {
	name             string
	kind             trace.Span_SpanKind
	trace, id        string
	parent           string // "" for a root
	started, ended   time.Time
	attrs            map[string]any
	links            []spanLink
	failed           bool
	resource         map[string]any
	droppedSomething bool
}

type spanLink struct{ what, trace, span string }

// instrument is a metric that the collector has received.
type instrument struct {
	unit, kind, description string
	attrs                   map[string]bool
}

// collector takes OTLP over HTTP, as OpenTelemetry's own does.
type collector struct {
	url string

	mu          sync.Mutex
	all         []span
	instruments map[string]*instrument
	broken      bool
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{instruments: map[string]*instrument{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// env lets a daemon send everything there.
func (c *collector) env(more ...string) []string {
	return append([]string{
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_METRICS_EXPORTER=otlp", "OTEL_METRIC_EXPORT_INTERVAL=1000", "OTEL_BSP_SCHEDULE_DELAY=200",
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url,
	}, more...)
}

// ServeHTTP is the collector's.
func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || c.broken {
		w.WriteHeader(http.StatusBadRequest) // not one that is tried again
		return
	}
	switch r.URL.Path {
	case "/v1/traces":
		var in collectortrace.ExportTraceServiceRequest
		err = proto.Unmarshal(body, &in)
		c.takeSpans(&in)
	case "/v1/metrics":
		var in collectormetrics.ExportMetricsServiceRequest
		err = proto.Unmarshal(body, &in)
		c.takeMetrics(&in)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
	}
}

func (c *collector) takeSpans(in *collectortrace.ExportTraceServiceRequest) {
	for _, of := range in.ResourceSpans {
		resource := values(of.Resource.GetAttributes())
		for _, scope := range of.ScopeSpans {
			for _, s := range scope.Spans {
				out := span{
					name: s.Name, kind: s.Kind, trace: hex.EncodeToString(s.TraceId), id: hex.EncodeToString(s.SpanId),
					parent: hex.EncodeToString(s.ParentSpanId), attrs: values(s.Attributes), resource: resource,
					started: time.Unix(0, int64(s.StartTimeUnixNano)), ended: time.Unix(0, int64(s.EndTimeUnixNano)),
					failed:           s.Status.GetCode() == trace.Status_STATUS_CODE_ERROR,
					droppedSomething: s.DroppedAttributesCount+s.DroppedLinksCount+s.DroppedEventsCount > 0,
				}
				for _, l := range s.Links {
					what, _ := values(l.Attributes)["orphanwatch.link"].(string)
					out.links = append(out.links, spanLink{what, hex.EncodeToString(l.TraceId), hex.EncodeToString(l.SpanId)})
				}
				c.all = append(c.all, out)
			}
		}
	}
}

func (c *collector) takeMetrics(in *collectormetrics.ExportMetricsServiceRequest) {
	for _, of := range in.ResourceMetrics {
		for _, scope := range of.ScopeMetrics {
			for _, m := range scope.Metrics {
				kind, attrs := points(m)
				seen, ok := c.instruments[m.Name]
				if !ok {
					seen = &instrument{m.Unit, kind, m.Description, map[string]bool{}}
					c.instruments[m.Name] = seen
				}
				for _, list := range attrs {
					for _, kv := range list {
						seen.attrs[kv.Key] = true
					}
				}
			}
		}
	}
}

func points(m *metrics.Metric) (kind string, attrs [][]*common.KeyValue) {
	switch d := m.Data.(type) {
	case *metrics.Metric_Sum:
		for _, p := range d.Sum.DataPoints {
			attrs = append(attrs, p.Attributes)
		}
		return "counter", attrs
	case *metrics.Metric_Gauge:
		for _, p := range d.Gauge.DataPoints {
			attrs = append(attrs, p.Attributes)
		}
		return "gauge", attrs
	case *metrics.Metric_Histogram:
		for _, p := range d.Histogram.DataPoints {
			attrs = append(attrs, p.Attributes)
		}
		return "histogram", attrs
	}
	return "?", nil
}

func values(list []*common.KeyValue) map[string]any {
	out := make(map[string]any, len(list))
	for _, kv := range list {
		switch v := kv.Value.GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[kv.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			out[kv.Key] = v.IntValue
		case *common.AnyValue_DoubleValue:
			out[kv.Key] = v.DoubleValue
		case *common.AnyValue_BoolValue:
			out[kv.Key] = v.BoolValue
		default:
			out[kv.Key] = kv.Value.String()
		}
	}
	return out
}

// spans are those received so far, in the order of their start, for which all of the
// conditions hold.
func (c *collector) spans(conditions ...func(span) bool) []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []span
	for _, s := range c.all {
		if !slices.ContainsFunc(conditions, func(holds func(span) bool) bool { return !holds(s) }) {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b span) int { return a.started.Compare(b.started) })
	return out
}

// metrics are the instruments seen so far.
func (c *collector) metrics() map[string]*instrument {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.instruments)
}

func isRoot(s span) bool { return s.parent == "" }

func named(prefix string) func(span) bool {
	return func(s span) bool { return strings.HasPrefix(s.name, prefix) }
}

func with(attr string, value any) func(span) bool {
	return func(s span) bool { return s.attrs[attr] == value }
}

func childOf(parent span) func(span) bool {
	return func(s span) bool { return s.trace == parent.trace && s.parent == parent.id }
}

// linked are the links of that kind.
func (s span) linked(what string) (out []spanLink) {
	for _, l := range s.links {
		if l.what == what {
			out = append(out, l)
		}
	}
	return out
}
