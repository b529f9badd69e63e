// Package postgres tells which rows exist, and what is under way in the database.
//
// Invariant: an answer "no such row" comes only from the primary, READ COMMITTED
// and with row_security off, which every batch verifies in its own session; any
// error or doubt is an error, never an answer. It writes nothing but a WAL message.
//
//	          any error, a minute passed
//	known ───────────────────────────────▶ unknown
//	  ▲                                       │
//	  └── types and rights read from pg_catalog ┘    (before the next lookup)
package postgres
