package reconciler

import (
	"context"
	"errors"
	"time"
)

// ArtifactKind is what an artifact is; it is also the label of what was removed.
type ArtifactKind string

// The kinds of artifacts.
const (
	ResultKey      ArtifactKind = "results"
	CompanionKey   ArtifactKind = "companions"
	QueuedMessage  ArtifactKind = "messages"
	UnackedMessage ArtifactKind = "unacked"
)

// Artifact is anything of a task in Redis.
type Artifact struct {
	Kind ArtifactKind
	Key  string
	// Stamp tells this value from any that replaces it.
	Stamp Stamp
	// Name is the Celery task name that the artifact itself tells, "" for none.
	Name string
	// Refs are the rows that it names by the task's arguments.
	Refs []RowRef
	// State is the task's state, where a result tells it; Ended: it has ended.
	State string
	Ended bool
	// Message is what it is, where Kind is QueuedMessage or UnackedMessage. Its stamp
	// is the delivery tag: it stays the same message wherever it is.
	Message *Message
	// Left: a chord needs it where it is, to end with an error.
	Left bool
}

func messageArtifact(m *Message) Artifact {
	return Artifact{Kind: m.Place.Kind, Stamp: Stamp{Head: m.Place.Tag}, Name: m.Name, Refs: m.Refs, Message: m}
}

// Stamp identifies a string value without holding much of it: a value of up to
// StampWhole bytes whole, of a larger one its length, first and last bytes
// (where Celery writes date_done, which every write changes).
type Stamp struct {
	Len        int64
	Head, Tail string
}

// StampWhole is the size in bytes up to which a stamp is the value itself.
const StampWhole = 16 << 10

// StampEdge is how many bytes of either end a stamp holds of a larger value.
const StampEdge = 4 << 10

// Found is what Redis holds of a subject.
type Found struct {
	Artifacts []Artifact
	// Deleted: a record says that we removed this subject on evidence deleted.
	Deleted bool
	// HoldUntil: restored, and not to be removed before then; zero for none.
	HoldUntil time.Time
	// Ended: a record says that its result, which we removed, was of a task that had
	// ended. Revoked: it has been revoked before.
	Ended, Revoked bool
	// Taken: a record says that we took a message of it out of a queue.
	Taken bool
	// Table and Key are the row that a record is about, "" for none.
	Table, Key string
}

// Look asks for the artifacts of a subject.
type Look struct {
	Subject Subject
	// Spelling is the id as it was seen, where Spellings does not give it.
	Spelling string
	// Refs are rows that are the task's too, whatever its id is.
	Refs []RowRef
	// Message was seen of it, without its bytes (Message.Bare); nil for none.
	Message *Message
}

// Removal asks for artifacts of one subject to be removed, all in one step, and
// only while each is what its stamp says.
type Removal struct {
	Subject   Subject
	Artifacts []Artifact
	Record    Record
	// Looked is when its row was read: over RowsGood later nothing is removed. Zero for
	// no such limit.
	Looked time.Time
}

// Revival tells that the row of a subject with a record existed.
type Revival struct {
	Subject Subject
	// Looked is when it was read. What the record tells of a later time stays (late):
	// the row was deleted again meanwhile, or an operator has restored what was its.
	Looked time.Time
}

// RowsGood is for how long a look at a row is good, by the clock of the Redis where a
// removal arrives: one that has waited longer, in a connection or in a process that was
// stopped, is refused, since the row may have been inserted again. No look takes longer.
const RowsGood = 10 * time.Second

// Record is what is remembered of a removal: tombstone, undo and history.
type Record struct {
	Evidence   Evidence  `json:"evidence"`
	Table      string    `json:"table,omitempty"`
	Key        string    `json:"key,omitempty"`
	Trigger    Trigger   `json:"trigger"`
	LSN        string    `json:"lsn,omitempty"`
	XID        uint32    `json:"xid,omitempty"`
	CommitTime time.Time `json:"commit_time,omitzero"`
	TraceID    string    `json:"trace_id,omitempty"`
	Removed    time.Time `json:"removed_at"`
	// Ended: the removed result was of a task that had ended.
	Ended bool `json:"ended,omitempty"`
}

