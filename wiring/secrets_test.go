package wiring_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// Whatever is secret in a setting stays there: it is in no log line, at any level, in no
// span, in no error, and in nothing that is shown.
func TestSecretsStayWhereTheyAre(t *testing.T) {
	t.Parallel()
	planted := map[string]string{}
	plant := func(name string) string {
		planted[name] = "planted-" + name + "-4e8f1c0a9b7d6e5f4a3b2c1d0e9f8a7b"
		return planted[name]
	}
	ctx := t.Context()
	rules, err := os.ReadFile(usersACL)
	require.NoError(t, err)
	users := ""
	for _, user := range []string{"results", "messages"} {
		users += strings.NewReplacer("user "+role+" ", "user "+user+" ", password, plant("redis-"+user)).Replace(string(rules))
	}
	file := filepath.Join(t.TempDir(), "users.acl")
	require.NoError(t, os.WriteFile(file, []byte(users), 0o600))
	w := newWorld(t, sandbox.Options{Redis: sandbox.RedisOptions{ACLFile: file}})
	redisURL := func(user string) string {
		return "redis://" + user + ":" + planted["redis-"+user] + "@" + w.sb.Redis.Addr() + "/0"
	}
	db, err := url.Parse(w.dbURL)
	require.NoError(t, err)
	db.User = url.UserPassword(role, plant("postgres")) // it trusts this machine

	spans := &sink{}
	collector := httptest.NewServer(spans)
	defer collector.Close()
	jwt := filepath.Join(t.TempDir(), "jwt")
	require.NoError(t, os.WriteFile(jwt, []byte(plant("jwt")), 0o600))
	planted["token"] = w.withTokens("read", "cleanup", "admin")
	env := []string{
		"DATABASE_URL=" + db.String(), "REDIS_URL=" + redisURL("results"), "CELERY_RESULT_BACKEND=" + redisURL("results"),
		"CELERY_BROKER_URL=" + redisURL("messages"), "ORPHANWATCH_HTTP_JWT_SECRET_FILE=" + jwt, "ORPHANWATCH_LOG_LEVEL=debug",
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL,
		"OTEL_EXPORTER_OTLP_HEADERS=authorization=" + plant("otlp"), "OTEL_BSP_SCHEDULE_DELAY=100",
	}
	rows := w.rows(5)
	d := w.run(env...)
	w.firstPass()
	w.results(rows...)
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows)
	w.gone(recovery, rows...)
	sandbox.AwaitTB(t, recovery, "spans", func() error {
		if !strings.Contains(spans.text(), "reconcile public.scan_tasks") {
			return fmt.Errorf("%d bytes, not of a reconciliation", len(spans.text()))
		}
		return nil
	})

	shown := map[string]string{}
	ask := func(method, path, token string) {
		code, body := d.ask(method, path, token)
		shown[method+" "+path] = fmt.Sprint(code, " ", body)
	}
	everything := func() {
		ask("GET", "/api/v1/cache/status", planted["token"])
		ask("GET", "/api/v1/tasks/"+rows[0]+"/history", planted["token"])
		ask("POST", "/api/v1/cache/cleanup/full", planted["token"])
		ask("POST", "/api/v1/pause", planted["token"])
		ask("POST", "/api/v1/resume", planted["token"])
		ask("GET", "/api/v1/cache/status", planted["token"]+"x")
		ask("GET", "/api/v1/cache/status", "eyJ."+planted["token"])
		ask("GET", "/readyz", "")
		ask("GET", "/metrics", "")
		ask("GET", "/openapi.json", "")
	}
	everything()
	// Errors are where secrets escape: no store answers, then none lets us in.
	require.NoError(t, w.sb.Redis.Kill(ctx))
	everything()
	require.NoError(t, w.sb.Redis.Start(ctx))
	require.NoError(t, w.sb.Postgres.Kill(ctx))
	everything()
	d.stop()

	config, err := wiring.Load(wiring.LoadOptions{Environ: append(w.environ(), env...)})
	require.NoError(t, err)
	text, err := yaml.Marshal(config)
	require.NoError(t, err)
	shown["config show"] = string(text)
	for _, bad := range []string{"ORPHANWATCH_POLICY_GRACE=x", "DATABASE_URL=postgres://u:" + planted["postgres"] + "@h:port/db", "REDIS_URL=http://:" + planted["redis-results"] + "@h", "ORPHANWATCH_HTTP_JWT_SECRET=" + planted["jwt"][:20]} {
		_, err := wiring.Load(wiring.LoadOptions{Environ: append(append(w.environ(), env...), bad)})
		shown["error "+bad[:20]] = fmt.Sprint(err)
	}
	shown["the log"] = d.log.String()
	shown["spans"] = spans.text()
	for name, secret := range planted {
		for _, form := range []string{secret, url.QueryEscape(secret), base64.StdEncoding.EncodeToString([]byte(secret))} {
			for where, text := range shown {
				if strings.Contains(text, form) {
					at := strings.Index(text, form)
					t.Errorf("the secret of %s is in %s: …%s…", name, where, text[max(0, at-80):at])
				}
			}
		}
	}
	require.Contains(t, shown["the log"], "level=DEBUG")
	require.Contains(t, shown["GET /api/v1/cache/status"], "401")
}

// ask is a request to the daemon, with its answer as text.
func (d *daemon) ask(method, path, token string) (int, string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, "http://"+d.addr+path, http.NoBody)
	require.NoError(d.t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := (&http.Client{Timeout: time.Minute}).Do(req)
	require.NoError(d.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(d.t, err)
	return res.StatusCode, string(body)
}

// sink keeps what is sent to it.
type sink struct {
	mu   sync.Mutex
	body bytes.Buffer
}

// ServeHTTP takes anything.
func (s *sink) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = io.Copy(&s.body, r.Body)
}

func (s *sink) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body.String()
}
