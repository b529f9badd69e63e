package wiring

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	apitrace "go.opentelemetry.io/otel/trace"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// AuditEntry is one order of an operator.
type AuditEntry = reconciler.AuditEntry

// Audit is the append-only log of what operators do, JSON lines in http.audit_file.
// Each order has two: begin, on disk before anything is changed (a process that dies
// midway leaves a trace, and a full disk stops the order, not the evidence), and end
// with the outcome. The file is opened for each line, so that it can be rotated.
type Audit struct {
	file string
	log  *slog.Logger

	mu sync.Mutex
	// torn: the last line is not whole.
	torn bool
}

// auditLine is a line of the file.
type auditLine struct {
	Time time.Time `json:"time"`
	// Phase is begin or end; ID joins the two.
	Phase string `json:"phase"`
	ID    string `json:"id"`
	AuditEntry
	// Outcome is done, partial or failed; Counts are those of the report.
	Outcome string `json:"outcome,omitempty"`
	Counts  any    `json:"counts,omitempty"`
	Error   string `json:"error,omitempty"`
	Took    *int64 `json:"took_ms,omitempty"`
	TraceID string `json:"trace_id,omitempty"`
}

// OpenAudit is the log that the configuration names; without one, lines of log at
// level info (nil for none). The error says that the file cannot be written now; the Audit is
// good all the same, and tries again with each order.
func OpenAudit(c *Config, log *slog.Logger) (*Audit, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &Audit{file: c.HTTP.AuditFile, log: log}
	if a.file == "" {
		return a, nil
	}
	f, err := a.open()
	if err != nil {
		return a, err
	}
	return a, f.Close()
}

func (a *Audit) open() (*os.File, error) {
	f, err := os.OpenFile(a.file, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, reconciler.Hint(fmt.Errorf("audit log (http.audit_file): %w", err), "make it a path that this user may write to; without it nothing is changed")
	}
	return f, nil
}

// Begin writes down that an order is to be carried out; an error means that it must
// not be. done writes how it ended: counts is its report, or what else tells it.
func (a *Audit) Begin(ctx context.Context, e AuditEntry) (done func(counts any, err error) error, err error) {
	begun := time.Now()
	line := auditLine{Time: begun, Phase: "begin", ID: rand.Text()[:12], AuditEntry: e}
	if s := apitrace.SpanContextFromContext(ctx); s.IsValid() {
		line.TraceID = s.TraceID().String()
	}
	if err := a.write(ctx, line); err != nil {
		return nil, err
	}
	return func(counts any, err error) error {
		took := time.Since(begun).Milliseconds()
		line.Time, line.Phase, line.Took, line.Outcome = time.Now(), "end", &took, "done"
		if r, ok := counts.(interface{ Counts() map[string]int64 }); ok {
			line.Counts = r.Counts()
		} else if err == nil {
			line.Counts = counts
		}
		if r, ok := counts.(interface{ Failed() error }); ok && err == nil && r.Failed() != nil {
			line.Outcome, line.Error = "partial", r.Failed().Error()
		}
		if err != nil {
			line.Outcome, line.Error = "failed", err.Error()
		}
		return a.write(ctx, line)
	}, nil
}

// write appends a line, and returns once it is on disk.
func (a *Audit) write(ctx context.Context, line auditLine) error {
	line.Time = line.Time.UTC()
	body, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if a.file == "" {
		a.log.InfoContext(ctx, "audit", "entry", json.RawMessage(body))
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f, err := a.open()
	if err != nil {
		return err
	}
	if a.torn {
		body = append([]byte("\n"), body...)
	}
	n, err := f.Write(append(body, '\n'))
	a.torn = a.torn && n == 0 || n > 0 && err != nil
	if err == nil {
		if err = f.Sync(); errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
			err = nil // a pipe or a terminal
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return reconciler.Hint(fmt.Errorf("audit log (http.audit_file): %w", err), "make room, or let it be written; without it nothing is changed")
	}
	return nil
}
