package wiring_test

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/wiring"
)

// TestTheHTTPOfARunningDaemon: the process lets in who has a token, and shows no secret.
func TestTheHTTPOfARunningDaemon(t *testing.T) {
	w := newWorld(t)
	file, secret := filepath.Join(t.TempDir(), "tokens"), "a-planted-secret-of-more-than-32-bytes"
	_, token, err := wiring.CreateToken(t.Context(), file, "ci", []string{"read"}, time.Hour)
	require.NoError(t, err)
	d := w.run("ORPHANWATCH_HTTP_TOKENS_FILE="+file, "ORPHANWATCH_HTTP_JWT_SECRET="+secret, "ORPHANWATCH_LOG_LEVEL=debug")

	ask := func(method, path, bearer string) (int, string) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, "http://"+d.addr+path, nil)
		require.NoError(t, err)
		if bearer != "" {
			r.Header.Set("Authorization", "Bearer "+bearer)
		}
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	code, body := ask("GET", "/api/v1/cache/health", "")
	require.Equal(t, 200, code, body)
	code, body = ask("GET", "/openapi.json", "")
	require.Equal(t, 200, code)
	require.Contains(t, body, "/api/v1/cache/cleanup/orphaned-tasks")
	for _, wrong := range []string{"", token + "x", "x"} {
		code, body = ask("GET", "/api/v1/cache/status", wrong)
		require.Equal(t, 401, code, body)
	}
	code, body = ask("GET", "/api/v1/cache/status", token)
	require.NotEqual(t, 401, code, body)
	code, body = ask("POST", "/api/v1/cache/cleanup/orphaned-tasks", token)
	require.Equal(t, 403, code, body)
	require.Less(t, d.stop(), 10*time.Second)
	require.NotContains(t, d.log.String(), secret)
	require.NotContains(t, d.log.String(), token)
}
