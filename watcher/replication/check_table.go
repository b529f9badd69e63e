package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// keyTypes are the column types that a key or a task id may have.
var keyTypes = []string{"uuid", "text", "character varying", "integer", "bigint"}

// table is what the checks know of a bound table.
type table struct {
	oid uint32
	// kind is pg_class.relkind: r a table, p a partitioned one.
	kind      string
	partition bool
	// rowSecurity: policies would apply to our role.
	rowSecurity bool
	usage       bool
	// filter and columnList are of its entry in the publication.
	filter     string
	columnList []string
	columns    map[string]tableColumn
	// members are the tables that hold its rows: itself, or its leaf partitions.
	members []member
}

type tableColumn struct {
	typ      string
	readable bool
}

// member is a table with rows. identity are the columns that a DELETE carries;
// kind is pg_class.relreplident.
type member struct {
	name     string
	kind     string
	identity []string
	primary  []string
}

// full tells whether a DELETE carries all columns.
func (m member) full() bool { return m.kind == "f" }

const tableSQL = `
SELECT c.oid, c.relkind::text, c.relispartition, row_security_active(c.oid), has_schema_privilege(n.oid, 'USAGE'),
       coalesce(pg_get_expr(r.prqual, r.prrelid), ''),
       (SELECT array_agg(attname::text) FROM pg_attribute WHERE attrelid = c.oid AND attnum = ANY (r.prattrs))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_publication_rel r ON r.prrelid = c.oid
        AND r.prpubid = (SELECT oid FROM pg_publication WHERE pubname = $3)
 WHERE n.nspname = $1 AND c.relname = $2`

const columnsSQL = `
SELECT attname::text, format_type(atttypid, NULL), has_column_privilege(attrelid, attnum, 'SELECT')
  FROM pg_attribute
 WHERE attrelid = $1 AND attname = ANY ($2) AND attnum > 0 AND NOT attisdropped`

// membersSQL: a deferrable primary key is no replica identity, and of an index
// only the key columns are.
const membersSQL = `
WITH m AS (SELECT relid::oid FROM pg_partition_tree($1) WHERE isleaf UNION SELECT $1::oid WHERE NOT $2),
     k AS (SELECT i.indrelid, i.indisprimary, i.indisreplident,
                  array_agg(a.attname::text ORDER BY a.attnum) AS columns
             FROM m JOIN pg_index i ON i.indrelid = m.relid
             JOIN pg_attribute a ON a.attrelid = i.indrelid
                  AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
            WHERE i.indisvalid AND i.indimmediate
            GROUP BY i.indexrelid, i.indrelid, i.indisprimary, i.indisreplident)
SELECT m.relid::regclass::text, c.relreplident::text,
       (SELECT columns FROM k WHERE k.indrelid = m.relid
           AND CASE c.relreplident WHEN 'd' THEN k.indisprimary WHEN 'i' THEN k.indisreplident ELSE false END),
       (SELECT columns FROM k WHERE k.indrelid = m.relid AND k.indisprimary)
  FROM m JOIN pg_class c ON c.oid = m.relid
 ORDER BY 1`

func (s *Source) readTable(ctx context.Context, conn *pgx.Conn, b reconciler.Binding) (table, error) {
	t := table{columns: map[string]tableColumn{}}
	err := conn.QueryRow(ctx, tableSQL, b.Schema, b.Table, s.opts.Publication).Scan(&t.oid, &t.kind, &t.partition,
		&t.rowSecurity, &t.usage, &t.filter, &t.columnList)
	if errors.Is(err, pgx.ErrNoRows) {
		return t, nil
	}
	if err != nil {
		return t, fmt.Errorf("read table %s: %w", b.Name(), err)
	}
	rows, err := conn.Query(ctx, columnsSQL, t.oid, needed(b))
	if err != nil {
		return t, fmt.Errorf("read columns of %s: %w", b.Name(), err)
	}
	var name string
	var col tableColumn
	_, err = pgx.ForEachRow(rows, []any{&name, &col.typ, &col.readable}, func() error {
		t.columns[name] = col
		return nil
	})
	if err != nil {
		return t, fmt.Errorf("read columns of %s: %w", b.Name(), err)
	}
	rows, err = conn.Query(ctx, membersSQL, t.oid, t.kind == "p")
	if err != nil {
		return t, fmt.Errorf("read replica identity of %s: %w", b.Name(), err)
	}
	t.members, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (m member, err error) {
		return m, row.Scan(&m.name, &m.kind, &m.identity, &m.primary)
	})
	if err != nil {
		return t, fmt.Errorf("read replica identity of %s: %w", b.Name(), err)
	}
	return t, nil
}

