package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// ChildTables finds the tables that reference bound ones: those that tasks.children
// names, or else all with a foreign key, NOT VALID ones too. Of a partitioned table
// it is the whole that counts.
func (s *Store) ChildTables(ctx context.Context) (tables []reconciler.ChildTable, err error) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout+answerSlack)
	defer cancel()
	err = s.with(ctx, func(conn *pgx.Conn) error {
		known := map[string]bool{}
		for i, b := range s.options.Bindings {
			found, err := s.childrenOf(ctx, conn, i, b)
			if err != nil {
				return err
			}
			for _, t := range found {
				// Two bindings may have one table, and a key may be declared twice.
				id := fmt.Sprintf("%q %q %q", b.Name(), t.Name(), t.Columns)
				if known[id] {
					continue
				}
				known[id] = true
				if t.Skipped == "" && t.Err == nil {
					if _, err := s.inspect(ctx, conn, &t); err != nil {
						return err
					}
				}
				tables = append(tables, t)
			}
		}
		return nil
	})
	return tables, failed("find child tables", err)
}

func (s *Store) childrenOf(ctx context.Context, conn *pgx.Conn, i int, b reconciler.Binding) ([]reconciler.ChildTable, error) {
	if len(b.Children) == 0 {
		return foreignKeys(ctx, conn, i, b)
	}
	var tables []reconciler.ChildTable
	for _, text := range b.Children {
		t, err := configured(ctx, conn, i, b, text)
		if err != nil {
			return nil, err
		}
		tables = append(tables, t)
	}
	return tables, nil
}

// foreignKeysSQL reads the keys that reference a table. Those with a conparentid are
// the same key, of a partition. The operators are the key's own: what is equal by
// another (citext's, say, against text's) is not what it means. A child's collation may
// be another than the parent's, which then counts, as it does for the key.
const foreignKeysSQL = `
SELECT n.nspname::text, c.relname::text, k.conname::text, k.confdeltype::text,
	array_agg(ca.attname::text ORDER BY u.i), array_agg(pa.attname::text ORDER BY u.i),
	array_agg(format('OPERATOR(%I.%s)', opn.nspname, op.oprname) ORDER BY u.i),
	array_agg(CASE WHEN pa.attcollation <> 0 AND pa.attcollation <> ca.attcollation
		THEN format('%I.%I', con.nspname, co.collname) ELSE '' END ORDER BY u.i),
	bool_and(op.oprname = '=')
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
CROSS JOIN LATERAL unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY AS u(child, parent, operator, i)
JOIN pg_attribute ca ON ca.attrelid = k.conrelid AND ca.attnum = u.child
JOIN pg_attribute pa ON pa.attrelid = k.confrelid AND pa.attnum = u.parent
JOIN pg_operator op ON op.oid = u.operator JOIN pg_namespace opn ON opn.oid = op.oprnamespace
LEFT JOIN pg_collation co ON co.oid = pa.attcollation LEFT JOIN pg_namespace con ON con.oid = co.collnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND c.relpersistence <> 't' AND pn.nspname = $1 AND p.relname = $2
GROUP BY n.nspname, c.relname, k.oid, k.conname, k.confdeltype ORDER BY 1, 2, 3`

func foreignKeys(ctx context.Context, conn *pgx.Conn, i int, b reconciler.Binding) (tables []reconciler.ChildTable, err error) {
	rows, err := conn.Query(ctx, foreignKeysSQL, b.Schema, b.Table)
	if err != nil {
		return nil, err
	}
	var schema, name, key, onDelete string
	var children, parents, operators, collations []string
	var equality bool
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &key, &onDelete, &children, &parents, &operators, &collations, &equality}, func() error {
		t := reconciler.ChildTable{Binding: i, Schema: schema, Table: name}
		for j := range children {
			t.Columns = append(t.Columns, reconciler.ChildColumn{
				Name: children[j], Parent: parents[j], Operator: operators[j], Collation: collations[j],
			})
		}
		switch {
		case !equality:
			t.Skipped = "its foreign key " + key + " is over periods"
		case onDelete == "n" || onDelete == "d":
			// The application keeps such rows when their parent goes.
			t.Skipped = fmt.Sprintf("its foreign key %s says ON DELETE SET %s, so its rows outlive their parent",
				key, map[string]string{"n": "NULL", "d": "DEFAULT"}[onDelete])
		}
		tables = append(tables, t)
		return nil
	})
	return tables, err
}

