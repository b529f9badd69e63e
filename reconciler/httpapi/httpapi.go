// Package httpapi is the HTTP side of the daemon. For now it answers the probes
// and hands out the metrics; nothing that it serves needs, or shows, a secret.
package httpapi

import (
	"encoding/json"
	"net/http"
)

// Options are what the handler answers from.
type Options struct {
	// Ready tells whether the daemon does its job, and why (not).
	Ready func() (ok bool, why string)
	// Metrics serves /metrics.
	Metrics http.Handler
}

// answer is the body of every answer; the seed's clients expect this form.
type answer struct {
	Success bool   `json:"success"`
	Data    any    `json:"data,omitempty"`
	Message string `json:"message"`
}

// New routes the requests. /livez depends on nothing; /readyz is 200 once the
// sources are subscribed, or the copy stands by.
func New(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, answer{Success: true, Message: "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ok, why := o.Ready()
		status := http.StatusOK
		if !ok {
			status = http.StatusServiceUnavailable
		}
		write(w, status, answer{Success: ok, Message: why})
	})
	mux.Handle("GET /metrics", o.Metrics)
	return mux
}

func write(w http.ResponseWriter, status int, a answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(a) // the client is gone: nobody to tell
}
