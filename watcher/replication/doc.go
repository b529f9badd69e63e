// Package replication watches PostgreSQL through a logical replication slot and
// hands each deletion of a bound table's row to the queue.
//
// Invariant: a position is confirmed to the server only once nothing that was
// committed before it is unfinished (ledger.go); hence each committed deletion is
// offered at least once, or a gap is reported in its place.
//
// Source.Acquire holds the slot, or waits for it; Session.Run streams:
//
//	           in use (55006)                      57P01, cut, canary lost
//	┌─────────┐ ───────────▶ ┌─────────┐           ┌───────────────────────────┐
//	│ Acquire │              │ standby │           │   close, no confirmation  ├─▶ error
//	│ check   │ ◀─────────── └─────────┘           └───────────▲───────────────┘
//	│ setup   │    free                                        │
//	└────┬────┘            queue full                          │
//	     │ START  ┌──────┐ ─────────▶ ┌─────────────────────┐  │
//	     └──────▶ │ read │            │ wait, send statuses ├──┤
//	              └──┬───┘ ◀───────── └─────────────────────┘  │
//	                 │      room, or over the WAL budget       │
//	                 ├─────────────────────────────────────────┘
//	                 │ ctx ends
//	                 └──▶ confirm what is done, close ─▶ nil
//
// One goroutine owns the replication connection and never blocks on the queue.
// A second one (monitor.go) owns a normal connection: it emits the canary, looks
// at the slot and the catalogs, and between that listens: a server that shuts
// down tells this connection first, and the replication connection must be closed
// then, since the server waits for it.
//
// The format of the stream is from the PostgreSQL documentation, chapters
// "Streaming Replication Protocol" and "Logical Replication Message Formats".
package replication
