package httpapi

import (
	"context"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Services carry out what the routes are asked for. Their errors decide on the
// status: GuardedError, ErrPaused, ErrBusy 409; InputError 422; ErrUnreachable 503;
// anything else 500.
type Services struct {
	Reader  Reader
	Cleaner Cleaner
	Purger  Purger
	Orders  Orders
}

// Reader answers questions. All of it is fast enough to be waited for.
type Reader interface {
	// Status is the data of GET /cache/status; it holds what it knows where a store is away.
	Status(ctx context.Context) (any, error)
	// Tasks lists up to limit tasks after cursor; "" begins.
	Tasks(ctx context.Context, orphanedOnly bool, limit int, cursor string) (reconciler.TaskPage, error)
	// Check tells whether a task's row exists.
	Check(ctx context.Context, id string, row reconciler.RowQuery) (reconciler.CheckReport, error)
	// History lists what is remembered of a task's removals.
	History(ctx context.Context, id string) (any, error)
}

// Cleaner cleans; one cleanup of a kind at a time, else ErrBusy.
type Cleaner interface {
	CleanupOrphaned(ctx context.Context, c reconciler.Cleanup) (reconciler.OrphanReport, error)
	// CleanupExpired removes results older than hours.
	CleanupExpired(ctx context.Context, hours int, c reconciler.Cleanup) (reconciler.ExpiredReport, error)
	CleanupDatabase(ctx context.Context, c reconciler.Cleanup) (reconciler.DatabaseReport, error)
	FullCleanup(ctx context.Context, c reconciler.Cleanup) (reconciler.FullReport, error)
}

// Purger empties queues.
type Purger interface {
	// PurgeQueues empties these queues, all that are known where queues is nil.
	PurgeQueues(ctx context.Context, queues []string, includeUnacked bool, c reconciler.Cleanup) (reconciler.QueuesReport, error)
}

// Orders are what an operator tells the daemon; by is who did.
type Orders interface {
	// Restore puts back what was removed of a task, and holds it for that long.
	Restore(ctx context.Context, id string, hold time.Duration, dryRun bool) (any, error)
	Pause(ctx context.Context, by string) (any, error)
	// Resume ends a pause; acceptAbsent lets through once what the guard holds.
	Resume(ctx context.Context, acceptAbsent bool, by string) (any, error)
	// Initialize reconnects and asks the leader for a pass over both stores, whose end
	// it waits for.
	Initialize(ctx context.Context, wait time.Duration) (reconciler.InitializeReport, error)
}

// Audit keeps every order.
type Audit interface {
	// Begin writes an order down before it is carried out; an error means that it must not
	// be. done writes how it ended. counts is its report: one with Counts() is asked for them.
	Begin(ctx context.Context, e reconciler.AuditEntry) (done func(counts any, err error) error, err error)
}
