package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// catalogAge is how long the types of columns are believed without asking again.
const catalogAge = time.Minute

// maxID is the length in bytes from which an id is not looked up: no index holds it.
const maxID = 8 << 10

// catalog is what the bound tables look like.
type catalog struct {
	read   time.Time
	tables []table
}

type table struct {
	binding reconciler.Binding
	key     column
	columns []column
}

// column is one that holds ids.
type column struct {
	name string
	// oid is the type under any domains: uuid, text, varchar, int4 or int8.
	oid uint32
	// limit is the n of varchar(n), 0 for none.
	limit int
	// ascii: the database's encoding is not UTF8, so that only ASCII is the same
	// in both.
	ascii bool
	// sql looks up ids: those of its array that are there come back as text.
	sql string
}

var arrays = map[uint32]string{
	pgtype.UUIDOID: "uuid[]", pgtype.TextOID: "text[]", pgtype.VarcharOID: "text[]",
	pgtype.Int4OID: "int4[]", pgtype.Int8OID: "int8[]",
}

// spellings are the values of the column that would be this id; none where its
// type cannot hold it.
func (c column) spellings(l reconciler.Look) []string {
	id := l.Subject.ID
	switch c.oid {
	case pgtype.UUIDOID:
		if reconciler.IsUUID(id) {
			return []string{id}
		}
		return nil
	case pgtype.Int4OID, pgtype.Int8OID:
		bits := 64
		if c.oid == pgtype.Int4OID {
			bits = 32
		}
		// Only str(int) is the id of a row: '007' is another text.
		if n, err := strconv.ParseInt(id, 10, bits); err == nil && strconv.FormatInt(n, 10) == id {
			return []string{id}
		}
		return nil
	}
	all := reconciler.Spellings(id)
	if l.Spelling != "" && l.Spelling != id {
		all = append(all[:len(all):len(all)], l.Spelling)
	}
	held := all[:0:0]
	for _, text := range all {
		if c.holds(text) {
			held = append(held, text)
		}
	}
	return held
}

