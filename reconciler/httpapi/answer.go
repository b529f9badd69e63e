package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Answer is the body of every answer but those of /metrics and /openapi.json; the
// seed's clients expect this form.
type Answer[T any] struct {
	Success bool   `json:"success"`
	Data    T      `json:"data"`
	Message string `json:"message" doc:"for people"`
}

// output is an answer, as huma wants it.
type output[T any] struct{ Body Answer[T] }

func answered[T any](data T, message string) *output[T] {
	return &output[T]{Answer[T]{true, data, message}}
}

// Problem is the body of an answer that is an error.
type Problem struct {
	status int
	header http.Header

	Success bool   `json:"success" doc:"false"`
	Data    *int   `json:"data" doc:"null"`
	Message string `json:"message" doc:"what is wrong, and what to do"`
}

// Error is the message.
func (p *Problem) Error() string { return p.Message }

// GetStatus is the HTTP status, for huma.
func (p *Problem) GetStatus() int { return p.status }

// GetHeaders are further headers, for huma.
func (p *Problem) GetHeaders() http.Header { return p.header }

// with adds a header.
func (p *Problem) with(name, value string) *Problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header.Set(name, value)
	return p
}

func problem(status int, format string, args ...any) *Problem {
	return &Problem{status: status, Message: fmt.Sprintf(format, args...)}
}

// huma's errors take our form, and "Confirm" is not "confirm". They are bare variables,
// the same for all APIs.
func init() {
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		for i, err := range errs {
			var detail huma.ErrorDetailer
			if errors.As(err, &detail) { // without its value, which may be a secret in the wrong place
				d := detail.ErrorDetail()
				err = errors.New(strings.TrimPrefix(strings.TrimPrefix(d.Location, "query."), "path.") + ": " + d.Message)
			}
			message += []string{": ", "; "}[min(i, 1)] + err.Error()
		}
		return &Problem{status: status, Message: message}
	}
}

// write answers with a problem outside of huma.
func (p *Problem) write(w http.ResponseWriter) {
	for name, values := range p.header {
		w.Header()[name] = values
	}
	writeJSON(w, p.status, p)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client is gone: nobody to tell
}

func tooMany(wait time.Duration, what string) *Problem {
	seconds := strconv.Itoa(max(1, int(math.Ceil(wait.Seconds()))))
	return problem(http.StatusTooManyRequests, "%s; try again in %s s", what, seconds).with("Retry-After", seconds)
}

// failed turns an error of the reconciler into an answer.
func (a *api) failed(ctx context.Context, err error) *Problem {
	var (
		p       *Problem
		guarded *reconciler.GuardedError
		input   *reconciler.InputError
	)
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &guarded):
		return problem(http.StatusConflict, "%s; see GET /api/v1/cache/status; if all is right, go past it with ?force=true, or, where the guard has tripped, let it through with POST /api/v1/resume?accept_absent=true (both need the scope admin)", guarded)
	case errors.Is(err, reconciler.ErrPaused):
		return problem(http.StatusConflict, "%s; POST /api/v1/resume ends that", err)
	case errors.Is(err, reconciler.ErrBusy):
		return problem(http.StatusConflict, "%s; wait until it has ended", err)
	case errors.As(err, &input):
		return problem(http.StatusUnprocessableEntity, "%s", input)
	case errors.Is(err, reconciler.ErrUnreachable):
		return problem(http.StatusServiceUnavailable, "a store cannot be reached: %s", err).with("Retry-After", "5")
	case errors.Is(err, context.DeadlineExceeded):
		return problem(http.StatusServiceUnavailable, "it took too long and was stopped; what is done is done, and doing it again goes on from there")
	case errors.Is(err, context.Canceled):
		return problem(http.StatusServiceUnavailable, "it was interrupted; what is done is done, and doing it again goes on from there")
	}
	a.o.Log.ErrorContext(ctx, "an HTTP request failed", "error", err)
	return problem(http.StatusInternalServerError, "internal error; the daemon's log has it")
}
