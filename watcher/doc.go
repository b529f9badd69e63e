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
// There are two queues. One is of tasks and rows, whose keys have names; the other of
// their messages, which must be searched for: one worker takes all that is pending
// and makes one sweep over the broker for it. What such a sweep finds of a row hands
// its tasks on to the first queue. Beside them look.go looks at messages that have
// just come, and again at all after some were taken:
//
//	event of a list ──▶ what is new in it ──┐
//	no events: every second, all ───────────┼──▶ has a row? ─ no ─▶ queue of messages
//	after a deletion, until two looks ──────┘      (or: is known to be deleted)
//	  have found nothing; every 30 s
//
// A term as the leader shares nothing with the one before: its queue is empty, and
// what was not acknowledged comes again from the slot and from the resync.
package watcher
