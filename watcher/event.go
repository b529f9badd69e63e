package watcher

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// The names of the sources: values of the metric attribute source.
const (
	SourceRedis    = "redis"
	SourceBroker   = "broker"
	SourcePostgres = "postgres"
)

// The ways of watching: values of Health.Mode and of the metric attribute mode.
const (
	ModeKeyspace    = "keyspace events"
	ModePublish     = "celery publish"
	ModeScan        = "scan only"
	ModeReplication = "logical replication"
)

// GapSlot begins the reasons of gaps for which the replication slot was made anew.
const GapSlot = "slot "

// Event is a hint that names something to look at. It carries no truth: whoever
// takes it from the queue reads both stores anew.
type Event struct {
	Subject reconciler.Subject
	// Spelling is the id as it was seen, where it is not one of
	// reconciler.Spellings of Subject.ID; else "".
	Spelling string
	// Message is what was seen, where Subject is a task's messages; nil for none.
	Message *reconciler.Message
	Trigger reconciler.Trigger
	// Seen is when the source saw it, by our clock.
	Seen time.Time
	// Deletion is the evidence that came with it, nil for none.
	Deletion *reconciler.Deletion
	// Inner: another queue of ours hands it on, which has bounded how many there are.
	Inner bool
	// Cause is the span of the pass that found it.
	Cause trace.SpanContext
	// Accepted: an operator let the pass that found it through the guard.
	Accepted bool
	// Done is called exactly once, from any goroutine, when nothing of the event
	// is left to do, or when a later event that was merged with it stands for it.
	// It must not block. nil where the source does not care.
	Done func()
}

// Sink is where a source puts what it sees. All methods are safe for use by
// several goroutines.
type Sink interface {
	// Offer merges e into the queue, or reports at once that there is no room.
	Offer(e Event) bool
	// Room is a channel that is closed when there may be room again. Get it before
	// the Offer that may be refused, or offer once more after: else the wait may
	// begin too late.
	Room() <-chan struct{}
	// Gap says that something may have been missed, and why: a short constant
	// such as "reconnect". It leads to a resync. It never blocks.
	Gap(source, reason string)
	// Report publishes the state of a source. It never blocks.
	Report(source string, h Health)
}

// Health is the state of a source, for status and metrics.
type Health struct {
	// Connected: events flow, as the last canary or answer has shown.
	Connected bool `json:"connected"`
	// Mode is which way of watching is in use, such as "keyspace events"; "" while
	// there is no subscription.
	Mode string `json:"mode,omitempty"`
	// Err is why it is not connected.
	Err string `json:"error,omitempty"`
	// Position, RetainedWAL and SafeWAL are of the slot: bytes; SafeWAL -1 for no limit.
	Position    reconciler.LSN `json:"-"`
	RetainedWAL int64          `json:"retained_wal,omitempty"`
	SafeWAL     int64          `json:"safe_wal,omitempty"`
	// ClockOffset is the server's clock minus ours, of PostgreSQL.
	ClockOffset time.Duration `json:"clock_offset_ns,omitempty"`
	// StuckSince is when the probe was sent that does not come back, zero for none.
	StuckSince time.Time `json:"stuck_since,omitzero"`
}

// Source watches a store. Run returns when ctx ends, after its goroutines have
// ended, and before that only with an error that it cannot mend by itself.
// ready is called once, when the source is first subscribed, so that whatever
// changes from then on is either seen or said to be a gap.
type Source interface {
	Run(ctx context.Context, sink Sink, ready func()) error
}

// Session is the hold of the replication slot: while it lasts, this copy leads.
type Session interface {
	// Run streams into sink until ctx ends, when it confirms what is done and
	// closes, or until the session is lost.
	Run(ctx context.Context, sink Sink) error
	// Quiesce stops reading for good; what has been read can still be confirmed.
	Quiesce()
	// Position is how far the log has been read and handed to the sink.
	Position() reconciler.LSN
}

// Leadership gives the session to one copy at a time.
type Leadership interface {
	// Acquire blocks as a standby while another copy holds the slot (standby is
	// called with its holder, each time that it is seen), and returns an error
	// only where waiting does not help.
	Acquire(ctx context.Context, standby func(holder string)) (Session, error)
}
