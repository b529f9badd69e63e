package wiring_test

import (
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

const (
	txParent      = "00-11111111111111111111111111111111-2222222222222222-01"
	messageParent = "00-33333333333333333333333333333333-4444444444444444-01"
)

var anID = regexp.MustCompile(`[0-9a-f]{8}`)

// A delete is one trace, whatever is removed for it: the span that has the outcome, what
// was done below it, and links to the transaction and to where the message was sent.
func TestTracesTellOfEachReconciliation(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := newCollector(t)
	a := newApplication(t, variant{match: byID})
	rows := a.rows(8)
	a.results(rows...)

	// One task is queued, behind a worker that was killed with another in its hands; the
	// first pass has seen them, so that nothing but the delete leads to them.
	one, busy := rows[0], a.rows(1)[0]
	worker := a.work(1, nil)
	a.send(never, a.scan(busy, nil, map[string]any{"countdown": 3600}))
	a.awaitPlaces(0, 1)
	require.NoError(t, worker.Kill(ctx))
	a.send(never, a.scan(one, nil, map[string]any{"headers": map[string]any{"traceparent": messageParent}}))
	a.awaitPlaces(1, 1)
	d := a.run(c.env()...)
	a.firstPass()
	before := time.Now()
	tx, done := a.begin()
	var xid int64
	require.NoError(t, tx.QueryRow(ctx, "SELECT pg_current_xact_id()::text::bigint").Scan(&xid))
	_, err := tx.Exec(ctx, "SELECT pg_logical_emit_message(true, 'traceparent', $1)", txParent)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, "DELETE FROM scan_tasks WHERE id = $1", one)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(ctx))
	done()
	a.gone(recovery, one)
	a.sql("DELETE FROM scan_tasks WHERE id = $1", busy)
	a.awaitPlaces(0, 0)

	// No row, and no delete seen: looked at, and again after the grace.
	orphan := uuid.NewString()
	a.results(orphan)
	a.gone(recovery, orphan)

	// Found by a pass: what no event told of, since no daemon was there.
	d.stop()
	late := uuid.NewString()
	a.results(late)
	d = a.run(c.env()...)
	a.gone(recovery, late)

	// Redis refuses for a while.
	a.allow("-evalsha")
	a.sql("DELETE FROM scan_tasks WHERE id = $1", rows[2])
	sandbox.AwaitTB(t, recovery, "an attempt to fail", sandbox.Until(func() bool {
		return len(c.spans(isRoot, with("messaging.message.id", rows[2]), with("orphanwatch.outcome", "error"))) > 0
	}))
	a.allow("+evalsha")
	require.NoError(t, a.redis.Do(ctx, "ACL", "LOG", "RESET").Err()) // it was meant to be refused
	a.gone(recovery, rows[2])
	exemplars := d.openMetrics()
	d.stop() // which sends what is left

	t.Run("a delete", func(t *testing.T) {
		roots := c.spans(isRoot, with("messaging.message.id", one))
		require.Len(t, roots, 1, "%v", roots)
		root := roots[0]
		assert.Equal(t, "reconcile public.scan_tasks", root.name)
		assert.Equal(t, trace.Span_SPAN_KIND_CONSUMER, root.kind)
		for key, want := range map[string]any{
			"orphanwatch.trigger": "pg_delete", "orphanwatch.outcome": "removed", "orphanwatch.evidence": "deleted", "orphanwatch.pg.xid": xid,
			"orphanwatch.removed.results": int64(1), "orphanwatch.removed.messages": int64(1), "celery.task.name": sandbox.ScanTask,
			"messaging.system": "celery", "messaging.operation.type": "process",
		} {
			assert.Equal(t, want, root.attrs[key], key)
		}
		assert.Regexp(t, `^[0-9A-F]+/[0-9A-F]+$`, root.attrs["orphanwatch.pg.lsn"])
		lag, _ := root.attrs["orphanwatch.lag"].(float64)
		assert.Greater(t, lag, 0.0)
		assert.Less(t, lag, root.ended.Sub(before).Seconds())
		assert.Equal(t, []spanLink{{"deleting transaction", strings.Repeat("1", 32), strings.Repeat("2", 16)}}, root.linked("deleting transaction"))
		assert.Equal(t, []spanLink{{"message", strings.Repeat("3", 32), strings.Repeat("4", 16)}}, root.linked("message"))
		assert.Equal(t, "orphanwatch", root.resource["service.name"])
		var names []string
		for _, child := range c.spans(childOf(root)) {
			names = append(names, child.name)
			assert.False(t, child.started.Before(root.started) || child.ended.After(root.ended), "%s is not within its root", child.name)
		}
		for _, want := range []string{"read artifacts", "sweep messages", "read rows", "decide", "remove", "write records", "pull messages"} {
			assert.Contains(t, names, want)
		}
		rowsSpan := c.spans(childOf(root), named("read rows"))[0]
		assert.Equal(t, "postgresql", rowsSpan.attrs["db.system.name"])
		assert.Equal(t, "SELECT", rowsSpan.attrs["db.operation.name"])
		assert.NotEmpty(t, rowsSpan.attrs["db.namespace"])
		assert.NotEmpty(t, rowsSpan.attrs["server.address"])
	})
	t.Run("a revoke", func(t *testing.T) {
		roots := c.spans(isRoot, with("messaging.message.id", busy))
		require.Len(t, roots, 1, "%v", roots)
		assert.Equal(t, int64(1), roots[0].attrs["orphanwatch.removed.unacked"])
		revokes := c.spans(childOf(roots[0]), named("revoke"))
		require.Len(t, revokes, 1)
		assert.Equal(t, trace.Span_SPAN_KIND_PRODUCER, revokes[0].kind)
	})
	t.Run("attempts", func(t *testing.T) {
		for id, want := range map[string][]string{orphan: {"deferred", "removed"}, rows[2]: {"error", "removed"}} {
			attempts := c.spans(isRoot, with("messaging.message.id", id))
			require.Greater(t, len(attempts), 1)
			byTrace := map[string]span{}
			for _, s := range attempts {
				byTrace[s.trace] = s
			}
			assert.Equal(t, want[0], attempts[0].attrs["orphanwatch.outcome"])
			assert.Empty(t, attempts[0].linked("previous attempt"))
			for _, s := range attempts[1:] {
				links := s.linked("previous attempt")
				require.Len(t, links, 1, "%v", s)
				before, known := byTrace[links[0].trace]
				require.True(t, known)
				assert.Equal(t, before.id, links[0].span)
				assert.False(t, before.started.After(s.started))
			}
			assert.True(t, slices.ContainsFunc(attempts, func(s span) bool { return s.attrs["orphanwatch.outcome"] == want[1] }), "%v", attempts)
		}
		failed := c.spans(with("messaging.message.id", rows[2]), with("orphanwatch.outcome", "error"))
		assert.True(t, failed[0].failed)
		assert.NotEmpty(t, failed[0].attrs["error.type"])
	})
	t.Run("a resync", func(t *testing.T) {
		found := c.spans(isRoot, with("messaging.message.id", late), with("orphanwatch.trigger", "resync"))
		require.NotEmpty(t, found)
		links := found[0].linked("resync")
		require.Len(t, links, 1)
		passes := c.spans(isRoot, named("resync"), func(s span) bool { return s.trace == links[0].trace })
		require.Len(t, passes, 1)
		assert.Equal(t, int64(1), passes[0].attrs["orphanwatch.pass.orphans"])
		var stages []string
		for _, s := range c.spans(childOf(passes[0])) {
			stages = append(stages, s.name)
		}
		assert.Equal(t, []string{"scanning", "reading messages", "waiting for replication", "judging", "submitting"}, stages)
	})
	require.Regexp(t, `orphanwatch_lag_seconds_bucket\{.*outcome="removed".* # \{.*trace_id="[0-9a-f]{32}"`, exemplars)
	for _, s := range c.spans() {
		assert.NotRegexp(t, anID, s.name, "a name of a span holds an id")
		assert.False(t, s.droppedSomething, "%v has lost some of what it says", s)
	}
	judgeTelemetryTable(t, c)
}

