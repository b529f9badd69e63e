package wiring_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var updateTelemetry = flag.Bool("update.telemetry", false, "let TestTracesTellOfEachReconciliation write deploy/TELEMETRY.md")

const telemetryFile = "../deploy/TELEMETRY.md"

// What spans and attributes mean. One that is emitted and is not here fails the test, and
// so does one that is here and is not emitted.
var (
	spanMeanings = map[string]string{
		"reconcile <table>":       "root: all that is done at once about one task or deleted row; what has to come back is a trace of its own, with a link",
		"resync":                  "root: a pass over both stores; its children are its stages",
		"read artifacts":          "Redis is asked for results, companion keys and records",
		"read rows":               "PostgreSQL is asked for the rows",
		"decide":                  "evidence, rows and rules are weighed",
		"remove":                  "results and companion keys are removed, with their records",
		"sweep messages":          "queues and unacked messages are read",
		"write records":           "records are written before messages are taken",
		"revoke":                  "workers are told to drop tasks that they may hold",
		"pull messages":           "messages are taken out of queues and of unacked",
		"scanning":                "a pass reads the keys and compares them with the tables",
		"reading messages":        "a pass reads the messages and compares them",
		"waiting for replication": "a pass waits until all that was deleted before it is known",
		"judging":                 "a pass looks at its suspects again; the guard judges it",
		"submitting":              "a pass hands on up to 100 orphans; their reconciliations link to this span",
	}
	attributeMeanings = map[string]string{
		"orphanwatch.trigger":            "pg_delete, redis_event, resync, api, cli",
		"orphanwatch.evidence":           "deleted, absent, expired",
		"orphanwatch.outcome":            "removed, kept, noop, deferred, guarded, reported, error",
		"orphanwatch.held_by":            "the rule that holds it",
		"orphanwatch.reason":             "why, for people; of a pass: what asked for it",
		"orphanwatch.attempt":            "from the second attempt on",
		"orphanwatch.lag":                "seconds from the commit (by our clock), or from the event, to the first removal",
		"orphanwatch.pg.xid":             "the deleting transaction",
		"orphanwatch.pg.lsn":             "its commit's place in the log",
		"orphanwatch.removed.results":    "how many were removed",
		"orphanwatch.removed.messages":   "how many were removed from queues",
		"orphanwatch.removed.unacked":    "how many were removed from workers' hands",
		"orphanwatch.pass.scanned":       "keys",
		"orphanwatch.pass.messages":      "messages",
		"orphanwatch.pass.orphans":       "without a row, on evidence absent",
		"orphanwatch.pass.unknown":       "nothing tells whose they are",
		"orphanwatch.pass.submitted":     "handed on",
		"orphanwatch.pass.guarded":       "held by the guard",
		"orphanwatch.link":               "of a link: deleting transaction, message, previous attempt, resync",
		"celery.task.name":               "of the task, where a message or result tells it",
		"messaging.system":               "celery",
		"messaging.operation.type":       "process, send",
		"messaging.operation.name":       "reconcile, revoke",
		"messaging.message.id":           "the task's id",
		"messaging.batch.message_count":  "reconciliations that share the step",
		"db.system.name":                 "postgresql, redis",
		"db.operation.name":              "the command, or its kind",
		"db.operation.batch.size":        "reconciliations that share the step",
		"db.namespace":                   "the database",
		"server.address":                 "host, or socket",
		"server.port":                    "",
		"error.type":                     "unreachable, timeout, canceled, other",
		"orphanwatch.removed.companions": "how many were removed",
	}
	// seldom need what the scenario has not: a failure in the right moment, a batch.
	seldom = []string{"messaging.batch.message_count", "db.operation.batch.size", "orphanwatch.removed.companions"}
)

// judgeTelemetryTable compares deploy/TELEMETRY.md with what a daemon has sent.
func judgeTelemetryTable(t *testing.T, c *collector) {
	t.Helper()
	spans, attrs := map[string]bool{}, map[string]bool{"orphanwatch.link": true}
	for _, s := range c.spans() {
		spans[strings.Replace(s.name, " public.scan_tasks", " <table>", 1)] = true
		for key := range s.attrs {
			attrs[key] = true
		}
	}
	for _, key := range seldom {
		attrs[key] = true
	}
	assert.Equal(t, slices.Sorted(maps.Keys(spanMeanings)), slices.Sorted(maps.Keys(spans)))
	assert.Equal(t, slices.Sorted(maps.Keys(attributeMeanings)), slices.Sorted(maps.Keys(attrs)))

	var b strings.Builder
	b.WriteString("# Telemetry\n\nWhat the daemon sends, as a run of it has shown: `go test ./wiring -run TestTracesTell -update.telemetry` writes this file, and the test compares.\n\n")
	b.WriteString("## Metrics\n\n| OpenTelemetry | Prometheus | kind, unit | attributes | |\n|---|---|---|---|---|\n")
	instruments := c.metrics()
	for _, name := range slices.Sorted(maps.Keys(instruments)) {
		m := instruments[name]
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", name, prometheusName(name, m), strings.TrimRight(m.kind+", "+m.unit, ", "),
			strings.Join(slices.Sorted(maps.Keys(m.attrs)), ", "), m.description)
	}
	table := func(title string, meanings map[string]string) {
		fmt.Fprintf(&b, "\n## %s\n\n| | |\n|---|---|\n", title)
		for _, name := range slices.Sorted(maps.Keys(meanings)) {
			fmt.Fprintf(&b, "| `%s` | %s |\n", name, meanings[name])
		}
	}
	table("Spans", spanMeanings)
	table("Attributes of spans", attributeMeanings)
	if *updateTelemetry {
		require.NoError(t, os.WriteFile(telemetryFile, []byte(b.String()), 0o644)) //nolint:gosec // a document
	}
	have, err := os.ReadFile(telemetryFile)
	require.NoError(t, err)
	require.Equal(t, string(have), b.String(), "write it anew: go test ./wiring -run TestTracesTell -update.telemetry")
}

// prometheusName is how the exporter spells a metric.
func prometheusName(name string, m *instrument) string {
	out := strings.NewReplacer(".", "_").Replace(name)
	switch m.unit {
	case "s":
		out += "_seconds"
	case "By":
		out += "_bytes"
	}
	if m.kind == "counter" {
		out += "_total"
	}
	return out
}
