package wiring

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	apitrace "go.opentelemetry.io/otel/trace"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func auditOf(file string) *Config {
	c := Default()
	c.HTTP.AuditFile = file
	return c
}

// auditLines are the lines of a file, each of which must be whole.
func auditLines(t *testing.T, file string) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var out []map[string]any
	for line := range strings.Lines(string(text)) {
		var entry map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &entry), line)
		out = append(out, entry)
	}
	return out
}

func TestAuditHasBothLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit")
	audit, err := OpenAudit(auditOf(file), nil)
	require.NoError(t, err)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	trace, _ := apitrace.TraceIDFromHex("4bf92f3577b34da6a3ce929d0e0e4736")
	span, _ := apitrace.SpanIDFromHex("00f067aa0ba902b7")
	ctx := apitrace.ContextWithSpanContext(t.Context(), apitrace.NewSpanContext(apitrace.SpanContextConfig{TraceID: trace, SpanID: span}))
	done, err := audit.Begin(ctx, AuditEntry{Who: "root@host", From: "cli", Action: "cleanup-orphaned", Filter: map[string]any{"a": 1}, Force: true})
	require.NoError(t, err)
	begin := auditLines(t, file)
	require.Len(t, begin, 1, "on disk before anything is done")
	require.Equal(t, "begin", begin[0]["phase"])
	require.Equal(t, []any{"root@host", "cli", "cleanup-orphaned", true, false}, []any{begin[0]["who"], begin[0]["from"], begin[0]["action"], begin[0]["force"], begin[0]["dry_run"]})
	require.Equal(t, trace.String(), begin[0]["trace_id"])
	require.NotContains(t, begin[0], "outcome")

	report := reconciler.OrphanReport{Cleaned: 3, Tasks: make([]reconciler.TaskInfo, 1000), Removed: map[reconciler.ArtifactKind]int64{"results": 2}}
	require.NoError(t, done(report, nil))
	end := auditLines(t, file)[1]
	require.Equal(t, []any{"end", "done", begin[0]["id"], trace.String()}, []any{end["phase"], end["outcome"], end["id"], end["trace_id"]})
	require.Equal(t, map[string]any{"cleaned": 3.0, "removed_results": 2.0}, end["counts"], "counts, not a thousand tasks")

	for err, want := range map[error]string{errors.New("broken"): "failed", nil: "partial"} {
		done, beginErr := audit.Begin(ctx, AuditEntry{Action: "full-cleanup"})
		require.NoError(t, beginErr)
		require.NoError(t, done(reconciler.FullReport{Errors: map[string]string{"database": "locked"}}, err))
		lines := auditLines(t, file)
		require.Equal(t, want, lines[len(lines)-1]["outcome"])
		require.NotEmpty(t, lines[len(lines)-1]["error"])
	}
}

// What cannot be written down must not be done; and it is tried again each time.
func TestAuditThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "none", "audit")
	audit, err := OpenAudit(auditOf(file), nil)
	require.ErrorContains(t, err, "http.audit_file")
	_, err = audit.Begin(t.Context(), AuditEntry{})
	require.ErrorContains(t, err, "nothing is changed")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o700))
	done, err := audit.Begin(t.Context(), AuditEntry{})
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Dir(file)))
	require.Error(t, done(nil, nil), "nor is a lost outcome passed over")

	_, err = OpenAudit(auditOf(dir), nil)
	require.ErrorContains(t, err, "is a directory")
	full, err := OpenAudit(auditOf("/dev/full"), nil)
	require.NoError(t, err)
	_, err = full.Begin(t.Context(), AuditEntry{})
	require.ErrorContains(t, err, "no space left")
}

func TestAuditIsRotatedAndShared(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit")
	const each = 20
	var wg sync.WaitGroup
	for range 4 { // two processes are no different: each opens the file for each line
		audit, err := OpenAudit(auditOf(file), nil)
		require.NoError(t, err)
		for range 2 {
			wg.Go(func() {
				for i := range each {
					done, err := audit.Begin(t.Context(), AuditEntry{Action: fmt.Sprint(i, strings.Repeat("x", 3000))})
					if err == nil {
						err = done(nil, nil)
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	require.Len(t, auditLines(t, file), 4*2*2*each)
	require.NoError(t, os.Rename(file, file+".1"))
	audit, err := OpenAudit(auditOf(file), nil)
	require.NoError(t, err)
	done, err := audit.Begin(t.Context(), AuditEntry{})
	require.NoError(t, err)
	require.NoError(t, os.Rename(file, file+".2"))
	require.NoError(t, done(nil, nil))
	require.Len(t, auditLines(t, file), 1)
}

func TestAuditInTheLog(t *testing.T) {
	var log bytes.Buffer
	audit, err := OpenAudit(Default(), slog.New(slog.NewJSONHandler(&log, nil)))
	require.NoError(t, err)
	done, err := audit.Begin(t.Context(), AuditEntry{Who: "token:ci/abcd", Action: "pause"})
	require.NoError(t, err)
	require.NoError(t, done(nil, nil))
	require.Equal(t, 2, strings.Count(log.String(), `"msg":"audit","entry":{`), log.String())
	require.Contains(t, log.String(), `"who":"token:ci/abcd"`)
}
