package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

var _ reconciler.Children = (*Store)(nil)

// How long statements on child tables may take, and wait for a lock.
const (
	countTimeout     = 5 * time.Minute
	batchTimeout     = 5 * time.Second
	batchLockTimeout = 500 * time.Millisecond
)

// child is a child table with what the catalog says of it.
type child struct {
	t      reconciler.ChildTable
	parent reconciler.Binding
	kind   string // relkind: r, or p where it is partitioned
	// locks: we may lock rows without waiting, which needs UPDATE on any column.
	locks bool
	// key are the columns of the primary key, types theirs, as SQL writes them.
	key, types []string
}

// from names the table as c. A table that others inherit from is cleaned alone.
func (c child) from() string {
	name := pgx.Identifier{c.t.Schema, c.t.Table}.Sanitize() + " c"
	if c.kind == "r" {
		return "ONLY " + name
	}
	return name
}

// refers: the row references something (MATCH SIMPLE: all columns have values).
func (c child) refers() string {
	parts := make([]string, len(c.t.Columns))
	for i, column := range c.t.Columns {
		parts[i] = "c." + pgx.Identifier{column.Name}.Sanitize() + " IS NOT NULL"
	}
	return strings.Join(parts, " AND ")
}

// orphaned: and what it references does not exist. With probe the parent is looked up
// in its index, row by row, whatever the planner believes: OFFSET 0 keeps the
// subquery from becoming a join.
func (c child) orphaned(probe bool) string {
	parts := make([]string, len(c.t.Columns))
	for i, column := range c.t.Columns {
		parts[i] = "p." + pgx.Identifier{column.Parent}.Sanitize() + " " + column.Operator + " c." + pgx.Identifier{column.Name}.Sanitize()
		if column.Collation != "" {
			parts[i] += " COLLATE " + column.Collation
		}
	}
	end := ")"
	if probe {
		end = " OFFSET 0)"
	}
	return c.refers() + " AND NOT EXISTS (SELECT 1 FROM " + qualified(c.parent) + " p WHERE " + strings.Join(parts, " AND ") + end
}

// CountOrphans reads all of the child table, and the parent's keys, in one statement.
func (s *Store) CountOrphans(ctx context.Context, t reconciler.ChildTable) (rows, orphans int64, err error) {
	c, err := s.child(ctx, &t)
	if err != nil {
		return 0, 0, err
	}
	sql := fmt.Sprintf("SELECT (SELECT count(*) FROM %s WHERE %s), (SELECT count(*) FROM %s WHERE %s)",
		c.from(), c.refers(), c.from(), c.orphaned(false))
	bounded, cancel := context.WithTimeout(ctx, countTimeout+answerSlack)
	defer cancel()
	// Workers would take further cores from the application.
	settings := []string{"max_parallel_workers_per_gather = 0"}
	err = s.inTransaction(bounded, countTimeout, settings, func(tx pgx.Tx, _ session) error {
		return tx.QueryRow(bounded, sql).Scan(&rows, &orphans)
	})
	return rows, orphans, failed("count orphans of "+t.Name(), err)
}

// child inspects t again, and gives what is wrong with it as the error.
func (s *Store) child(ctx context.Context, t *reconciler.ChildTable) (c child, err error) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout+answerSlack)
	defer cancel()
	err = s.with(ctx, func(conn *pgx.Conn) (err error) {
		c, err = s.inspect(ctx, conn, t)
		return err
	})
	switch {
	case err != nil:
		return c, failed("inspect "+t.Name(), err)
	case t.Skipped != "":
		return c, fmt.Errorf("postgres: %s: %s", t.Name(), t.Skipped)
	}
	return c, t.Err
}

// Mark notes the oldest transaction that has not ended.
func (s *Store) Mark(ctx context.Context) (mark reconciler.Mark, err error) {
	bounded, cancel := context.WithTimeout(ctx, batchTimeout+answerSlack)
	defer cancel()
	err = s.inTransaction(bounded, batchTimeout, nil, func(_ pgx.Tx, now session) error {
		mark = reconciler.Mark{Identity: now.identity, Started: now.started, Before: now.snapshot.Xmin}
		return nil
	})
	return mark, failed("read the database's identity", err)
}

// session is what one transaction's server says of itself.
type session struct {
	snapshot          reconciler.Snapshot
	identity, started string
}

const serverSQL = `SELECT system_identifier || '/' || current_database(), pg_postmaster_start_time()::text FROM pg_control_system()`

// inTransaction runs f in a transaction of its own, with settings of its own, whose
// statements may take so long.
func (s *Store) inTransaction(ctx context.Context, timeout time.Duration, settings []string, f func(pgx.Tx, session) error) error {
	return s.with(ctx, func(conn *pgx.Conn) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		defer rollback(ctx, tx)
		var now session
		b := &pgx.Batch{}
		b.Queue(sessionSQL).QueryRow(func(row pgx.Row) (err error) {
			now.snapshot, err = checkSession(row)
			return err
		})
		b.Queue(serverSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&now.identity, &now.started) })
		for _, setting := range slices.Concat(settings, []string{"statement_timeout = " + milliseconds(timeout), "lock_timeout = " + milliseconds(batchLockTimeout)}) {
			b.Queue("SET LOCAL " + setting)
		}
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		if err := f(tx, now); err != nil {
			return err
		}
		return tx.Commit(ctx)
	})
}
