package postgres

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// FencePrefix and FenceContent are the WAL message that Running writes, so that
// replication passes the position even if nobody else writes.
const (
	FencePrefix  = Application
	FenceContent = "fence"
)

// virtualSQL lists every transaction that has a backend, those without an xid
// too, as CREATE INDEX CONCURRENTLY does: each holds its own virtual transaction
// id in ExclusiveLock. A datid or backend_type that the role may not see counts; what
// has no user (autovacuum) writes no row of ours, and shows so to every role.
// Left out: this session and our own role's other lookups, which write nothing.
const virtualSQL = `
SELECT l.virtualtransaction, l.pid, a.xact_start, coalesce(a.application_name, '')
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.granted AND l.mode = 'ExclusiveLock'
	AND l.pid <> pg_backend_pid()
	AND (a.datid IS NULL OR a.datid = 0 OR a.datid = (SELECT oid FROM pg_database WHERE datname = current_database()))
	AND coalesce(a.backend_type, '') NOT IN ('autovacuum worker', 'walsender')
	AND NOT (a.pid IS NOT NULL AND a.usesysid IS NULL)
	AND NOT (coalesce(a.application_name, '') = '` + Application + `' AND coalesce(a.usename = current_user, false))`

const preparedSQL = `
SELECT gid || ' (xid ' || transaction || ')', prepared
FROM pg_prepared_xacts WHERE database = current_database()`

// Running lists what is under way: first the position, then the transactions with
// a backend, then the prepared ones, into which PREPARE may have turned some.
func (s *Store) Running(ctx context.Context) (reconciler.Running, error) {
	running := reconciler.Running{Asked: time.Now()}
	b := &pgx.Batch{}
	b.Queue("SELECT pg_current_wal_insert_lsn()::text").QueryRow(func(row pgx.Row) error {
		var text string
		if err := row.Scan(&text); err != nil {
			return err
		}
		at, err := parseLSN(text)
		running.At = at
		return err
	})
	b.Queue("SELECT pg_logical_emit_message(false, '" + FencePrefix + "', '" + FenceContent + "')::text")
	b.Queue(virtualSQL).Query(func(rows pgx.Rows) error {
		var t reconciler.Transaction
		var since *time.Time
		_, err := pgx.ForEachRow(rows, []any{&t.ID, &t.PID, &since, &t.Application}, func() error {
			t.Since = time.Time{}
			if since != nil {
				t.Since = *since
			}
			running.Virtual = append(running.Virtual, t)
			return nil
		})
		return err
	})
	b.Queue(preparedSQL).Query(func(rows pgx.Rows) error {
		var t reconciler.Transaction
		_, err := pgx.ForEachRow(rows, []any{&t.ID, &t.Since}, func() error {
			running.Prepared = append(running.Prepared, t)
			return nil
		})
		return err
	})
	_, err := s.batch(ctx, b)
	if err != nil {
		return reconciler.Running{}, failed("list transactions", err)
	}
	return running, nil
}

// parseLSN reads a pg_lsn's text: two hexadecimal halves.
func parseLSN(text string) (reconciler.LSN, error) {
	high, low, _ := strings.Cut(text, "/")
	h, err := strconv.ParseUint(high, 16, 32)
	if err != nil {
		return 0, err
	}
	l, err := strconv.ParseUint(low, 16, 32)
	return reconciler.LSN(h<<32 | l), err
}
