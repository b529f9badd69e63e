package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"path"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// errNeedsTokens is why an order without tokens is refused.
var errNeedsTokens = errors.New("no tokens are configured, so that only reads from this machine work: set http.tokens_file or http.jwt_secret")

// ServeHTTP lets through what its sender may ask for.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tracked := &trackedWriter{ResponseWriter: w}
	defer a.recovered(tracked, r)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	rt, p := a.find(r)
	if p == nil && rt.scope != public {
		w.Header().Set("Cache-Control", "no-store")
		r, p = a.admit(r, rt)
	}
	if p != nil {
		p.write(tracked)
		return
	}
	a.mux.ServeHTTP(tracked, r)
}

// find is the route of a request.
func (a *api) find(r *http.Request) (*route, *Problem) {
	escaped := r.URL.EscapedPath()
	if path.Clean("/"+escaped) != escaped { // the mux would redirect
		return nil, problem(http.StatusNotFound, "there is no such route; /openapi.json lists them")
	}
	h, pattern := a.mux.Handler(r)
	if pattern == "" {
		var asked statusOnly
		if h.ServeHTTP(&asked, r); asked.status == http.StatusMethodNotAllowed {
			allow := asked.Header().Get("Allow")
			return nil, problem(http.StatusMethodNotAllowed, "this route takes %s, not %s", allow, shown(r.Method)).with("Allow", allow)
		}
		return nil, problem(http.StatusNotFound, "there is no such route; /openapi.json lists them")
	}
	rt := a.routes[pattern]
	if rt == nil || rt.scope == "" {
		return nil, problem(http.StatusForbidden, "nobody may use this route: it has no scope")
	}
	return rt, nil
}

// admit finds out who asks, and whether that may be.
func (a *api) admit(r *http.Request, rt *route) (*http.Request, *Problem) {
	now, from := a.o.Now(), peer(r)
	who, err := a.o.Auth.identify(r, from, now)
	if err != nil {
		return r, a.unauthenticated(r, from, now, err)
	}
	// Who may not is not served, but costs as much as who may.
	if wait, ok := rt.limits.take(who.Name, now); !ok {
		return r, tooMany(wait, who.Name+" calls too often")
	}
	if !who.Has(rt.scope) {
		if who.Name == anonymous.Name {
			return r, a.unauthenticated(r, from, now, errNeedsTokens)
		}
		a.o.Log.WarnContext(r.Context(), "an HTTP request is refused: the scope is missing", "who", who.Name, "from", from.String(), "route", rt.pattern, "scope", string(rt.scope))
		return r, problem(http.StatusForbidden, "this needs the scope %s, which %s does not have", rt.scope, who.Name).
			with("WWW-Authenticate", `Bearer realm="orphanwatch", error="insufficient_scope", scope="`+string(rt.scope)+`"`)
	}
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, caller{who, from.String()})), nil
}

// unauthenticated answers 401. A valid token always passes, so that nobody can lock
// others out of an address that they share.
func (a *api) unauthenticated(r *http.Request, from netip.Addr, now time.Time, why error) *Problem {
	if wait, ok := a.fails.take(network(from), now); !ok {
		return tooMany(wait, "too many requests without a valid token from this address")
	}
	a.o.Log.WarnContext(r.Context(), "an HTTP request is refused", "from", from.String(), "error", why)
	challenge := `Bearer realm="orphanwatch"`
	if r.Header.Get("Authorization") != "" {
		challenge += `, error="invalid_token"`
	}
	return problem(http.StatusUnauthorized, "%s", why).with("WWW-Authenticate", challenge)
}

// HandleFunc puts a handler of huma's behind what huma does not do itself: checks of
// the request, deadlines, a span. It makes api a humago.Mux.
func (a *api) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		rt := a.routes[pattern]
		if p := rt.checkRequest(w, r); p != nil {
			p.write(w)
			return
		}
		limit, ctx := readTimeout, r.Context()
		if rt.order {
			limit = a.orderTimeout
			// The server's timeout is for reads; where there is none, all the better.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(limit + readTimeout))
			ctx = otel.GetTextMapPropagator().Extract(ctx, propagation.HeaderCarrier(r.Header))
			var span trace.Span
			ctx, span = otel.Tracer(scopeName).Start(ctx, pattern, trace.WithSpanKind(trace.SpanKindServer))
			defer span.End()
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		h(w, r.WithContext(ctx))
	})
}

// scopeName is that of our spans.
const scopeName = "github.com/orphanwatch/orphanwatch/reconciler/httpapi"

// recovered answers for a handler that panicked.
func (a *api) recovered(w *trackedWriter, r *http.Request) {
	caught := recover()
	if caught == nil {
		return
	}
	if caught == http.ErrAbortHandler || r.Context().Err() != nil { //nolint:errorlint // it is this very value
		panic(http.ErrAbortHandler) // the client is gone
	}
	a.o.Log.ErrorContext(r.Context(), "an HTTP handler panicked", "route", r.Pattern, "panic", caught)
	if w.began {
		panic(http.ErrAbortHandler)
	}
	problem(http.StatusInternalServerError, "internal error; the daemon's log has it").write(w)
}

// trackedWriter knows whether an answer has begun.
type trackedWriter struct {
	http.ResponseWriter
	began bool
}

// WriteHeader is http.ResponseWriter's.
func (w *trackedWriter) WriteHeader(status int) {
	w.began = true
	w.ResponseWriter.WriteHeader(status)
}

// Write is http.ResponseWriter's.
func (w *trackedWriter) Write(b []byte) (int, error) {
	w.began = true
	return w.ResponseWriter.Write(b) //nolint:wrapcheck // it is passed on
}

// Unwrap is for http.ResponseController.
func (w *trackedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// statusOnly takes the mux's word on why it has no route.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header {
	if s.header == nil {
		s.header = http.Header{}
	}
	return s.header
}
func (s *statusOnly) WriteHeader(status int)      { s.status = status }
func (s *statusOnly) Write(b []byte) (int, error) { return len(b), nil }