// families are the types of ids that are the same to an index.
var families = map[uint32]string{
	pgtype.UUIDOID: "uuid", pgtype.TextOID: "text", pgtype.VarcharOID: "text",
	pgtype.Int4OID: "bigint", pgtype.Int8OID: "bigint",
}

// configured is the child column that tasks.children names, which holds the key.
func configured(ctx context.Context, conn *pgx.Conn, i int, b reconciler.Binding, text string) (t reconciler.ChildTable, err error) {
	schema, rest, _ := strings.Cut(text, ".")
	name, column, _ := strings.Cut(rest, ".")
	t = reconciler.ChildTable{Binding: i, Schema: schema, Table: name, Columns: []reconciler.ChildColumn{
		{Name: column, Parent: b.Key, Operator: "OPERATOR(pg_catalog.=)"},
	}}
	kind, columns, err := readColumns(ctx, conn, schema, name)
	if err != nil {
		return t, err
	}
	_, parents, err := readColumns(ctx, conn, b.Schema, b.Table)
	if err != nil {
		return t, err
	}
	child, there := columns[column]
	key, bound := parents[b.Key]
	switch {
	case !bound:
		t.Err = reconciler.Hint(fmt.Errorf("table %s has no column %s, or does not exist", b.Name(), b.Key), "correct tasks.table or tasks.key")
	case len(columns) == 0:
		t.Err = reconciler.Hint(fmt.Errorf("table %s does not exist", t.Name()), "correct tasks.children ("+text+"), or run the application's migrations")
	case kind != "r" && kind != "p":
		t.Err = reconciler.Hint(fmt.Errorf("%s is not a table", t.Name()), "name the table that holds the rows in tasks.children")
	case !there:
		t.Err = reconciler.Hint(fmt.Errorf("table %s has no column %s", t.Name(), column), "correct tasks.children ("+text+")")
	case families[child.oid] == "" || families[child.oid] != families[key.oid]:
		t.Err = reconciler.Hint(fmt.Errorf("column %s of %s is of type %s, the key %s of %s of type %s: they cannot be compared",
			column, t.Name(), child.typeName, b.Key, b.Name(), key.typeName), "name a column of the key's type in tasks.children")
	case !child.deterministic:
		t.Err = reconciler.Hint(fmt.Errorf("column %s of %s has a nondeterministic collation", column, t.Name()),
			"use a deterministic collation for a column that holds ids")
	default:
		// Deterministic collations agree on what is equal. One must be said, where they
		// differ, and only that of the key can use its index.
		err = conn.QueryRow(ctx, collationSQL, b.Schema, b.Table, b.Key).Scan(&t.Columns[0].Collation)
	}
	return t, err
}

const collationSQL = `
SELECT CASE WHEN co.oid IS NULL THEN '' ELSE format('%I.%I', con.nspname, co.collname) END
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN (pg_collation co JOIN pg_namespace con ON con.oid = co.collnamespace) ON co.oid = a.attcollation
WHERE n.nspname = $1 AND c.relname = $2 AND a.attname = $3`

