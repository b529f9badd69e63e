package reconciler

import "time"

// Evidence is why a row is believed to be gone.
type Evidence string

// The kinds of evidence.
const (
	// Deleted: the DELETE was seen in the write-ahead log.
	Deleted Evidence = "deleted"
	// Absent: no such row, and no DELETE seen.
	Absent Evidence = "absent"
	// Expired tells nothing of a row: the result was too old (CleanupExpired).
	Expired Evidence = "expired"
)

// Trigger is what made us look.
type Trigger string

// The triggers.
const (
	ByDelete Trigger = "pg_delete"
	ByEvent  Trigger = "redis_event"
	ByResync Trigger = "resync"
	ByAPI    Trigger = "api"
	ByCLI    Trigger = "cli"
)

// Remove says which evidence leads to a removal.
type Remove string

// The values of policy.remove.
const (
	RemoveAll     Remove = "all"
	RemoveDeleted Remove = "deleted"
	RemoveNone    Remove = "none"
)

// Policy is the section policy of the configuration.
type Policy struct {
	Remove Remove
	// Grace is how long a key without a row is left alone, from when it was seen.
	Grace time.Duration
	// InflightLimit is how long open transactions hold a weak removal; 0 for ever.
	InflightLimit time.Duration
	// MaxAbsentRatio of at least MinSample tasks may look orphaned before the guard trips.
	MaxAbsentRatio float64
	MinSample      int
	// RemoveChords: messages of a chord's members are removed like any other. Else
	// they are left and revoked, so that the chord ends with an error.
	RemoveChords bool
}