// openMetrics is what a scraper of today gets.
func (d *daemon) openMetrics() string {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, "http://"+d.addr+"/metrics", http.NoBody)
	require.NoError(d.t, err)
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	res, err := http.DefaultClient.Do(req)
	require.NoError(d.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(d.t, err)
	http.DefaultClient.CloseIdleConnections()
	return string(body)
}

// With every reconciliation sampled, a burst of deletes loses no span.
func TestNoSpanIsLost(t *testing.T) {
	t.Parallel()
	const n = 10_000
	c := newCollector(t)
	w := newWorld(t, sandbox.Options{})
	rows := w.rows(n)
	w.results(rows...)
	d := w.run(c.env("OTEL_TRACES_SAMPLER=always_on")...)
	w.firstPass()
	w.sql("DELETE FROM scan_tasks")
	w.gone(time.Minute, rows...)
	peak := d.proc("VmHWM") / 1024
	d.stop()

	removed := map[any]int{}
	for _, s := range c.spans(isRoot, with("orphanwatch.trigger", "pg_delete"), with("orphanwatch.outcome", "removed")) {
		removed[s.attrs["messaging.message.id"]]++
	}
	for _, id := range rows {
		require.Equal(t, 1, removed[id], "traces of the removal of %s", id)
	}
	parents := map[string]bool{}
	for _, s := range c.spans() {
		parents[s.id] = true
	}
	for _, s := range c.spans() {
		require.True(t, isRoot(s) || parents[s.parent], "the parent of %v was lost", s)
	}
	require.NotContains(t, d.log.String(), "spans are lost")
	t.Logf("%d spans of %d deletes; the daemon's peak RSS: %d MiB", len(c.spans()), n, peak)
	require.Less(t, peak, 150)
}

// A collector that fails costs spans, and no time: removals do not wait for it.
func TestABrokenCollectorHoldsNothingUp(t *testing.T) {
	t.Parallel()
	const n = 5000
	c := newCollector(t)
	c.broken = true
	w := newWorld(t, sandbox.Options{})
	rows := w.rows(n)
	w.results(rows...)
	w.run(c.env("OTEL_BSP_SCHEDULE_DELAY=50")...)
	w.firstPass()
	w.sql("DELETE FROM scan_tasks")
	start := time.Now()
	w.gone(recovery, rows...)
	t.Logf("%d deletes done in %v", n, time.Since(start))
	require.Empty(t, c.spans())
}

func TestTheSamplerIsObeyed(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	w := newWorld(t, sandbox.Options{})
	rows := w.rows(100)
	w.results(rows...)
	d := w.run(c.env("OTEL_TRACES_SAMPLER=always_off")...)
	w.firstPass()
	w.sql("DELETE FROM scan_tasks")
	w.gone(recovery, rows...)
	d.stop()
	require.Empty(t, c.spans())
	require.NotEmpty(t, c.metrics())
}
