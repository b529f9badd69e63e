package httpapi

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProbes(t *testing.T) {
	ready, why := false, "the replication slot is not held yet"
	alive := true
	h := New(Options{
		Ready:   func() (bool, string) { return ready, why },
		Alive:   func() (bool, string) { return alive, "alive or not" },
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("orphanwatch_leader 0\n")) }),
	})
	get := func(method, path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		return w.Code, w.Body.String()
	}
	code, body := get(http.MethodGet, "/livez")
	require.Equal(t, 200, code, "whether it is ready is nothing to livez")
	require.JSONEq(t, `{"success": true, "message": "alive or not"}`, body)
	alive = false
	code, body = get(http.MethodGet, "/livez")
	require.Equal(t, 503, code)
	require.JSONEq(t, `{"success": false, "message": "alive or not"}`, body)
	code, body = get(http.MethodGet, "/readyz")
	require.Equal(t, 503, code)
	require.JSONEq(t, `{"success": false, "message": "the replication slot is not held yet"}`, body)
	ready, why = true, "leader"
	code, body = get(http.MethodGet, "/readyz")
	require.Equal(t, 200, code)
	require.JSONEq(t, `{"success": true, "message": "leader"}`, body)
	code, body = get(http.MethodGet, "/metrics")
	require.Equal(t, 200, code)
	require.Contains(t, body, "orphanwatch_leader")
	for _, path := range []string{"/livez", "/readyz", "/metrics"} {
		code, _ = get(http.MethodPost, path)
		require.Equal(t, 405, code, path)
	}
	code, _ = get(http.MethodGet, "/")
	require.Equal(t, 404, code)
}
