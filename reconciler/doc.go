// Package reconciler decides what of a task in Redis is an orphan, and removes it.
//
// Its invariant: nothing of an existing row is removed. Artifacts are read first,
// then the row, then the removal is conditional on the artifacts being unchanged
// and on this copy still being the newest leader. Everything that it is told is a
// hint; both stores are read anew each time, so that reconciling twice equals
// reconciling once.
//
// The judgement is the pure function Decide. What it may answer to an artifact
// without a row:
//
//	deleted, unchanged since the first look ─────────────────▶ removed
//	deleted, appeared or changed later ── grace, fence ──────▶ removed
//	absent ── first pass ── guard ── grace, fence ───────────▶ removed
//	           │             │        │
//	           deferred      guarded  deferred
//	nothing tells whose it is ───────────────────────────────▶ reported
//
// A fence has passed once every transaction that ran when the artifacts were seen
// has ended, and replication is past that moment.
//
// Messages are judged by the same function, task by task. They are found by a sweep
// over the broker (messages.go), and are in another place than the records, so that
// the order is: record, revoke, message (take.go). What is left or comes again after
// any crash is known by its record:
//
//	found ──▶ row looked up ──▶ decided ──▶ record written, right to revoke granted once
//	  ▲                                        │
//	  │ popped, given back, changed            ▼
//	  └───────────────────────── message taken out ◀── revoked, if a worker may have it
//
// The package knows neither HTTP nor a database client: the stores are the
// interfaces of stores.go.
package reconciler
