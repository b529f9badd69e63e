package celery

// Tombstone is what pull.lua puts in the place of a message.
const (
	Tombstone    = tombstone
	TombstoneTag = tombstoneTag
)

// TailDate is the date of a large result by its last bytes.
var TailDate = tailDate

// Complete tells whether a worker survives an element.
func Complete(element string) bool { return complete(element) }

// SetNear says how far from an end of a list an element is taken out.
func (b *Broker) SetNear(n int64) { b.near = n }

// The parts of Arrivals, each for itself.
var (
	Changed  = (*Broker).changed
	Arrived  = (*Broker).arrived
	Returned = (*Broker).returned
)
