// Package keyspace watches Redis for result and companion keys that appear, and for
// lists of the broker in which messages appear: two kinds of one source (kind.go).
//
// Invariant: from the call of ready on, each write of a watched key is either
// offered to the sink or followed by a gap. The pub/sub of Redis delivers at most
// once and says nothing of what it loses, so every doubt ends the subscription;
// the next one is confirmed and proven by a canary before the gap is told, so that
// the resync that it causes overlaps with what is watched.
//
// The states of Run:
//
//	              flags, subscribe, confirmation, canary: each within 3 s
//	connecting ──────────────────────────────────────────────▶ watching
//	  ▲    │ no answer: back off, for ever                        │
//	  │    └──┐                                                   │ reconnect, resubscribe,
//	  │ ◀─────┘                                                   │ silent, canary, identity
//	  └───────────────────────────────────────────────────────────┘
//
// and of the way in which it watches, best first:
//
//	keyspace events ──▶ celery publish ──▶ scan only
//	       ▲  missing right or flag │            │ nothing but a resync sees writes
//	       └── tried again each minute ──────────┘
//
// One goroutine receives and only parses and inserts into a bounded set, which
// merges the events of a key; another drains the set into the sink. When the set
// overflows it is emptied, which is a gap.
//
// Not seen: FLUSHDB (it removes, there is nothing to look at) and SWAPDB, which
// emits no event and leaves pub/sub and canary as they are. Keys that come in by
// SWAPDB are found by the next periodic resync.
package keyspace