// needed are the columns that a binding reads, the key first.
func needed(b reconciler.Binding) []string {
	out := []string{b.Key}
	for _, c := range b.Columns {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// findings judges a bound table, role being ours.
func (t table) findings(b reconciler.Binding, role, publication string) []Finding {
	name := "table " + b.Name()
	bad := func(fatal bool, detail, fix string) Finding {
		return Finding{Name: name, Fatal: fatal, Detail: detail, Fix: fix}
	}
	switch {
	case t.oid == 0:
		return []Finding{bad(true, "it does not exist", "correct tasks[].table (ORPHANWATCH_TABLE), or create the table first")}
	case t.kind != "r" && t.kind != "p":
		return []Finding{bad(true, "it is not a table", "name the table behind it in tasks[].table (ORPHANWATCH_TABLE)")}
	case t.partition:
		return []Finding{bad(true, "it is a partition", "name the partitioned table in tasks[].table (ORPHANWATCH_TABLE)")}
	}
	out := t.columnFindings(b, role, bad)
	out = append(out, t.identityFindings(b, bad)...)
	out = append(out, t.publicationFindings(b, publication, bad)...)
	if t.rowSecurity {
		out = append(out, bad(false, "row-level security applies to role "+role+": lookups are refused, and nothing is removed",
			fmt.Sprintf("ALTER ROLE %s BYPASSRLS;", ident(role))))
	}
	if len(out) == 0 {
		out = []Finding{{Name: name, OK: true, Detail: "columns, rights and replica identity are good"}}
	}
	return out
}

func (t table) columnFindings(b reconciler.Binding, role string, bad func(bool, string, string) Finding) []Finding {
	var out []Finding
	if !t.usage {
		out = append(out, bad(true, "role "+role+" may not use the schema "+b.Schema,
			fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s;", ident(b.Schema), ident(role))))
	}
	unreadable := false
	for _, name := range needed(b) {
		col, ok := t.columns[name]
		switch {
		case !ok:
			out = append(out, bad(true, "it has no column "+name, "correct tasks[].key and tasks[].match (ORPHANWATCH_KEY, ORPHANWATCH_MATCH)"))
		case !slices.Contains(keyTypes, col.typ):
			out = append(out, bad(true, fmt.Sprintf("column %s has the type %s, which is not supported", name, col.typ),
				"use a column of type uuid, text, varchar, integer or bigint"))
		}
		unreadable = unreadable || ok && !col.readable
	}
	if unreadable {
		out = append(out, bad(true, "role "+role+" may not read it",
			fmt.Sprintf("GRANT SELECT (%s) ON %s TO %s;", idents(needed(b)), quoted(b), ident(role))))
	}
	return out
}

// identityFindings: publishing a table without identity makes the application's
// DELETE fail, so this must be judged before the publication is made.
func (t table) identityFindings(b reconciler.Binding, bad func(bool, string, string) Finding) []Finding {
	var out []Finding
	for _, m := range t.members {
		if m.full() {
			if t.kind == "p" {
				out = append(out, bad(false, "its partitions have REPLICA IDENTITY FULL, which a new one does not inherit: the application's DELETE in that would fail",
					fmt.Sprintf("after each new partition: ALTER TABLE <partition> REPLICA IDENTITY FULL;  -- or give %s a primary key", quoted(b))))
				t.kind = "" // say it once
			}
			continue
		}
		var missing []string
		for _, c := range needed(b) {
			if !slices.Contains(m.identity, c) {
				missing = append(missing, c)
			}
		}
		fix := fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL;", m.name)
		if !slices.ContainsFunc(needed(b), func(c string) bool { return !slices.Contains(m.primary, c) }) {
			fix = fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY DEFAULT;", m.name)
		}
		switch {
		case len(m.identity) == 0:
			out = append(out, bad(true, m.name+" has no replica identity: published so, the application's own DELETE would fail", fix))
		case len(missing) > 0:
			out = append(out, bad(true, fmt.Sprintf("a DELETE in %s does not carry %s: the replica identity is (%s)",
				m.name, strings.Join(missing, ", "), strings.Join(m.identity, ", ")), fix))
		}
	}
	return out
}

func (t table) publicationFindings(b reconciler.Binding, publication string, bad func(bool, string, string) Finding) []Finding {
	anew := fmt.Sprintf("ALTER PUBLICATION %[1]s DROP TABLE %[2]s; ALTER PUBLICATION %[1]s ADD TABLE %[2]s;", ident(publication), quoted(b))
	var out []Finding
	if t.filter != "" {
		out = append(out, bad(true, "the publication hides rows of it: WHERE "+t.filter, anew))
	}
	for _, c := range needed(b) {
		if len(t.columnList) > 0 && !slices.Contains(t.columnList, c) {
			out = append(out, bad(true, "the publication's column list lacks "+c+": the application's own DELETE may fail", anew))
		}
	}
	return out
}

func idents(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = ident(n)
	}
	return strings.Join(out, ", ")
}
