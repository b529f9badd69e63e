package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"go.opentelemetry.io/otel"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// A command's reconciliations are traced as the daemon's are, and sent before it ends; a
// collector that is away costs it no more than a moment.
func TestACommandIsTraced(t *testing.T) {
	var mu sync.Mutex
	triggers := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var request collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &request); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, resource := range request.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				for _, span := range scope.Spans {
					for _, a := range span.Attributes {
						if a.Key == "orphanwatch.trigger" {
							triggers[span.Name+" "+a.Value.GetStringValue()]++
						}
					}
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	before := otel.GetTracerProvider()
	t.Cleanup(func() { otel.SetTracerProvider(before) })
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)

	s := newTasks(t)
	s.expect(exitOK, []string{"cleanup-orphaned", "--yes"}, "1 orphaned removed")
	mu.Lock()
	if triggers["reconcile public.scan_tasks cli"] == 0 {
		t.Errorf("%v", triggers)
	}
	mu.Unlock()

	server.Close()
	s.set(result+doomed, `{"status": "SUCCESS"}`)
	s.expect(exitOK, []string{"cleanup-orphaned", "--yes"}, "1 orphaned removed")
}
