package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// slotState is our slot's row of pg_replication_slots; all zero where it is missing.
type slotState struct {
	exists bool
	active bool
	// holder is who has it, for people.
	holder    string
	confirmed reconciler.LSN
	// walStatus is reserved, extended, unreserved or lost.
	walStatus string
	// backlog is the log from confirmed to now, retained that which the server
	// keeps for the slot, safe how much more it will keep, -1 for no limit; bytes.
	backlog, retained, safe int64
}

const slotSQL = `
SELECT s.slot_type, coalesce(s.plugin, ''), coalesce(s.database, ''), current_database(), s.temporary, s.active,
       coalesce(s.active_pid, 0), coalesce(a.application_name, ''), coalesce(s.wal_status, ''),
       coalesce((s.confirmed_flush_lsn - '0/0')::bigint, 0),
       coalesce((pg_current_wal_lsn() - s.confirmed_flush_lsn)::bigint, 0),
       coalesce((pg_current_wal_lsn() - s.restart_lsn)::bigint, 0),
       CASE WHEN s.safe_wal_size IS NULL THEN -1 ELSE greatest(s.safe_wal_size, 0) END
  FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.slot_name = $1`

// readSlot looks at our slot. One that cannot be ours is a reconciler.Hinted.
func (s *Source) readSlot(ctx context.Context, conn *pgx.Conn) (slotState, error) {
	var (
		st                              slotState
		kind, plugin, database, current string
		temporary                       bool
		pid                             int
		application                     string
		confirmed                       int64
	)
	err := conn.QueryRow(ctx, slotSQL, s.opts.Slot).Scan(&kind, &plugin, &database, &current, &temporary, &st.active,
		&pid, &application, &st.walStatus, &confirmed, &st.backlog, &st.retained, &st.safe)
	if errors.Is(err, pgx.ErrNoRows) {
		return slotState{}, nil
	}
	if err != nil {
		return slotState{}, fmt.Errorf("read slot: %w", err)
	}
	st.exists, st.confirmed = true, reconciler.LSN(confirmed) //nolint:gosec // positions are far below 2^63
	st.holder = fmt.Sprintf("pid %d", pid)
	if application != "" {
		st.holder += " (" + application + ")"
	}
	what := ""
	switch {
	case kind != "logical":
		what = "is a " + kind + " slot"
	case plugin != "pgoutput":
		what = "has the plugin " + plugin + ", not pgoutput"
	case database != current:
		what = "is of database " + database + ", not " + current
	case temporary:
		what = "is temporary"
	default:
		return st, nil
	}
	return slotState{}, reconciler.Hint(fmt.Errorf("replication slot %s %s", s.opts.Slot, what),
		fmt.Sprintf("set another name (replication.slot), or drop it: SELECT pg_drop_replication_slot(%s);", literal(s.opts.Slot)))
}

func (s *Source) createSlotSQL() string {
	return fmt.Sprintf("SELECT pg_create_logical_replication_slot(%s, 'pgoutput');", literal(s.opts.Slot))
}

func (s *Source) dropSlotSQL() string {
	return fmt.Sprintf("SELECT pg_drop_replication_slot(%s);", literal(s.opts.Slot))
}

// dropSlot drops the slot, where it exists and nobody uses it.
func (s *Source) dropSlot(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, s.dropSlotSQL())
	switch {
	case err == nil, hasState(err, stateUndefined):
		return nil
	case hasState(err, stateObjectInUse):
		return &slotInUse{err.Error()}
	case hasState(err, stateNotPermitted):
		return reconciler.Hint(fmt.Errorf("drop slot: %w", err), s.dropSlotSQL())
	}
	return fmt.Errorf("drop slot: %w", err)
}