func (c column) holds(text string) bool {
	if len(text) > maxID || !utf8.ValidString(text) || c.limit > 0 && utf8.RuneCountInString(text) > c.limit {
		return false
	}
	for i := range len(text) {
		if text[i] == 0 || c.ascii && text[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// values is the argument of sql: the ids in the column's own type.
func (c column) values(ids []string) any {
	switch c.oid {
	case pgtype.UUIDOID:
		out := make([]pgtype.UUID, len(ids))
		for i, id := range ids {
			_ = out[i].Scan(id) // spellings has checked it
		}
		return out
	case pgtype.Int4OID:
		out := make([]int32, len(ids))
		for i, id := range ids {
			n, _ := strconv.ParseInt(id, 10, 32)
			out[i] = int32(n)
		}
		return out
	case pgtype.Int8OID:
		out := make([]int64, len(ids))
		for i, id := range ids {
			out[i], _ = strconv.ParseInt(id, 10, 64)
		}
		return out
	}
	return ids
}

// known is the catalog, read anew where it is old or in doubt.
func (s *Store) known(ctx context.Context) (*catalog, error) {
	if c := s.tables.Load(); c != nil && time.Since(c.read) < catalogAge {
		return c, nil
	}
	c := &catalog{read: time.Now()}
	for _, b := range s.options.Bindings {
		t, err := s.describe(ctx, b)
		if err != nil {
			return nil, err
		}
		c.tables = append(c.tables, t)
	}
	s.tables.Store(c)
	return c, nil
}

// doubt makes the next lookup read the catalog first.
func (s *Store) doubt() { s.tables.Store(nil) }

// changed tells whether an error may come from a table that was recreated or
// altered since the catalog was read; asking once more is worth it.
func changed(err error) bool {
	var server *pgconn.PgError
	if !errors.As(err, &server) {
		return false
	}
	switch server.Code {
	case "0A000", // cached plan must not change result type
		"42883", "42804", "42846", // no such operator, type mismatch
		"42P01", "42703", "26000": // no such table, column, statement
		return true
	}
	return false
}

const describeSQL = `
WITH RECURSIVE col(attname, typ, mod, deterministic, relkind) AS (
	SELECT a.attname, a.atttypid, a.atttypmod, coalesce(o.collisdeterministic, true), c.relkind
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	LEFT JOIN pg_collation o ON o.oid = a.attcollation
	WHERE n.nspname = $1 AND c.relname = $2
	UNION ALL
	SELECT col.attname, t.typbasetype, CASE WHEN col.mod >= 0 THEN col.mod ELSE t.typtypmod END, col.deterministic, col.relkind
	FROM col JOIN pg_type t ON t.oid = col.typ WHERE t.typtype = 'd'
)
SELECT col.attname::text, col.typ, format_type(col.typ, col.mod), col.mod, col.deterministic, col.relkind::text,
	current_setting('server_encoding') <> 'UTF8'
FROM col JOIN pg_type t ON t.oid = col.typ WHERE t.typtype <> 'd'`

// described is a column as the catalog has it.
type described struct {
	column
	typeName      string
	deterministic bool
}

// readColumns reads the columns of a table, by name; there are none where it does
// not exist.
func readColumns(ctx context.Context, conn *pgx.Conn, schema, name string) (relkind string, all map[string]described, err error) {
	rows, err := conn.Query(ctx, describeSQL, schema, name)
	if err != nil {
		return "", nil, err
	}
	all = map[string]described{}
	var d described
	var mod int32
	_, err = pgx.ForEachRow(rows, []any{&d.name, &d.oid, &d.typeName, &mod, &d.deterministic, &relkind, &d.ascii}, func() error {
		d.limit = 0
		if d.oid == pgtype.VarcharOID && mod > 4 {
			d.limit = int(mod) - 4
		}
		all[d.name] = d
		return nil
	})
	return relkind, all, err
}

// describe reads one bound table. What is missing is an error: it must not look
// like a table without rows.
func (s *Store) describe(ctx context.Context, b reconciler.Binding) (table, error) {
	var relkind string
	var all map[string]described
	ctx, cancel := context.WithTimeout(ctx, s.options.StatementTimeout+answerSlack)
	defer cancel()
	err := s.with(ctx, func(conn *pgx.Conn) (err error) {
		relkind, all, err = readColumns(ctx, conn, b.Schema, b.Table)
		return err
	})
	if err != nil {
		return table{}, err
	}
	if len(all) == 0 {
		return table{}, reconciler.Hint(fmt.Errorf("table %s does not exist", b.Name()), "correct tasks.table, or run the application's migrations")
	}
	if relkind != "r" && relkind != "p" {
		return table{}, reconciler.Hint(fmt.Errorf("%s is not a table", b.Name()), "name the table whose rows are deleted in tasks.table")
	}
	find := func(name string) (column, error) {
		d, ok := all[name]
		switch {
		case !ok:
			return column{}, reconciler.Hint(fmt.Errorf("table %s has no column %s", b.Name(), name), "correct tasks.key or tasks.match")
		case arrays[d.oid] == "":
			return column{}, reconciler.Hint(fmt.Errorf("column %s of %s is of type %s", name, b.Name(), d.typeName), "task ids and keys can be of type uuid, text, varchar, integer or bigint")
		case !d.deterministic:
			return column{}, reconciler.Hint(fmt.Errorf("column %s of %s has a nondeterministic collation", name, b.Name()), "use a deterministic collation for a column that holds ids")
		}
		name = pgx.Identifier{name}.Sanitize()
		d.sql = fmt.Sprintf("SELECT %s::text FROM %s WHERE %s = ANY($1::%s)", name, qualified(b), name, arrays[d.oid])
		return d.column, nil
	}
	t := table{binding: b}
	if t.key, err = find(b.Key); err != nil {
		return table{}, err
	}
	for _, name := range b.Columns {
		c, err := find(name)
		if err != nil {
			return table{}, err
		}
		t.columns = append(t.columns, c)
	}
	return t, nil
}

func qualified(b reconciler.Binding) string { return pgx.Identifier{b.Schema, b.Table}.Sanitize() }
