package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// design is section 8 of the design: every route, and who may use it.
var design = map[string]Scope{
	"GET /api/v1/cache/status":                    ScopeRead,
	"GET /api/v1/cache/celery-tasks":              ScopeRead,
	"POST /api/v1/cache/cleanup/orphaned-tasks":   ScopeCleanup,
	"POST /api/v1/cache/cleanup/expired-results":  ScopeCleanup,
	"POST /api/v1/cache/cleanup/database-orphans": ScopeCleanup,
	"POST /api/v1/cache/cleanup/celery-queues":    ScopePurge,
	"POST /api/v1/cache/cleanup/full":             ScopeCleanup,
	"POST /api/v1/cache/initialize":               ScopeCleanup,
	"GET /api/v1/cache/health":                    public,
	"GET /api/v1/tasks/{id}":                      ScopeRead,
	"GET /api/v1/tasks/{id}/history":              ScopeRead,
	"POST /api/v1/tasks/{id}/restore":             ScopeAdmin,
	"POST /api/v1/pause":                          ScopeAdmin,
	"POST /api/v1/resume":                         ScopeAdmin,
	"GET /livez":                                  public,
	"GET /readyz":                                 public,
	"GET /metrics":                                public,
	"GET /openapi.json":                           public,
}

// bodies are what a route needs beside its path.
var bodies = map[string]string{"POST /api/v1/cache/cleanup/celery-queues": `{"confirm": "celery"}`}

// document is the OpenAPI document, as far as the tests read it.
type document struct {
	OpenAPI string `json:"openapi"`
	Paths   map[string]map[string]operation
}

type operation struct {
	Security    *[]map[string][]string
	Parameters  []parameter
	RequestBody *struct{ Required bool }
}

type parameter struct {
	Name, In string
	Schema   struct{ Type string }
}

func readDocument(t TB, w *world) document {
	t.Helper()
	var d document
	answer := w.send(http.MethodGet, "/openapi.json", "", "")
	require.Equal(t, 200, answer.code)
	require.NoError(t, json.Unmarshal([]byte(answer.text), &d))
	require.True(t, strings.HasPrefix(d.OpenAPI, "3.1"), d.OpenAPI)
	return d
}

// Every route that exists is in the document, and every one of the document is in the
// design; a route that somebody adds fails here until it is given its row.
func TestEveryRouteHasItsScope(t *testing.T) {
	w := newWorld(t)
	documented := map[string]Scope{}
	for path, operations := range readDocument(t, w).Paths {
		for method, op := range operations {
			scope := public
			require.NotNil(t, op.Security, path)
			if len(*op.Security) > 0 {
				scope = Scope((*op.Security)[0][securityScheme][0])
			}
			documented[strings.ToUpper(method)+" "+path] = scope
		}
	}
	require.Equal(t, design, documented)
	require.Len(t, w.routes, len(design))
}

func TestEveryRouteWithEveryToken(t *testing.T) {
	w := newWorld(t)
	other, wrong, err := NewToken("other", Scopes, w.now, w.now)
	require.NoError(t, err)
	require.NotEmpty(t, other.ID)
	holders := map[string]string{
		"none": "", "wrong": wrong, "mistyped": w.tokens["admin"][:30] + "!" + w.tokens["admin"][31:], "expired": "expired",
		"read": "read", "cleanup": "cleanup", "purge": "purge", "admin": "admin",
	}
	for route, scope := range design {
		method, path, _ := strings.Cut(route, " ")
		for holder, token := range holders {
			w.services.took()
			got := w.send(method, strings.ReplaceAll(path, "{id}", "5f0c6b0e"), token, bodies[route])
			want := 403
			switch {
			case scope == public, holder == string(scope), holder == "admin":
				want = 200
			case holder == "none", holder == "wrong", holder == "mistyped", holder == "expired":
				want = 401
			}
			require.Equal(t, want, got.code, "%s with %s: %s", route, holder, got.text)
			if want == 401 || want == 403 {
				require.Contains(t, got.header.Get("WWW-Authenticate"), "Bearer")
				require.Empty(t, w.services.took(), "nothing was called")
				got.envelope(t)
			}
			if strings.HasPrefix(path, "/api/") {
				got.envelope(t)
			}
		}
	}
	require.NotContains(t, w.log.String(), "owt_")
}

// A route that is registered without a scope is refused, also to an admin.
func TestDenyByDefault(t *testing.T) {
	w := newWorld(t)
	w.mux.HandleFunc("GET /forgotten", func(http.ResponseWriter, *http.Request) { t.Error("it was served") })
	w.send(http.MethodGet, "/forgotten", "admin", "").want(t, 403, "no scope")
	w.routes["GET /forgotten"] = &route{}
	w.send(http.MethodGet, "/forgotten", "admin", "").want(t, 403, "no scope")
}

