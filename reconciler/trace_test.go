package reconciler

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// traced is a telemetry of which the ended spans can be read.
func traced() (*telemetry, *tracetest.SpanRecorder) {
	spans := tracetest.NewSpanRecorder()
	provider := trace.NewTracerProvider(trace.WithSpanProcessor(spans))
	return &telemetry{
		tracer: provider.Tracer("test"), tracing: true, steps: newSteps(Stores{}), now: time.Now,
		bindings: []Binding{{Schema: "public", Table: "scan_tasks"}},
	}, spans
}

func roots(spans *tracetest.SpanRecorder) (all []trace.ReadOnlySpan) {
	for _, s := range spans.Ended() {
		if !s.Parent().IsValid() {
			all = append(all, s)
		}
	}
	return all
}

func attr(s trace.ReadOnlySpan, key attribute.Key) string {
	for _, kv := range s.Attributes() {
		if kv.Key == key {
			return kv.Value.String()
		}
	}
	return ""
}

// The subjects of a deleted row are reconciled by two workers at once: in one trace, which
// ends with the last, and tells the first removal and the gravest outcome.
func TestATrailOfSeveralWorkers(t *testing.T) {
	t.Parallel()
	const rows = 200
	tel, spans := traced()
	parent := "00-33333333333333333333333333333333-%016x-01"
	var all [2][]*Work
	for i := range rows {
		d := Deletion{Commit: &Commit{XID: 7}, Key: fmt.Sprint(i), Trail: NewTrail(2)}
		task := TaskSubject(fmt.Sprintf("task-%d", i))
		all[0] = append(all[0], &Work{Subject: task, Trigger: ByDelete, Deletions: []Deletion{d}})
		all[1] = append(all[1], &Work{Subject: task.Messages(), Trigger: ByDelete, Deletions: []Deletion{d}})
	}
	verdicts := [2]Verdict{
		{Decision: Decision{Outcome: OutcomeRemoved, Evidence: Deleted}, Removed: map[ArtifactKind]int{ResultKey: 1}},
		{Decision: Decision{Outcome: OutcomeNoop}},
	}
	var wg sync.WaitGroup
	for worker := range all {
		wg.Go(func() {
			for i, w := range all[worker] {
				s := tel.start(t.Context(), []*Work{w}, time.Now())
				s[0].linkParent(fmt.Sprintf(parent, i+1), linkMessage)
				tel.step(s, tel.steps.rows, time.Now(), nil)
				tel.finish(w, verdicts[worker], s[0], float64(1+worker), time.Now())
			}
		})
	}
	wg.Wait()
	require.Len(t, roots(spans), rows)
	for _, s := range roots(spans) {
		require.Equal(t, "removed", attr(s, keyOutcome))
		require.Equal(t, "1", attr(s, keyRemoved+"results"))
		require.Equal(t, "1", attr(s, keyLag), "to the removal, not to the last look")
		require.Len(t, s.Links(), 2)
	}
	require.Len(t, spans.Ended(), 3*rows)
}

func TestATrailEnds(t *testing.T) {
	t.Parallel()
	work := func(tr *Trail) *Work {
		return &Work{Subject: TaskSubject("a"), Trigger: ByDelete, Deletions: []Deletion{{Commit: &Commit{}, Trail: tr}}}
	}
	attempt := func(tel *telemetry, w *Work, v Verdict) {
		s := tel.start(t.Context(), []*Work{w}, time.Now())
		tel.finish(w, v, s[0], 0, time.Now())
		w.Attempts++
	}
	deferred := Verdict{Decision: Decision{Outcome: OutcomeDeferred, HeldBy: HeldByCommit}}
	failing := Verdict{Decision: Decision{Outcome: OutcomeError}, Err: errors.New("away")}
	removed := Verdict{Decision: Decision{Outcome: OutcomeRemoved}, Removed: map[ArtifactKind]int{ResultKey: 1}}
	for name, c := range map[string]struct {
		do   func(tel *telemetry, tr *Trail, w *Work)
		want []string
	}{
		"when a newer deletion stands for the other subject": {func(tel *telemetry, tr *Trail, w *Work) {
			attempt(tel, w, removed)
			tr.Leave()
		}, []string{"removed"}},
		"with what waited for its commit": {func(tel *telemetry, tr *Trail, w *Work) {
			tr.Leave()
			attempt(tel, w, deferred)
			attempt(tel, w, deferred)
			attempt(tel, w, removed)
		}, []string{"removed"}},
		"before what comes back": {func(tel *telemetry, tr *Trail, w *Work) {
			tr.Leave()
			attempt(tel, w, failing)
			attempt(tel, w, removed)
		}, []string{"error", "removed"}},
		"without a trace, where none began": {func(_ *telemetry, tr *Trail, _ *Work) {
			tr.Leave()
			tr.Leave()
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tel, spans := traced()
			tr := NewTrail(2)
			c.do(tel, tr, work(tr))
			var got []string
			for _, s := range roots(spans) {
				got = append(got, attr(s, keyOutcome))
			}
			require.Equal(t, c.want, got)
			if len(got) == 2 {
				first, second := roots(spans)[0], roots(spans)[1]
				require.Len(t, second.Links(), 1)
				require.Equal(t, first.SpanContext().SpanID(), second.Links()[0].SpanContext.SpanID())
			}
		})
	}
	(*Trail)(nil).Leave()
}
