package httpapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func (a *api) addReads() {
	get := func(path, summary string) huma.Operation {
		return huma.Operation{Method: http.MethodGet, Path: "/api/v1" + path, Summary: summary}
	}
	handle(a, public, get("/cache/health", "Whether the daemon does its job: as /readyz"), a.health)
	handle(a, ScopeRead, get("/cache/status", "Connections, counts, lag, guard, leader"), a.status)
	handle(a, ScopeRead, get("/cache/celery-tasks", "What Redis holds, with the verdict and the reason"), a.tasks)
	handle(a, ScopeRead, get("/tasks/{id}", "Whether the task's row exists: the check before it runs"), a.check)
	handle(a, ScopeRead, get("/tasks/{id}/history", "What was removed of the task, when and why"), a.history)
	a.routes["GET /api/v1/tasks/{id}"].limits = a.checks
}

// Health is the data of GET /cache/health.
type Health struct {
	Status string `json:"status" enum:"healthy,unhealthy"`
}

func (a *api) health(context.Context, *struct{}) (*output[Health], error) {
	ok, why := a.o.Ready()
	if !ok {
		return nil, problem(http.StatusServiceUnavailable, "%s", why)
	}
	return answered(Health{"healthy"}, why), nil
}

func (a *api) status(ctx context.Context, _ *struct{}) (*output[any], error) {
	if a.o.Services.Reader == nil {
		return nil, errNotAvailable
	}
	status, err := a.o.Services.Reader.Status(ctx)
	return answered(status, "the status"), err
}

type tasksInput struct {
	OrphanedOnly bool   `query:"show_orphaned_only" doc:"only tasks whose row is gone"`
	Limit        int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"about how many tasks a page has; it may be a few over"`
	Cursor       string `query:"cursor" maxLength:"512" doc:"next_cursor of the page before"`
}

func (a *api) tasks(ctx context.Context, in *tasksInput) (*output[reconciler.TaskPage], error) {
	if a.o.Services.Reader == nil {
		return nil, errNotAvailable
	}
	page, err := a.o.Services.Reader.Tasks(ctx, in.OrphanedOnly, in.Limit, in.Cursor)
	page.Tasks = notNil(page.Tasks)
	message := fmt.Sprintf("%d tasks", page.Count)
	if page.NextCursor != "" {
		message += "; there are more: give next_cursor as cursor"
	}
	return answered(page, message), err
}

// TaskPath is the parameter of routes about one task.
type TaskPath struct {
	ID string `path:"id" minLength:"1" maxLength:"512" doc:"the Celery task id"`
}

type checkInput struct {
	TaskPath
	Table string `query:"table" maxLength:"512" doc:"schema.table of a binding, where the id does not tell"`
	Key   string `query:"key" maxLength:"512" doc:"the row's key, where the id is not it"`
	Name  string `query:"name" maxLength:"512" doc:"the Celery task name: then absence counts only for a binding that has it in its names"`
}

func (a *api) check(ctx context.Context, in *checkInput) (*output[reconciler.CheckReport], error) {
	if a.o.Services.Reader == nil {
		return nil, errNotAvailable
	}
	report, err := a.o.Services.Reader.Check(ctx, in.ID, reconciler.RowQuery{Table: in.Table, Key: in.Key, Name: in.Name})
	return answered(report, report.Reason), err
}

func (a *api) history(ctx context.Context, in *TaskPath) (*output[any], error) {
	if a.o.Services.Reader == nil {
		return nil, errNotAvailable
	}
	entries, err := a.o.Services.Reader.History(ctx, in.ID)
	return answered(entries, "what is remembered of the task"), err
}

// errNotAvailable answers for a service that is not there.
var errNotAvailable = problem(http.StatusServiceUnavailable, "not available")

// notNil makes an empty list [] in JSON, where nil would be null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
