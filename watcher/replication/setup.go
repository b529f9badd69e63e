package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// step is one statement that brings the server to where we need it.
type step struct {
	// what is missing, for people.
	what, sql string
}

// published are the kinds of change that we need. An UPDATE matters where it
// changes a key; without it such an update emits nothing at all.
const published = "update, delete, truncate"

// plan is what publication and slot lack, in the order in which it must be made:
// a slot cannot decode what was written before its publication existed.
func (s *Source) plan(ctx context.Context, conn *pgx.Conn) ([]step, error) {
	steps, err := s.planPublication(ctx, conn)
	if err != nil {
		return nil, err
	}
	slot, err := s.readSlot(ctx, conn)
	if err != nil {
		return nil, err
	}
	if !slot.exists {
		steps = append(steps, step{"replication slot " + s.opts.Slot + " is missing", s.createSlotSQL()})
	}
	return steps, nil
}

func (s *Source) planPublication(ctx context.Context, conn *pgx.Conn) ([]step, error) {
	name := ident(s.opts.Publication)
	var all, actions, viaRoot bool
	// Only a partitioned table has events under other names than its own.
	err := conn.QueryRow(ctx, `SELECT puballtables, pubupdate AND pubdelete AND pubtruncate,
	                                  pubviaroot OR NOT EXISTS (SELECT FROM unnest($2::text[]) t JOIN pg_class c
	                                                            ON c.oid = to_regclass(t) AND c.relkind = 'p')
	                             FROM pg_publication WHERE pubname = $1`, s.opts.Publication, s.tables()).Scan(&all, &actions, &viaRoot)
	if errors.Is(err, pgx.ErrNoRows) {
		return []step{{
			"publication " + s.opts.Publication + " is missing",
			fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (publish = '%s', publish_via_partition_root = true);",
				name, strings.Join(s.tables(), ", "), published),
		}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read publication: %w", err)
	}
	var steps []step
	if !actions {
		steps = append(steps, step{
			"publication " + s.opts.Publication + " does not publish " + published,
			fmt.Sprintf("ALTER PUBLICATION %s SET (publish = '%s');", name, published),
		})
	}
	if !viaRoot {
		steps = append(steps, step{
			"publication " + s.opts.Publication + " publishes partitions under their own names",
			fmt.Sprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = true);", name),
		})
	}
	if all {
		return steps, nil
	}
	missing, err := s.unpublished(ctx, conn)
	if err != nil {
		return nil, err
	}
	for _, table := range missing {
		steps = append(steps, step{
			"publication " + s.opts.Publication + " lacks the table " + table,
			fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s;", name, table),
		})
	}
	return steps, nil
}

// tables are the quoted names of the bound tables, each once.
func (s *Source) tables() []string {
	var out []string
	seen := map[string]bool{}
	for _, b := range s.opts.Bindings {
		if name := quoted(b); !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	return out
}

func quoted(b reconciler.Binding) string { return pgx.Identifier{b.Schema, b.Table}.Sanitize() }

// unpublished are the bound tables that exist outside the publication.
func (s *Source) unpublished(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	var out []string
	for _, table := range s.tables() {
		var outside bool
		err := conn.QueryRow(ctx, `
			SELECT to_regclass($1) IS NOT NULL
			   AND NOT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
			                    WHERE p.pubname = $2 AND r.prrelid = to_regclass($1))
			   AND NOT EXISTS (SELECT FROM pg_publication_namespace n JOIN pg_publication p ON p.oid = n.pnpubid
			                     JOIN pg_class c ON c.relnamespace = n.pnnspid
			                    WHERE p.pubname = $2 AND c.oid = to_regclass($1))`,
			table, s.opts.Publication).Scan(&outside)
		if err != nil {
			return nil, fmt.Errorf("read publication's tables: %w", err)
		}
		if outside {
			out = append(out, table)
		}
	}
	return out, nil
}

// setup runs the plan. What the role may not do is a reconciler.Hinted with the
// SQL for someone who may.
func (s *Source) setup(ctx context.Context, conn *pgx.Conn) error {
	var steps []step
	err := bounded(ctx, func(ctx context.Context) (err error) {
		steps, err = s.plan(ctx, conn)
		return err
	})
	if err != nil {
		return err
	}
	for i, st := range steps {
		s.log.InfoContext(ctx, "mending slot and publication", slog.String(keyReason, st.what), slog.String(keySQL, st.sql))
		_, err := conn.Exec(ctx, st.sql)
		switch {
		case err == nil, hasState(err, stateDuplicate):
		case hasState(err, stateNotPermitted):
			var left []string
			for _, st := range steps[i:] {
				left = append(left, st.sql)
			}
			return reconciler.Hint(fmt.Errorf("%s: %w", st.what, err),
				"run this as the owner of the tables or as superuser:\n"+strings.Join(left, "\n"))
		default:
			return fmt.Errorf("%s: %w", st.what, err)
		}
	}
	return nil
}

// SetupSQL is what Setup would run now; empty where all is there.
func (s *Source) SetupSQL(ctx context.Context) ([]string, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer closeConn(conn)
	steps, err := s.plan(ctx, conn)
	if err != nil {
		return nil, unreachable("setup", err)
	}
	var out []string
	for _, st := range steps {
		out = append(out, st.sql)
	}
	return out, nil
}

// Setup checks the server and makes publication and slot, as far as they are
// missing. It refuses where a publication would make the application's DELETE fail.
func (s *Source) Setup(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	if err := s.preflight(ctx, conn); err != nil {
		return unreachable("setup", err)
	}
	if err := s.setup(ctx, conn); err != nil {
		return unreachable("setup", err)
	}
	return nil
}

// TeardownSQL is what Teardown runs.
func (s *Source) TeardownSQL() []string {
	return []string{
		fmt.Sprintf("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s;", literal(s.opts.Slot)),
		s.dropPublicationSQL(),
	}
}

func (s *Source) dropPublicationSQL() string {
	return fmt.Sprintf("DROP PUBLICATION IF EXISTS %s;", ident(s.opts.Publication))
}

// Teardown drops slot and publication, as far as they are there. It refuses while
// somebody uses the slot.
func (s *Source) Teardown(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	if err := s.teardown(ctx, conn); err != nil {
		return unreachable("teardown", err)
	}
	return nil
}

func (s *Source) teardown(ctx context.Context, conn *pgx.Conn) error {
	slot, err := s.readSlot(ctx, conn)
	if err != nil {
		return err
	}
	if slot.active {
		return reconciler.Hint(&slotInUse{slot.holder}, "stop orphanwatch first, every copy of it")
	}
	if slot.exists {
		if err := s.dropSlot(ctx, conn); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, s.dropPublicationSQL())
	if hasState(err, stateNotPermitted) {
		return reconciler.Hint(fmt.Errorf("drop publication: %w", err), s.dropPublicationSQL())
	}
	if err != nil {
		return fmt.Errorf("drop publication: %w", err)
	}
	return nil
}