// inspectSQL reads what the removal needs of a child table: $1.$2, and its parent's
// columns $5 of $3.$4. Bound is a bound table ($6.$7) that it is, or is a part of.
const inspectSQL = `
SELECT c.relkind::text, row_security_active(c.oid), row_security_active(p.oid), current_user::text,
	has_schema_privilege(n.oid, 'USAGE'),
	has_table_privilege(c.oid, 'SELECT'), has_table_privilege(c.oid, 'DELETE'), has_any_column_privilege(c.oid, 'UPDATE'),
	has_schema_privilege(pn.oid, 'USAGE') AND NOT EXISTS (SELECT 1 FROM unnest($5::text[]) AS column_name
		WHERE NOT has_column_privilege(p.oid, column_name, 'SELECT')),
	coalesce((SELECT bn.nspname || '.' || bc.relname FROM pg_class bc JOIN pg_namespace bn ON bn.oid = bc.relnamespace
		JOIN unnest($6::text[], $7::text[]) AS bound(schema, name) ON bn.nspname = bound.schema AND bc.relname = bound.name
		WHERE coalesce(pg_partition_root(bc.oid), bc.oid) = coalesce(pg_partition_root(c.oid), c.oid) LIMIT 1), ''),
	pk.names, pk.types
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
	pg_class p JOIN pg_namespace pn ON pn.oid = p.relnamespace,
	LATERAL (SELECT coalesce(array_agg(a.attname::text ORDER BY k.i), '{}') AS names,
			coalesce(array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY k.i), '{}') AS types
		FROM pg_index x JOIN pg_class xc ON xc.oid = x.indexrelid JOIN pg_am am ON am.oid = xc.relam AND am.amname = 'btree'
		CROSS JOIN LATERAL unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, i)
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
		WHERE x.indrelid = c.oid AND x.indisprimary AND k.i <= x.indnkeyatts) pk
WHERE n.nspname = $1 AND c.relname = $2 AND pn.nspname = $3 AND p.relname = $4`

// inspect reads a child table; what is wrong with it is noted in t.
func (s *Store) inspect(ctx context.Context, conn *pgx.Conn, t *reconciler.ChildTable) (child, error) {
	parent := s.options.Bindings[t.Binding]
	c := child{t: *t, parent: parent}
	var schemas, names, parents []string
	for _, b := range s.options.Bindings {
		schemas, names = append(schemas, b.Schema), append(names, b.Table)
	}
	for _, column := range t.Columns {
		if !slices.Contains(parents, column.Parent) {
			parents = append(parents, column.Parent)
		}
	}
	var role, bound string
	var childHidden, parentHidden, usage, reads, deletes, readsParent bool
	err := conn.QueryRow(ctx, inspectSQL, t.Schema, t.Table, parent.Schema, parent.Table, parents, schemas, names).Scan(
		&c.kind, &childHidden, &parentHidden, &role, &usage, &reads, &deletes, &c.locks, &readsParent, &bound, &c.key, &c.types)
	if err != nil {
		return c, err
	}
	who, table := pgx.Identifier{role}.Sanitize(), pgx.Identifier{t.Schema, t.Table}.Sanitize()
	switch {
	case bound != "":
		t.Skipped = "it is bound itself (" + bound + "), and rows of bound tables are never removed"
	case c.kind != "r" && c.kind != "p":
		t.Err = reconciler.Hint(fmt.Errorf("%s is not a table", t.Name()), "name the tables to clean in tasks.children")
	case !usage || !reads || !deletes:
		t.Err = reconciler.Hint(fmt.Errorf("role %s may not remove rows of %s", role, t.Name()), fmt.Sprintf(
			"GRANT USAGE ON SCHEMA %s TO %s; GRANT SELECT, DELETE ON %s TO %s;", pgx.Identifier{t.Schema}.Sanitize(), who, table, who))
	case !readsParent:
		t.Err = reconciler.Hint(fmt.Errorf("role %s may not read %s of %s", role, strings.Join(parents, ", "), parent.Name()), fmt.Sprintf(
			"GRANT USAGE ON SCHEMA %s TO %s; GRANT SELECT (%s) ON %s TO %s;", pgx.Identifier{parent.Schema}.Sanitize(), who, identifiers(parents), qualified(parent), who))
	case childHidden || parentHidden:
		t.Err = reconciler.Hint(fmt.Errorf("a policy hides rows of %s or %s from role %s", t.Name(), parent.Name(), role), fmt.Sprintf("ALTER ROLE %s BYPASSRLS;", who))
	case len(c.key) == 0:
		t.Err = reconciler.Hint(fmt.Errorf("table %s has no primary key, by which it could be read in batches", t.Name()), fmt.Sprintf("ALTER TABLE %s ADD PRIMARY KEY (…);", table))
	}
	return c, nil
}
