package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// EachID streams the task ids of a binding's rows: the keys where the id is the
// key, and what its columns hold. They come as PostgreSQL writes them; take
// reconciler.CanonicalID to compare. Nothing is held but one row.
func (s *Store) EachID(ctx context.Context, binding int, yield func(id string) error) error {
	return s.each(ctx, binding, yield, func(t table) []column {
		if t.binding.CeleryID {
			return append([]column{t.key}, t.columns...)
		}
		return t.columns
	})
}

// EachKey streams the keys of a binding's rows, for its companion keys.
func (s *Store) EachKey(ctx context.Context, binding int, yield func(key string) error) error {
	return s.each(ctx, binding, yield, func(t table) []column { return []column{t.key} })
}

func (s *Store) each(ctx context.Context, binding int, yield func(string) error, pick func(table) []column) error {
	known, err := s.known(ctx)
	if err != nil {
		return failed("read all ids", err)
	}
	if binding < 0 || binding >= len(known.tables) {
		return fmt.Errorf("postgres: read all ids: no binding %d", binding)
	}
	t := known.tables[binding]
	columns := pick(t)
	if len(columns) == 0 {
		return nil
	}
	err = s.with(ctx, func(conn *pgx.Conn) error { return s.copy(ctx, conn, t, columns, yield) })
	if err != nil {
		s.doubt()
		return failed("read all ids of "+t.binding.Name(), err)
	}
	return nil
}

// copySilence is how long a COPY may bring no row: where most of a table is dead rows,
// reading past them takes a while.
const copySilence = 5 * time.Minute

func (s *Store) copy(ctx context.Context, conn *pgx.Conn, t table, columns []column, yield func(string) error) error {
	// The server's own timeout does not help where its answer does not arrive.
	reading, giveUp := context.WithCancel(ctx)
	defer giveUp()
	silence := time.AfterFunc(copySilence, giveUp)
	defer silence.Stop()
	w := &copyReader{columns: columns, yield: yield, moved: func() {
		silence.Reset(copySilence)
		reconciler.Beat(ctx)
	}}
	err := s.copyTo(reading, conn, t, w)
	if err != nil && reading.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("nothing came for %s: %w", copySilence, os.ErrDeadlineExceeded)
	}
	return err
}

func (s *Store) copyTo(ctx context.Context, conn *pgx.Conn, t table, w *copyReader) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer rollback(ctx, tx)
	if _, err := checkSession(tx.QueryRow(ctx, sessionSQL)); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", s.options.CopyTimeout.Milliseconds())); err != nil {
		return err
	}
	names := make([]string, len(w.columns))
	for i, c := range w.columns {
		names[i] = pgx.Identifier{c.name}.Sanitize()
		if c.oid == pgtype.VarcharOID || c.oid == pgtype.TextOID {
			names[i] += "::text"
		} else {
			names[i] += "::" + strings.TrimSuffix(arrays[c.oid], "[]")
		}
	}
	sql := fmt.Sprintf("COPY (SELECT %s FROM %s) TO STDOUT (FORMAT binary)", strings.Join(names, ", "), qualified(t.binding))
	if _, err := conn.PgConn().CopyTo(ctx, w, sql); err != nil {
		return err
	}
	if !w.ended {
		return errors.New("the copy ended early")
	}
	return nil
}

// copyReader decodes COPY's binary format (PostgreSQL manual, COPY, Binary
// Format): a header, of each row the number of fields and each with its length
// (-1 for NULL), at the end -1 for a number.
type copyReader struct {
	columns []column
	yield   func(string) error
	// moved is called once a second while rows come.
	moved   func()
	movedAt time.Time
	rest    []byte
	header  bool
	ended   bool
}

var copySignature = []byte("PGCOPY\n\xff\r\n\x00")

func (r *copyReader) Write(p []byte) (int, error) {
	if now := time.Now(); now.Sub(r.movedAt) > time.Second {
		r.movedAt = now
		r.moved()
	}
	data := p
	if len(r.rest) > 0 {
		r.rest = append(r.rest, p...)
		data = r.rest
	}
	for len(data) > 0 && !r.ended {
		n, err := r.next(data)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			break
		}
		data = data[n:]
	}
	r.rest = append(r.rest[:0], data...)
	return len(p), nil
}