func TestUnknownRoutes(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/", "/api", "/api/v1/cache/statu", "/api/v1/cache/status/", "//livez", "/livez/", "/a/../livez", "/docs", "/openapi.yaml", "/schemas", "/api/v1/tasks//history"} {
		w.send(http.MethodGet, path, "admin", "").want(t, 404, "no such route")
	}
	got := w.send(http.MethodGet, "/api/v1/cache/cleanup/full", "admin", "")
	got.want(t, 405, "POST")
	require.Equal(t, "POST", got.header.Get("Allow"))
	w.send(http.MethodDelete, "/livez", "", "").want(t, 405, "GET, HEAD")
	w.send("BREW", "/api/v1/pause", "admin", "").want(t, 405)
	require.Empty(t, w.services.took())
}

// Whatever a client sends to whatever route, the answer is its own fault or a success,
// and has the one form.
func TestRandomRequests(t *testing.T) {
	w := newWorld(t)
	d := readDocument(t, w)
	codes := map[int]int{}
	var routes []string
	for route := range design {
		if route != "GET /metrics" && route != "GET /openapi.json" {
			routes = append(routes, route)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		route := rapid.SampledFrom(routes).Draw(t, "route")
		method, path, _ := strings.Cut(route, " ")
		op := d.Paths[path][strings.ToLower(method)]
		var query []string
		for _, p := range op.Parameters {
			if p.In == "query" && rapid.Bool().Draw(t, p.Name) {
				query = append(query, p.Name+"="+anyValue(p.Schema.Type).Draw(t, "value"))
			}
		}
		if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
			query = append(query, rapid.SampledFrom([]string{"x", "dry_run", "dry_run=", "dryrun=true", "%zz=1", "a;b", "force=1&force=0", "=", "&&"}).Draw(t, "oddity"))
		}
		path = strings.ReplaceAll(path, "{id}", escape(rapid.String().Draw(t, "id")))
		body := anyBody().Draw(t, "body")
		r, err := http.NewRequest(method, "http://localhost"+path+"?"+strings.Join(query, "&"), strings.NewReader(body))
		if err != nil {
			return // no client can send it
		}
		r.RemoteAddr = "192.0.2.7:1234"
		r.Header.Set("Authorization", "Bearer "+w.tokens["admin"])
		r.Header.Set("Content-Type", rapid.SampledFrom([]string{"application/json", "", "text/plain", "application/x-www-form-urlencoded", "x"}).Draw(t, "type"))
		r.Header.Set("Accept", rapid.SampledFrom([]string{"*/*", "", "text/html", "application/json;q=0", "x"}).Draw(t, "accept"))
		w.now = w.now.Add(1e9) // so that the limits let it through
		got := w.do(r)
		codes[got.code]++
		require.Less(t, got.code, 500, "%s %s: %s", method, r.URL, got.text)
		if strings.HasPrefix(path, "/api/") {
			got.envelope(t)
		}
	})
	t.Log("answers by status:", codes)
	require.Positive(t, codes[200])
	require.NotContains(t, w.log.String(), "panic")
	require.NotContains(t, w.log.String(), "level=ERROR")
}

// escape makes a path segment of any bytes.
func escape(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

func anyValue(kind string) *rapid.Generator[string] {
	odd := rapid.OneOf(rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 600), func(b []byte) string { return escape(string(b)) }), rapid.StringMatching(`[a-z0-9.+%]{0,9}`))
	good := map[string]*rapid.Generator[string]{
		"boolean": rapid.SampledFrom([]string{"true", "false", "1", "0", "TRUE", "yes"}),
		"integer": rapid.Map(rapid.Int(), func(n int) string { return fmt.Sprint(n) }),
		"string":  rapid.StringMatching(`[a-z0-9]{1,9}`),
	}[kind]
	return rapid.OneOf(good, good, odd)
}

func anyBody() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.SampledFrom([]string{
			"", "{}", "null", "[]", "1", `"`, `{"confirm": ""}`, `{"confirm": null}`, `{"confirm": 1}`, `{"confirm": "a\u0000b"}`, `{"confirm": ["all"]}`,
			`{"confirm": "all"}`, `{"confirm": "q", "include_unacked": true}`, `{"confirm": "q", "include_unacked": "yes"}`, `{"confirm": "q", "x": 1}`,
			`{"CONFIRM": "q"}`, `{"confirm": "q"} {}`, strings.Repeat("[", 10_000), `{"confirm": "` + strings.Repeat("q", 70_000) + `"}`,
		}),
		rapid.String(),
		rapid.Map(rapid.String(), func(s string) string {
			b, _ := json.Marshal(map[string]string{"confirm": s})
			return string(b)
		}),
	)
}

// The document is of use to a generator: each parameter has a type, each answer a schema.
func TestDocumentIsWhole(t *testing.T) {
	w := newWorld(t)
	for path, operations := range readDocument(t, w).Paths {
		for method, op := range operations {
			for _, p := range op.Parameters {
				require.NotEmpty(t, p.Schema.Type, "%s %s %s", method, path, p.Name)
			}
		}
	}
	text := w.send(http.MethodGet, "/openapi.json", "", "").text
	for _, part := range []string{`"401"`, `"409"`, `"429"`, `"cleaned_count"`, `"next_cursor"`, `"securitySchemes"`} {
		require.Contains(t, text, part)
	}
	require.NotContains(t, text, "$schema")
}
