package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// mode is what Health.Mode says.
const mode = watcher.ModeReplication

// silence is how long a stream may bring nothing at all, keepalives included,
// which the server sends each half of senderTimeout.
const silence = senderTimeout * 3 / 2

// monitor is the state of the goroutine that owns the normal connection.
type monitor struct {
	*Session
	sink watcher.Sink
	// sentAt is when the canary that is awaited was emitted, zero for none;
	// sentLSN is its place in the log, sentID its time in ns.
	sentAt  time.Time
	sentLSN reconciler.LSN
	sentID  int64
	// received is the count of messages at progressAt, when it last changed.
	received   int64
	progressAt time.Time
	// backlog is what the last tick found, while over the budget.
	backlog int64
	health  watcher.Health
}

// monitor watches over the session until run ends (nil), or until the session is
// lost: the connection is cut, the server shuts down, the stream is silent.
func (s *Session) monitor(run context.Context, sink watcher.Sink) error {
	m := &monitor{Session: s, sink: sink, progressAt: time.Now()}
	m.health = watcher.Health{Connected: true, Mode: mode, SafeWAL: -1}
	m.report()
	err := m.loop(run)
	if run.Err() != nil {
		return nil
	}
	return err
}

func (m *monitor) loop(run context.Context) error {
	run, leave := m.opts.Pulse.Enter(run, "replication monitor", watcher.SourceLimit)
	defer leave()
	var tick, canary time.Time
	for {
		reconciler.Beat(run)
		now := time.Now()
		if !now.Before(tick) {
			if err := bounded(run, m.tick); err != nil {
				return err
			}
			tick = now.Add(m.opts.MonitorEvery)
		}
		if !now.Before(canary) {
			if err := bounded(run, m.emit); err != nil {
				return err
			}
			canary = now.Add(m.opts.CanaryEvery)
		}
		if err := m.listen(run, minTime(tick, canary)); err != nil {
			return err
		}
		if run.Err() != nil {
			return nil
		}
		if err := m.judge(time.Now()); err != nil {
			return err
		}
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// listen waits for bad news: a server that shuts down tells this connection.
func (m *monitor) listen(run context.Context, until time.Time) error {
	ctx, cancel := context.WithDeadline(run, until)
	defer cancel()
	err := m.conn.PgConn().WaitForNotification(ctx)
	if err == nil || ctx.Err() != nil && !m.conn.IsClosed() {
		return nil
	}
	return fmt.Errorf("watch the server: %w", err)
}

func (m *monitor) report() {
	m.health.Position = m.Position()
	m.sink.Report(watcher.SourcePostgres, m.health)
}

// emit sends a canary, unless one is on its way.
func (m *monitor) emit(ctx context.Context) error {
	if !m.sentAt.IsZero() {
		return nil
	}
	now := time.Now()
	var lsn int64
	err := m.conn.QueryRow(ctx, `SELECT (pg_logical_emit_message(false, $1, $2::text) - '0/0')::bigint`,
		prefixCanary, fmt.Sprintf("%s %d", m.token, now.UnixNano())).Scan(&lsn)
	if err != nil {
		return fmt.Errorf("emit canary: %w", err)
	}
	m.sentAt, m.sentID, m.sentLSN = now, now.UnixNano(), reconciler.LSN(lsn) //nolint:gosec // positions are far below 2^63
	return nil
}

var (
	errCanaryLost = errors.New("the stream has passed the canary without bringing it")
	errSilent     = fmt.Errorf("the stream was silent for %s: %w", silence, reconciler.ErrUnreachable)
)

// judge looks whether the stream flows. A backlog makes the canary late, and so
// does one large foreign transaction: that is said, but no reason to start over.
func (m *monitor) judge(now time.Time) error {
	if n := m.Session.received.Load(); n != m.received || m.blocked.Load() {
		m.received, m.progressAt = n, now
	}
	if now.Sub(m.progressAt) > silence {
		return errSilent
	}
	// The position first: the canary is stored before the position moves past it.
	passed := m.Position() > m.sentLSN
	late := false
	switch {
	case m.sentAt.IsZero():
	case m.canary.Load() >= m.sentID:
		m.sentAt = time.Time{}
	case passed:
		return errCanaryLost
	case m.blocked.Load():
		m.sentAt = now // its time starts when there is room again
	default:
		late = now.Sub(m.sentAt) > m.opts.CanaryEvery*3/2
	}
	if m.health.Connected == late {
		m.health.Connected, m.health.Err, m.health.StuckSince = !late, "", time.Time{}
		if late {
			m.health.StuckSince = m.sentAt
			m.health.Err = fmt.Sprintf("canary not back since %s; the stream is at %s, the canary at %s",
				m.sentAt.UTC().Format(time.RFC3339), m.Position(), m.sentLSN)
		}
		m.report()
	}
	return nil
}

// tick looks at the slot and at the catalogs.
func (m *monitor) tick(ctx context.Context) error {
	slot, err := m.src.readSlot(ctx, m.conn)
	if err != nil {
		return err
	}
	if err := m.clock.measure(ctx, m.conn); err != nil {
		return err
	}
	m.health.RetainedWAL, m.health.SafeWAL = slot.retained, slot.safe
	m.health.ClockOffset = time.Duration(m.clock.offset.Load())
	m.report()
	m.judgeBudget(ctx, slot)
	return m.mend(ctx)
}

// judgeBudget decides on what holds the log back: first what was read is
// released; if the backlog grows still, behind a full queue, deletes are dropped
// until it is within the budget again.
func (m *monitor) judgeBudget(ctx context.Context, slot slotState) {
	limit := m.opts.MaxWAL
	if half := slot.safe / 2; slot.safe >= 0 && (limit == 0 || half < limit) {
		limit = half
	} else if limit == 0 {
		return
	}
	before := m.budget.Load()
	after := before
	switch {
	case slot.backlog <= limit:
		after = withinBudget
	case before == withinBudget:
		after = releaseWAL
		m.log.WarnContext(ctx, "over the budget of WAL: the position is confirmed before the work is done",
			slog.String(keySlot, m.opts.Slot), slog.Int64(keyBytes, slot.backlog), slog.Int64(keyLimit, limit))
	case m.blocked.Load() && slot.backlog >= m.backlog:
		after = dropDeletes
	}
	m.backlog = slot.backlog
	m.budget.Store(after)
	if after != before || after == releaseWAL {
		m.wake()
	}
}

// mend brings a publication that was changed under us back to what it must be,
// and says which tables are not those that they were.
func (m *monitor) mend(ctx context.Context) error {
	now, err := m.src.readCatalog(ctx, m.conn)
	if err != nil {
		return err
	}
	steps, err := m.src.planPublication(ctx, m.conn)
	if err != nil {
		return err
	}
	reasons := now.changed(m.seen)
	if len(steps) == 0 && len(reasons) == 0 {
		return nil
	}
	if len(steps) > 0 {
		reasons[gapPublication] = true
	}
	if reasons[gapRecreated] {
		delete(reasons, gapPublication)
	}
	m.log.WarnContext(ctx, "bound tables or the publication have changed", slog.Any(keyReason, slices.Sorted(maps.Keys(reasons))))
	if err := m.src.preflight(ctx, m.conn); err != nil {
		return err
	}
	if err := m.src.setup(ctx, m.conn); err != nil {
		return err
	}
	m.seen = now
	for reason := range reasons {
		m.sink.Gap(watcher.SourcePostgres, reason)
	}
	return nil
}

// catalog is what the bound tables are: by quoted name the oid, and the leaf
// partitions with their files, which change with a TRUNCATE that emits nothing.
type catalog map[string]shape

type shape struct {
	oid      uint32
	leaves   string
	identity string // relreplident, which says what a DELETE carries
}

const catalogSQL = `
SELECT coalesce(to_regclass($1)::oid, 0),
       coalesce((SELECT string_agg(c.oid || '/' || c.relfilenode, ' ' ORDER BY c.oid)
                   FROM pg_partition_tree(to_regclass($1)) t JOIN pg_class c ON c.oid = t.relid
                  WHERE t.isleaf AND c.oid <> to_regclass($1)), ''),
       coalesce((SELECT relreplident::text FROM pg_class WHERE oid = to_regclass($1)), '')`

func (s *Source) readCatalog(ctx context.Context, conn *pgx.Conn) (catalog, error) {
	out := catalog{}
	for _, table := range s.tables() {
		var sh shape
		if err := conn.QueryRow(ctx, catalogSQL, table).Scan(&sh.oid, &sh.leaves, &sh.identity); err != nil {
			return nil, fmt.Errorf("read catalogs: %w", err)
		}
		out[table] = sh
	}
	return out, nil
}

// changed are the reasons for a gap between two looks.
func (c catalog) changed(before catalog) map[string]bool {
	reasons := map[string]bool{}
	for table, now := range c {
		was := before[table]
		switch {
		case now.oid == 0 || now == was:
		case now.oid != was.oid:
			reasons[gapRecreated] = true
		case now.identity != was.identity:
			reasons[gapReplicaIdentity] = true
		default:
			reasons[gapPartitions] = true
		}
	}
	return reasons
}