// Burial asks for the record of a task whose messages are about to be removed.
type Burial struct {
	// Task is the subject of the record.
	Task   Subject
	Record Record
	// Revoke asks for the right to revoke it, which is given once.
	Revoke bool
	// Looked is when its row was read, as Removal.Looked.
	Looked time.Time
	// Count is what has been removed since the record was written; then nothing but
	// that is noted.
	Count map[ArtifactKind]int
	// Heard is how many workers heard of its revoke, nil where that is not known yet;
	// it is noted like Count.
	Heard *int
}

// Buried is the answer: Removed where the record is written, Stale, Paused, Late or Held.
type Buried struct {
	Status RemoveStatus
	// Revoke: it is to be revoked now.
	Revoke bool
}

// RemoveStatus is how a removal ended.
type RemoveStatus string

// The ways in which a removal ends.
const (
	// Removed: every artifact that was still there is gone, and recorded.
	Removed RemoveStatus = "removed"
	// Changed: at least one artifact was another by now, and was left.
	Changed RemoveStatus = "changed"
	// Stale: another leader has taken over; nothing was removed.
	Stale RemoveStatus = "stale"
	// Paused: an operator paused removals; nothing was removed.
	Paused RemoveStatus = "paused"
	// Held: restored by an operator; nothing was removed.
	Held RemoveStatus = "held"
	// Late: its row was read over RowsGood ago; nothing was removed.
	Late RemoveStatus = "late"
)

// RemoveResult is what a removal did.
type RemoveResult struct {
	Status RemoveStatus
	// Count is how many artifacts of each kind were removed.
	Count map[ArtifactKind]int
}

// Artifacts is Redis as the reconciler needs it. Its methods answer in the order
// of what they were asked, and fail as a whole.
type Artifacts interface {
	Look(ctx context.Context, looks []Look) ([]Found, error)
	// Remove refuses with Stale where epoch is not the newest leader's.
	Remove(ctx context.Context, epoch uint64, removals []Removal) ([]RemoveResult, error)
	// Bury writes records before messages are removed, since those are in another
	// place: what comes back of the task later is known by its record.
	Bury(ctx context.Context, epoch uint64, burials []Burial) ([]Buried, error)
	// Revive tells of subjects whose row exists though a record says that it was
	// deleted, or holds it: the deletion is no evidence any more, the hold is over. It
	// refuses with ErrStale where epoch is not the newest leader's.
	Revive(ctx context.Context, epoch uint64, revivals []Revival) (late []bool, err error)
}

// RowState is what the database says of a subject's row.
type RowState struct {
	// Exists: a row of some binding is this subject's.
	Exists bool
	// Candidates are the bindings whose column types can hold the subject's id.
	Candidates BindingSet
	// Keyed are those of them in which the id can be the row's key: the bindings
	// that match by celery_id, and the binding of a Row subject.
	Keyed BindingSet
	// Argued are those of them in which a Ref of the subject can be the row's key.
	Argued BindingSet
}

// RowLook is the answer of one look at the rows.
type RowLook struct {
	// Snapshot was taken before the rows were read: what it sees, the rows show.
	Snapshot Snapshot
	// States are in the order of the subjects.
	States []RowState
}

// Rows is PostgreSQL as the reconciler needs it: the primary, READ COMMITTED,
// row_security off. Any error means that nothing is known.
type Rows interface {
	Look(ctx context.Context, looks []Look) (RowLook, error)
	// Running lists what is under way now.
	Running(ctx context.Context) (Running, error)
	// EmptyTables are the bindings whose table has no row.
	EmptyTables(ctx context.Context) (BindingSet, error)
	// Reset forgets all connections: the server may be another one now.
	Reset()
}

// Hinted is an error that an operator has to mend, with how.
type Hinted struct {
	Err error
	// Hint is what to do: the exact SQL or Redis command where there is one.
	Hint string
}

func (h *Hinted) Error() string { return h.Err.Error() + "\n  fix: " + h.Hint }

func (h *Hinted) Unwrap() error { return h.Err }

// Hint adds what to do to an error.
func Hint(err error, hint string) error { return &Hinted{Err: err, Hint: hint} }

// ErrUnreachable marks errors of a store that cannot be reached (exit code 5).
var ErrUnreachable = errors.New("unreachable")
