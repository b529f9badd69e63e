package httpapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func (a *api) addCleanups() {
	handle(a, ScopeCleanup, post("/cache/cleanup/orphaned-tasks", "One pass now: remove what belongs to rows that are gone"), a.cleanOrphaned)
	handle(a, ScopeCleanup, post("/cache/cleanup/expired-results", "Remove results older than max_age_hours"), a.cleanExpired)
	handle(a, ScopeCleanup, post("/cache/cleanup/database-orphans", "Remove child rows whose parent row is gone"), a.cleanDatabase)
	handle(a, ScopePurge, post("/cache/cleanup/celery-queues", "Empty one queue, or all"), a.purge)
	handle(a, ScopeCleanup, post("/cache/cleanup/full", "Orphaned, expired, database, in this order"), a.cleanFull)
}

// DryRun is a parameter of every cleanup. (huma passes over embedded structs that are
// not exported.)
type DryRun struct {
	Dry bool `query:"dry_run" doc:"change nothing, only tell what would be done"`
}

// Guarded are the parameters of cleanups that the guard watches over.
type Guarded struct {
	DryRun
	Force bool `query:"force" doc:"go past the guard; needs the scope admin"`
}

// cleanup is what the reconciler is told.
func (in Guarded) cleanup(ctx context.Context) (reconciler.Cleanup, error) {
	if who := callerOf(ctx); in.Force && !who.Has(ScopeAdmin) {
		return reconciler.Cleanup{}, problem(http.StatusForbidden, "force: going past the guard needs the scope admin, which %s does not have", who.Name).
			with("WWW-Authenticate", `Bearer realm="orphanwatch", error="insufficient_scope", scope="admin"`)
	}
	return reconciler.Cleanup{Trigger: reconciler.ByAPI, DryRun: in.Dry, Force: in.Force}, nil
}

// clean is an order that the cleaner carries out.
func clean[T any](ctx context.Context, a *api, e reconciler.AuditEntry, in Guarded, do func(context.Context, reconciler.Cleanup) (T, error), message func(T) string) (*output[T], error) {
	if a.o.Services.Cleaner == nil {
		return nil, errNotAvailable
	}
	c, err := in.cleanup(ctx)
	if err != nil {
		return nil, err
	}
	e.DryRun, e.Force = in.Dry, in.Force
	return order(ctx, a, e, func(ctx context.Context) (T, error) { return do(ctx, c) }, message)
}

func (a *api) cleanOrphaned(ctx context.Context, in *Guarded) (*output[reconciler.OrphanReport], error) {
	return clean(ctx, a, reconciler.AuditEntry{Action: "cleanup-orphaned"}, *in, func(ctx context.Context, c reconciler.Cleanup) (reconciler.OrphanReport, error) {
		r, err := a.o.Services.Cleaner.CleanupOrphaned(ctx, c)
		r.Tasks = notNil(r.Tasks)
		return r, err
	}, func(r reconciler.OrphanReport) string {
		text := would(in.Dry, fmt.Sprintf("%d orphaned tasks cleaned", r.Cleaned), fmt.Sprintf("%d orphaned tasks would be cleaned", r.Cleaned))
		if r.Guard != "" {
			text += "; the guard holds others: " + r.Guard
		}
		return text
	})
}

type expiredInput struct {
	MaxAgeHours int `query:"max_age_hours" minimum:"1" maximum:"168" default:"24" doc:"older than this, by date_done"`
	DryRun
}

func (a *api) cleanExpired(ctx context.Context, in *expiredInput) (*output[reconciler.ExpiredReport], error) {
	e := reconciler.AuditEntry{Action: "cleanup-expired", Filter: map[string]any{"max_age_hours": in.MaxAgeHours}}
	return clean(ctx, a, e, Guarded{DryRun: in.DryRun}, func(ctx context.Context, c reconciler.Cleanup) (reconciler.ExpiredReport, error) {
		return a.o.Services.Cleaner.CleanupExpired(ctx, in.MaxAgeHours, c)
	}, func(r reconciler.ExpiredReport) string {
		return would(in.Dry, fmt.Sprintf("%d expired results cleaned", r.Cleaned), fmt.Sprintf("%d expired results would be cleaned", r.Cleaned))
	})
}

func (a *api) cleanDatabase(ctx context.Context, in *Guarded) (*output[reconciler.DatabaseReport], error) {
	return clean(ctx, a, reconciler.AuditEntry{Action: "cleanup-database"}, *in, func(ctx context.Context, c reconciler.Cleanup) (reconciler.DatabaseReport, error) {
		return a.o.Services.Cleaner.CleanupDatabase(ctx, c)
	}, func(r reconciler.DatabaseReport) string {
		return would(in.Dry, fmt.Sprintf("%d child rows cleaned", r.Total), fmt.Sprintf("%d child rows would be cleaned", r.Total)) + inPart(r.Failed())
	})
}

func (a *api) cleanFull(ctx context.Context, in *Guarded) (*output[reconciler.FullReport], error) {
	return clean(ctx, a, reconciler.AuditEntry{Action: "full-cleanup"}, *in, func(ctx context.Context, c reconciler.Cleanup) (reconciler.FullReport, error) {
		return a.o.Services.Cleaner.FullCleanup(ctx, c)
	}, func(r reconciler.FullReport) string {
		return would(in.Dry, "the full cleanup is done", "what a full cleanup would do") + inPart(r.Failed())
	})
}

func inPart(err error) string {
	if err == nil {
		return ""
	}
	return "; " + err.Error()
}

type purgeInput struct {
	DryRun
	Body struct {
		Confirm        string `json:"confirm" minLength:"1" maxLength:"512" doc:"the name of the queue that is to be emptied, or all"`
		IncludeUnacked bool   `json:"include_unacked,omitempty" doc:"also what workers have taken and not acknowledged: those tasks may be running"`
	}
}

// allQueues in confirm stands for all; a queue of that name is emptied with the others.
const allQueues = "all"

func (a *api) purge(ctx context.Context, in *purgeInput) (*output[reconciler.QueuesReport], error) {
	if a.o.Services.Purger == nil {
		return nil, errNotAvailable
	}
	if err := checkText("confirm", in.Body.Confirm); err != nil {
		return nil, err
	}
	var queues []string
	if in.Body.Confirm != allQueues {
		queues = []string{in.Body.Confirm}
	}
	e := reconciler.AuditEntry{
		Action: "purge-queues", DryRun: in.Dry,
		Filter: map[string]any{"queue": in.Body.Confirm, "include_unacked": in.Body.IncludeUnacked},
	}
	return order(ctx, a, e, func(ctx context.Context) (reconciler.QueuesReport, error) {
		r, err := a.o.Services.Purger.PurgeQueues(ctx, queues, in.Body.IncludeUnacked, reconciler.Cleanup{Trigger: reconciler.ByAPI, DryRun: in.Dry})
		r.Queues = notNil(r.Queues)
		return r, err
	}, func(r reconciler.QueuesReport) string {
		if in.Dry {
			return would(true, "", fmt.Sprintf("what is in %d queues", len(r.Queues)))
		}
		return fmt.Sprintf("%d messages cleaned out of %d queues", r.Cleaned, len(r.Queues))
	})
}
