// Package watcher runs the daemon's loop: sources put events into a queue, workers
// take them in batches to the reconciler, and what is finished is acknowledged.
//
// Its invariant: whatever a source has seen is either in the queue, or finished,
// or declared a gap, which leads to a resync. The states of a copy:
//
//	starting ── slot in use ──▶ standby
//	   │  ▲                        │
//	   │  └───── slot is free ─────┘
//	   ▼
//	leader: claim the epoch, subscribe, resync, then events
//	   │
//	   └── session lost, or another epoch ──▶ starting
//
// A term as the leader shares nothing with the one before: its queue is empty, and
// what was not acknowledged comes again from the slot and from the resync.
package watcher
