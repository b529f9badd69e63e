package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Finding is one precondition: met, or what is wrong and what mends it.
type Finding = reconciler.Finding

// Check looks at everything that the lookups need.
func (s *Store) Check(ctx context.Context) ([]Finding, error) {
	var recovery bool
	var role string
	err := s.with(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT pg_is_in_recovery(), current_user::text").Scan(&recovery, &role)
	})
	if err != nil {
		return nil, failed("check", err)
	}
	primary := Finding{Name: "postgres primary", OK: !recovery, Fatal: true}
	if recovery {
		primary.Detail = "the server is in recovery: a standby may be behind, so nothing is decided from it"
		primary.Fix = "point DATABASE_URL at the primary"
	}
	findings := []Finding{primary}
	for _, b := range s.options.Bindings {
		more, err := s.checkTable(ctx, b, role)
		if err != nil {
			return nil, failed("check "+b.Name(), err)
		}
		findings = append(findings, more...)
	}
	return findings, nil
}

func (s *Store) checkTable(ctx context.Context, b reconciler.Binding, role string) ([]Finding, error) {
	exists := Finding{Name: "table " + b.Name(), OK: true, Fatal: true}
	if _, err := s.describe(ctx, b); err != nil {
		if unreachable(err) {
			return nil, err
		}
		exists.OK, exists.Detail = false, err.Error()
		var hinted *reconciler.Hinted
		if errors.As(err, &hinted) {
			exists.Detail, exists.Fix = hinted.Err.Error(), hinted.Hint
		}
		return []Finding{exists}, nil
	}
	return s.checkRights(ctx, b, role, []Finding{exists})
}

func (s *Store) checkRights(ctx context.Context, b reconciler.Binding, role string, findings []Finding) ([]Finding, error) {
	columns := append([]string{b.Key}, b.Columns...)
	var usage, hidden bool
	var denied, unindexed []string
	err := s.with(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
		SELECT has_schema_privilege(n.oid, 'USAGE'), row_security_active(c.oid),
			ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY($3)
				AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')),
			ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY($3)
				AND NOT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum AND i.indisvalid AND i.indpred IS NULL))
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2`,
			b.Schema, b.Table, columns).Scan(&usage, &hidden, &denied, &unindexed)
	})
	if err != nil {
		return nil, err
	}
	who := pgx.Identifier{role}.Sanitize()

	rights := Finding{Name: "SELECT on " + b.Name(), OK: usage && len(denied) == 0, Fatal: true}
	if !rights.OK {
		rights.Detail = fmt.Sprintf("role %s cannot read %s", role, strings.Join(columns, ", "))
		rights.Fix = fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s; GRANT SELECT (%s) ON %s TO %s;",
			pgx.Identifier{b.Schema}.Sanitize(), who, identifiers(columns), qualified(b), who)
	}
	security := Finding{Name: "row security of " + b.Name(), OK: !hidden, Fatal: true}
	if hidden {
		security.Detail = "a policy hides rows from role " + role + ", so lookups are refused"
		security.Fix = fmt.Sprintf("ALTER ROLE %s BYPASSRLS;", who)
	}
	findings = append(findings, rights, security)
	for _, name := range columns {
		index := Finding{Name: "index on " + b.Name() + "." + name, OK: true}
		for _, missing := range unindexed {
			if missing == name {
				index.OK = false
				index.Detail = "every lookup reads the whole table"
				index.Fix = fmt.Sprintf("CREATE INDEX CONCURRENTLY ON %s (%s);", qualified(b), identifiers([]string{name}))
			}
		}
		findings = append(findings, index)
	}
	return findings, nil
}

func identifiers(names []string) string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = pgx.Identifier{name}.Sanitize()
	}
	return strings.Join(out, ", ")
}
