package reconciler

import (
	"context"
	"errors"
	"time"
)

// Cleanup is how an operator wants something cleaned. An explicit cleanup acts
// whatever policy.remove says.
type Cleanup struct {
	// Trigger is ByCLI or ByAPI; it is kept in the records of what is removed.
	Trigger Trigger
	// Scheduled: the daemon does it by itself, so that policy.remove holds for it.
	Scheduled bool
	// DryRun: nothing is changed, only counted.
	DryRun bool
	// Force goes past the guard, but never to another database than that of the
	// first start.
	Force bool
	// Patience is for how long what waits for open transactions is waited for beyond
	// the grace; 0 for as long as they hold it (policy.inflight_limit).
	Patience time.Duration
	// MayGoOn says, now and then, why what cannot be undone must stop: ErrPaused, ErrStale,
	// or that it cannot be asked. nil for never.
	MayGoOn func(ctx context.Context) error
	// Progress is told how far the work is, from one goroutine at a time; nil for nobody.
	Progress func(Progress)
}

// Progress is how far long work is.
type Progress struct {
	// Stage is what it is at, for people.
	Stage string
	// Done of Total units; Total is 0 where that is not known.
	Done, Total int64
}

func (c Cleanup) tell(p Progress) {
	if c.Progress != nil {
		c.Progress(p)
	}
}

// reason is why a pass is made.
func (c Cleanup) reason() string {
	if c.Scheduled {
		return "full cleanup"
	}
	return string(c.Trigger)
}

// GuardedError is what an explicit cleanup answers where the guard (R5) holds it.
type GuardedError struct{ Reason string }

func (e *GuardedError) Error() string { return "the guard holds this: " + e.Reason }

// ErrPaused says that an operator has paused all removals.
var ErrPaused = errors.New("removals are paused")

// ErrBusy says that another cleanup of the kind is under way.
var ErrBusy = errors.New("another cleanup is under way")

// ExpiredReport is the outcome of a cleanup of expired results.
type ExpiredReport struct {
	// Cleaned results were older than MaxAgeHours by their date_done.
	Cleaned     int64 `json:"cleaned_count"`
	MaxAgeHours int   `json:"max_age_hours"`
	// Scanned are the result keys looked at. Undated have no date that can be read;
	// TTLSet of these had no TTL either, and have one now.
	Scanned int64 `json:"scanned_count"`
	Undated int64 `json:"undated_count"`
	TTLSet  int64 `json:"ttl_set_count"`
	// Changed were written again meanwhile, and were left.
	Changed int64 `json:"changed_count"`
	// Held were restored by an operator, and are held from removal.
	Held   int64 `json:"held_count"`
	DryRun bool  `json:"dry_run"`
}

// DatabaseReport is the outcome of a cleanup of child rows whose parent row is gone.
type DatabaseReport struct {
	// Tables counts the rows removed (dry run: found), by schema.table.
	Tables map[string]int64 `json:"cleanup_stats"`
	Total  int64            `json:"total_cleaned"`
	// Left counts the rows without a parent that were left: locked by others, or
	// written since the cleanup began. The next one meets them.
	Left map[string]int64 `json:"left,omitempty"`
	// Skipped says why a table is never cleaned, Errors what kept one from being
	// cleaned, or stopped that midway; by schema.table.
	Skipped map[string]string `json:"skipped,omitempty"`
	Errors  map[string]string `json:"errors,omitempty"`
	// Guard is what would hold a cleanup now (dry run alone), "" for nothing.
	Guard  string `json:"guard,omitempty"`
	DryRun bool   `json:"dry_run"`
}

// QueuesReport is the outcome of emptying queues.
type QueuesReport struct {
	Queues []QueueReport `json:"queues"`
	// Cleaned messages were taken out, in all.
	Cleaned int64 `json:"cleaned_count"`
	DryRun  bool  `json:"dry_run"`
}

// QueueReport is one queue.
type QueueReport struct {
	Queue string `json:"queue"`
	// Messages wait in its lists, of all priorities; Unacked are in workers' hands.
	Messages int64 `json:"messages"`
	Unacked  int64 `json:"unacked"`
	// Tasks counts both by the task's name; "" where that cannot be read.
	Tasks map[string]int64 `json:"tasks"`
	// Cleaned were taken out.
	Cleaned int64 `json:"cleaned_count"`
}

// FullReport is the outcome of a full cleanup: orphaned, expired, database, in this order.
type FullReport struct {
	Orphaned *OrphanReport   `json:"orphaned_tasks"`
	Expired  *ExpiredReport  `json:"expired_results"`
	Database *DatabaseReport `json:"database_orphans"`
	Started  time.Time       `json:"started_at"`
	Ended    time.Time       `json:"ended_at"`
	// Errors are what went wrong in a part, by its name; the others are done.
	Errors map[string]string `json:"errors,omitempty"`
	DryRun bool              `json:"dry_run"`

	failure error // all that is in Errors
}

// OrphanReport is the outcome of a cleanup of orphaned tasks.
type OrphanReport struct {
	// Cleaned tasks had something removed (dry run: would have).
	Cleaned int64 `json:"cleaned_count"`
	// Tasks are what was found of them, at most MaxListed; Truncated: there are more.
	Tasks     []TaskInfo `json:"orphaned_tasks"`
	Truncated bool       `json:"truncated,omitempty"`
	// Removed counts artifacts by kind; Held, tasks by what holds them.
	Removed map[ArtifactKind]int64 `json:"removed"`
	Held    map[HeldBy]int64       `json:"held"`
	// Guard is why nothing on evidence absent was removed, "" where it did not hold.
	Guard  string `json:"guard,omitempty"`
	DryRun bool   `json:"dry_run"`
}

// MaxListed is how many tasks a report lists.
const MaxListed = 1000

// TaskInfo is one task in Redis, and what is thought of it.
type TaskInfo struct {
	// ID is the task's id; of a companion key, the key of its row.
	ID string `json:"task_id"`
	// Kind of the artifact: results, companions, messages, unacked.
	Kind ArtifactKind `json:"kind"`
	// Key is its Redis key: of a message, its list.
	Key string `json:"key,omitempty"`
	// Name is the Celery task name, Status its state, where the artifact tells them.
	Name   string `json:"name,omitempty"`
	Status string `json:"status,omitempty"`
	// Table is that of the binding that it is thought to be of.
	Table string `json:"table,omitempty"`
	// Orphaned: its row is gone.
	Orphaned bool `json:"orphaned"`
	// Verdict is living (the row exists), orphaned, unknown (nothing tells whose it is)
	// or foreign (another task's); Reason is for people.
	Verdict  string   `json:"verdict"`
	Evidence Evidence `json:"evidence,omitempty"`
	HeldBy   HeldBy   `json:"held_by,omitempty"`
	Reason   string   `json:"reason"`
}
