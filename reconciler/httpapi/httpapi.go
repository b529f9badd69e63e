package httpapi

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/time/rate"
)

// Options are what the handler answers from.
type Options struct {
	// Ready tells whether the daemon does its job, and why (not).
	Ready func() (ok bool, why string)
	// Alive tells whether its loops move, and which hang; nil means that they do.
	Alive func() (ok bool, why string)
	// Metrics serves /metrics.
	Metrics http.Handler
	// Services carry out what is asked; where one is nil its routes answer 503.
	Services Services
	// Auth says who may call.
	Auth Auth
	// Audit keeps what is changed; without it nothing can be.
	Audit Audit
	// Log takes refusals and errors; nil means none.
	Log *slog.Logger
	// Version is the daemon's, for the OpenAPI document.
	Version string
	// Now is the time for tokens and limits; nil means time.Now.
	Now func() time.Time
}

// A read must end within readTimeout, which is less than the server's own write
// timeout; an order within OrderTimeout, for which the server's timeouts are put off.
const (
	readTimeout  = 25 * time.Second
	OrderTimeout = 10 * time.Minute
)

// api is the handler.
type api struct {
	o    Options
	mux  *http.ServeMux
	huma huma.API
	// routes by their pattern in mux. What is not in it is refused.
	routes map[string]*route

	orderTimeout                 time.Duration
	fails, checks, reads, orders *limits
}

// route is what is known of a route beside its handler.
type route struct {
	pattern                 string
	scope                   Scope
	limits                  *limits
	queryParams, pathParams []string
	hasBody                 bool
	// order: it changes something.
	order bool
}

// New routes the requests. /livez depends on no store; /readyz is 200 once the
// sources are subscribed, or the copy stands by.
func New(o Options) http.Handler { return newAPI(o) }

func newAPI(o Options) *api {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Alive == nil {
		o.Alive = func() (bool, string) { return true, "alive" }
	}
	a := &api{
		o: o, mux: http.NewServeMux(), routes: map[string]*route{}, orderTimeout: OrderTimeout,
		fails:  newLimits(rate.Every(failEvery), failBurst),
		checks: newLimits(checksPerSecond, checksBurst), reads: newLimits(readsPerSecond, readsBurst),
		orders: newLimits(ordersPerSecond, ordersBurst),
	}
	a.huma = newHuma(a, o.Version)
	a.addReads()
	a.addCleanups()
	a.addOrders()
	a.addProbes()
	return a
}
