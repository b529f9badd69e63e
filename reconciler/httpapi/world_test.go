package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// TB is what tests and rapid's have in common.
type TB interface {
	require.TestingT
	Helper()
}

// services stand for the reconciler: they answer what they are told to.
type services struct {
	mu    sync.Mutex
	calls []string
	// err is what all of them answer.
	err error
	// hang makes an order wait until its context ends.
	hang bool
}

func (s *services) call(ctx context.Context, format string, args ...any) error {
	s.mu.Lock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
	err, hang := s.err, s.hang
	s.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

// took is what was called since the last time.
func (s *services) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

func (s *services) Status(ctx context.Context) (any, error) {
	return map[string]any{"redis_connected": true}, s.call(ctx, "status")
}

func (s *services) Tasks(ctx context.Context, orphanedOnly bool, limit int, cursor string) (reconciler.TaskPage, error) {
	return reconciler.TaskPage{OrphanedOnly: orphanedOnly}, s.call(ctx, "tasks %t %d %q", orphanedOnly, limit, cursor)
}

func (s *services) Check(ctx context.Context, id string, row reconciler.RowQuery) (reconciler.CheckReport, error) {
	gone := false
	return reconciler.CheckReport{Exists: &gone, Evidence: "deleted", Reason: "the row is gone"}, s.call(ctx, "check %q %q", id, row)
}

func (s *services) History(ctx context.Context, id string) (any, error) {
	return []string{}, s.call(ctx, "history %q", id)
}

func (s *services) CleanupOrphaned(ctx context.Context, c reconciler.Cleanup) (reconciler.OrphanReport, error) {
	return reconciler.OrphanReport{Cleaned: 2, DryRun: c.DryRun}, s.call(ctx, "orphaned %s", cleanup(c))
}

func (s *services) CleanupExpired(ctx context.Context, hours int, c reconciler.Cleanup) (reconciler.ExpiredReport, error) {
	return reconciler.ExpiredReport{Cleaned: 3, MaxAgeHours: hours, DryRun: c.DryRun}, s.call(ctx, "expired %d %s", hours, cleanup(c))
}

func (s *services) CleanupDatabase(ctx context.Context, c reconciler.Cleanup) (reconciler.DatabaseReport, error) {
	return reconciler.DatabaseReport{Total: 4, Tables: map[string]int64{"public.logs": 4}}, s.call(ctx, "database %s", cleanup(c))
}

func (s *services) FullCleanup(ctx context.Context, c reconciler.Cleanup) (reconciler.FullReport, error) {
	return reconciler.FullReport{Errors: map[string]string{"database_orphans": "locked"}}, s.call(ctx, "full %s", cleanup(c))
}

func (s *services) PurgeQueues(ctx context.Context, queues []string, unacked bool, c reconciler.Cleanup) (reconciler.QueuesReport, error) {
	return reconciler.QueuesReport{Cleaned: 5, DryRun: c.DryRun}, s.call(ctx, "purge %q unacked=%t %s", queues, unacked, cleanup(c))
}

func (s *services) Restore(ctx context.Context, id string, hold time.Duration, dryRun bool) (any, error) {
	return nil, s.call(ctx, "restore %q %s dry=%t", id, hold, dryRun)
}

func (s *services) Pause(ctx context.Context, by string) (any, error) {
	return nil, s.call(ctx, "pause %s", by)
}

func (s *services) Resume(ctx context.Context, accept bool, by string) (any, error) {
	return nil, s.call(ctx, "resume accept=%t %s", accept, by)
}

func (s *services) Initialize(ctx context.Context, wait time.Duration) (reconciler.InitializeReport, error) {
	return reconciler.InitializeReport{Resynced: true}, s.call(ctx, "initialize %s", wait)
}

func cleanup(c reconciler.Cleanup) string {
	return fmt.Sprintf("%s dry=%t force=%t", c.Trigger, c.DryRun, c.Force)
}

// auditLog keeps entries in memory.
type auditLog struct {
	mu    sync.Mutex
	lines []string
	err   error
}

func (l *auditLog) Begin(_ context.Context, e reconciler.AuditEntry) (func(any, error) error, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	text, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	l.lines = append(l.lines, "begin "+string(text))
	return func(_ any, err error) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lines = append(l.lines, fmt.Sprintf("end %s %v", e.Action, err))
		return l.err
	}, nil
}

const jwtTestSecret = "a-secret-of-the-application-of-more-than-32-bytes"

// world is an API with a token of each kind.
type world struct {
	*api
	services *services
	audit    *auditLog
	log      *lockedBuffer
	now      time.Time
	file     string
	tokens   map[string]string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{services: &services{}, audit: &auditLog{}, log: &lockedBuffer{}, now: time.Now(), tokens: map[string]string{}}
	w.file = filepath.Join(t.TempDir(), "tokens")
	var lines strings.Builder
	add := func(name string, expires time.Time, scopes ...Scope) {
		token, text, err := NewToken(name, scopes, w.now, expires)
		require.NoError(t, err)
		w.tokens[name] = text
		lines.WriteString(token.Line() + "\n")
	}
	for _, s := range Scopes {
		add(string(s), time.Time{}, s)
	}
	add("expired", w.now.Add(-time.Second), Scopes...)
	require.NoError(t, os.WriteFile(w.file, []byte(lines.String()), 0o600))
	log := slog.New(slog.NewTextHandler(w.log, nil))
	clock := func() time.Time { return w.now }
	tokens, err := NewTokens(w.file, clock, log)
	require.NoError(t, err)
	w.api = newAPI(Options{
		Ready: func() (bool, string) { return true, "leader" }, Version: "test", Log: log, Now: clock, Audit: w.audit,
		Metrics:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("orphanwatch_leader 1\n")) }),
		Services: Services{w.services, w.services, w.services, w.services},
		Auth:     Auth{Tokens: tokens, JWT: NewJWT(JWTOptions{Secret: []byte(jwtTestSecret), Issuer: "app", Audience: "orphanwatch", Scopes: []Scope{ScopeRead}, Now: clock})},
	})
	return w
}

// reply is an answer.
type reply struct {
	code   int
	header http.Header
	text   string
}

// send asks; token is the name of one of the world's, or a token.
func (w *world) send(method, target, token, body string) reply {
	r := httptest.NewRequestWithContext(context.Background(), method, target, strings.NewReader(body))
	if known, ok := w.tokens[token]; ok {
		token = known
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return w.do(r)
}

func (w *world) do(r *http.Request) reply {
	recorder := httptest.NewRecorder()
	w.ServeHTTP(recorder, r)
	return reply{recorder.Code, recorder.Header(), recorder.Body.String()}
}

// envelope checks the form that every answer has, and gives data and message.
func (a reply) envelope(t TB) (data any, message string) {
	t.Helper()
	var body map[string]any
	d := json.NewDecoder(strings.NewReader(a.text))
	require.NoError(t, d.Decode(&body), "%d %s", a.code, a.text)
	_, err := d.Token()
	require.ErrorIs(t, err, io.EOF, a.text)
	require.Equal(t, "application/json", a.header.Get("Content-Type"), a.text)
	require.Len(t, body, 3, a.text)
	require.Equal(t, a.code < 400, body["success"], "%d %s", a.code, a.text)
	require.Contains(t, body, "data", a.text)
	message, ok := body["message"].(string)
	require.True(t, ok && message != "", a.text)
	return body["data"], message
}

func (a reply) want(t TB, code int, parts ...string) {
	t.Helper()
	_, message := a.envelope(t)
	require.Equal(t, code, a.code, a.text)
	for _, part := range parts {
		require.Contains(t, message, part)
	}
}
