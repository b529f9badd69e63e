package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func post(path, summary string) huma.Operation {
	return huma.Operation{Method: http.MethodPost, Path: "/api/v1" + path, Summary: summary}
}

func (a *api) addOrders() {
	handle(a, ScopeCleanup, post("/cache/initialize", "Reconnect, and make a pass over both stores"), a.initialize)
	handle(a, ScopeAdmin, post("/tasks/{id}/restore", "Put back what was removed of the task"), a.restore)
	handle(a, ScopeAdmin, post("/pause", "Stop all removals, by every copy, until resume"), a.pause)
	handle(a, ScopeAdmin, post("/resume", "Let removals go on"), a.resume)
}

// order carries out what changes something: it is written down before and after.
func order[T any](ctx context.Context, a *api, e reconciler.AuditEntry, do func(context.Context) (T, error), message func(T) string) (*output[T], error) {
	who := callerOf(ctx)
	e.Who, e.From = who.Name, who.from
	if a.o.Audit == nil {
		return nil, errNotAvailable
	}
	done, err := a.o.Audit.Begin(ctx, e)
	if err != nil {
		a.o.Log.ErrorContext(ctx, "an order is refused: the audit log cannot be written", "action", e.Action, "who", e.Who, "error", err)
		return nil, problem(http.StatusServiceUnavailable, "refused, nothing was done: the audit log (http.audit_file) cannot be written")
	}
	ended := false
	defer func() {
		if !ended { // it panicked
			_ = done(nil, fmt.Errorf("panic"))
		}
	}()
	report, err := do(ctx)
	ended = true
	text := ""
	if err == nil {
		text = message(report)
	}
	// The client may be gone: how it ended is written down all the same.
	if auditErr := done(report, err); auditErr != nil {
		a.o.Log.ErrorContext(ctx, "the outcome of an order could not be written to the audit log", "action", e.Action, "who", e.Who, "error", auditErr)
		text += "; its outcome could not be written to the audit log"
	}
	return answered(report, text), err
}

type initializeInput struct {
	Wait string `query:"wait" default:"20s" doc:"for how long the end of the pass is waited for; at most 5m"`
}

const maxWait = 5 * time.Minute

func (a *api) initialize(ctx context.Context, in *initializeInput) (*output[reconciler.InitializeReport], error) {
	if a.o.Services.Orders == nil {
		return nil, errNotAvailable
	}
	wait, err := time.ParseDuration(in.Wait)
	if err != nil || wait < 0 || wait > maxWait {
		return nil, problem(http.StatusUnprocessableEntity, "wait: is not a duration from 0s to 5m, such as 20s")
	}
	return order(ctx, a, reconciler.AuditEntry{Action: "initialize"}, func(ctx context.Context) (reconciler.InitializeReport, error) {
		return a.o.Services.Orders.Initialize(ctx, wait)
	}, func(r reconciler.InitializeReport) string {
		if !r.Resynced {
			return "a pass over both stores is asked for, and was not done in time"
		}
		return "a pass over both stores is done"
	})
}

type restoreInput struct {
	TaskPath
	Hold   string `query:"hold" default:"1h" doc:"for how long it is not removed again, such as 30m; at most 720h"`
	DryRun bool   `query:"dry_run" doc:"change nothing, only tell what would be done"`
}

const maxHold = 720 * time.Hour

func (a *api) restore(ctx context.Context, in *restoreInput) (*output[any], error) {
	if a.o.Services.Orders == nil {
		return nil, errNotAvailable
	}
	hold, err := time.ParseDuration(in.Hold)
	if err != nil || hold < 0 || hold > maxHold {
		return nil, problem(http.StatusUnprocessableEntity, "hold: is not a duration from 0s to 720h, such as 30m")
	}
	e := reconciler.AuditEntry{Action: "restore", Filter: map[string]any{"task_id": in.ID, "hold": hold.String()}, DryRun: in.DryRun}
	return order(ctx, a, e, func(ctx context.Context) (any, error) {
		return a.o.Services.Orders.Restore(ctx, in.ID, hold, in.DryRun)
	}, func(any) string { return would(in.DryRun, "what came back", "what would come back") })
}

func (a *api) pause(ctx context.Context, _ *struct{}) (*output[any], error) {
	if a.o.Services.Orders == nil {
		return nil, errNotAvailable
	}
	return order(ctx, a, reconciler.AuditEntry{Action: "pause"}, func(ctx context.Context) (any, error) {
		return a.o.Services.Orders.Pause(ctx, callerOf(ctx).Name)
	}, func(any) string { return "removals are paused; POST /api/v1/resume ends that" })
}

type resumeInput struct {
	AcceptAbsent bool `query:"accept_absent" doc:"what the guard reported may be removed, once"`
}

func (a *api) resume(ctx context.Context, in *resumeInput) (*output[any], error) {
	if a.o.Services.Orders == nil {
		return nil, errNotAvailable
	}
	e := reconciler.AuditEntry{Action: "resume", Filter: map[string]any{"accept_absent": in.AcceptAbsent}}
	return order(ctx, a, e, func(ctx context.Context) (any, error) {
		return a.o.Services.Orders.Resume(ctx, in.AcceptAbsent, callerOf(ctx).Name)
	}, func(any) string { return "removals go on" })
}

// would chooses between what was and what would be.
func would(dryRun bool, did, wouldDo string) string {
	if dryRun {
		return wouldDo + " (dry run: nothing was changed)"
	}
	return did
}