// next decodes the header or one row, and tells its length, 0 where it is not
// all there.
func (r *copyReader) next(data []byte) (int, error) {
	if !r.header {
		const fixed = 19
		if len(data) < fixed {
			return 0, nil
		}
		n := fixed + int(binary.BigEndian.Uint32(data[15:]))
		if !bytes.HasPrefix(data, copySignature) {
			return 0, errors.New("not the binary format of COPY")
		}
		if len(data) < n {
			return 0, nil
		}
		r.header = true
		return n, nil
	}
	if len(data) < 2 {
		return 0, nil
	}
	fields := int16(binary.BigEndian.Uint16(data))
	if fields == -1 {
		r.ended = true
		return 2, nil
	}
	if int(fields) != len(r.columns) {
		return 0, fmt.Errorf("%d fields in a row of COPY, not %d", fields, len(r.columns))
	}
	n := 2
	for range r.columns {
		if len(data) < n+4 {
			return 0, nil
		}
		n += 4 + max(0, int(int32(binary.BigEndian.Uint32(data[n:]))))
	}
	if len(data) < n {
		return 0, nil
	}
	at := 2
	for _, c := range r.columns {
		size := int(int32(binary.BigEndian.Uint32(data[at:])))
		at += 4
		if size < 0 {
			continue
		}
		id, err := c.decode(data[at : at+size])
		if err != nil {
			return 0, err
		}
		at += size
		if err := r.yield(id); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func (c column) decode(b []byte) (string, error) {
	switch {
	case c.oid == pgtype.UUIDOID && len(b) == 16:
		return pgtype.UUID{Bytes: [16]byte(b), Valid: true}.String(), nil
	case c.oid == pgtype.Int4OID && len(b) == 4:
		return strconv.FormatInt(int64(int32(binary.BigEndian.Uint32(b))), 10), nil
	case c.oid == pgtype.Int8OID && len(b) == 8:
		return strconv.FormatInt(int64(binary.BigEndian.Uint64(b)), 10), nil
	case c.oid == pgtype.TextOID || c.oid == pgtype.VarcharOID:
		return string(b), nil
	}
	return "", fmt.Errorf("column %s: %d bytes in COPY", c.name, len(b))
}

// Count is how many rows a binding's table has; it reads all of it.
func (s *Store) Count(ctx context.Context, binding int) (n int64, err error) {
	return s.number(ctx, binding, "SELECT count(*) FROM "+qualified(s.options.Bindings[binding]))
}

// Estimate is about how many rows a binding's table has, from the statistics of
// all its partitions, or from their size where there are none.
func (s *Store) Estimate(ctx context.Context, binding int) (int64, error) {
	b := s.options.Bindings[binding]
	return s.number(ctx, binding, `
		WITH RECURSIVE part(oid) AS (
			SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2
			UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN part ON i.inhparent = part.oid)
		SELECT coalesce(sum(CASE WHEN c.reltuples >= 0 THEN c.reltuples ELSE pg_relation_size(c.oid) / 64 END), 0)::bigint
		FROM pg_class c JOIN part ON part.oid = c.oid WHERE c.relkind = 'r'`, b.Schema, b.Table)
}

func (s *Store) number(ctx context.Context, binding int, sql string, args ...any) (n int64, err error) {
	b := &pgx.Batch{}
	b.Queue(sql, args...).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
	if _, err = s.batch(ctx, b); err != nil {
		return 0, failed("count rows of "+s.options.Bindings[binding].Name(), err)
	}
	return n, nil
}

// Identity tells this database from any other: the cluster's system identifier,
// which a restored or a new cluster does not share, and the database's name.
func (s *Store) Identity(ctx context.Context) (identity string, err error) {
	b := &pgx.Batch{}
	b.Queue("SELECT system_identifier || '/' || current_database() FROM pg_control_system()").QueryRow(func(row pgx.Row) error {
		return row.Scan(&identity)
	})
	_, err = s.batch(ctx, b)
	return identity, failed("read the database's identity", err)
}
