package wiring

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// Report is the state of everything at one moment: the data of
// GET /api/v1/cache/status. What could not be asked is null, and says why.
type Report struct {
	Timestamp time.Time `json:"timestamp"`

	RedisConnected bool       `json:"redis_connected"`
	RedisError     string     `json:"redis_error,omitempty"`
	RedisInfo      *RedisInfo `json:"redis_info"`

	// BrokerConnected is of the Redis that holds the messages; it may be the same.
	BrokerConnected bool   `json:"broker_connected"`
	BrokerError     string `json:"broker_error,omitempty"`

	DatabaseConnected bool         `json:"database_connected"`
	DatabaseError     string       `json:"database_error,omitempty"`
	Tables            []TableCount `json:"tables"`
	Slot              *SlotStatus  `json:"slot"`

	// CeleryTasks are the result keys, an estimate where CeleryTasksEstimated.
	CeleryTasks          *int64 `json:"celery_tasks_count"`
	CeleryTasksEstimated bool   `json:"celery_tasks_estimated"`
	// DatabaseTasks are the rows of all bound tables.
	DatabaseTasks *int64 `json:"database_tasks_count"`
	// OrphanedTasks are those that the leader knows of and has not removed: held
	// since its last pass, or waiting in its queue. null where nobody leads.
	OrphanedTasks *int64 `json:"orphaned_tasks_count"`

	// Daemons are the running copies, the leader first.
	Daemons []DaemonStatus `json:"daemons"`
	// Guard is set while removals on evidence absent are held.
	Guard  *reconciler.Trip `json:"guard"`
	Paused *PauseStatus     `json:"paused"`
}

// RedisInfo is what INFO says of the server.
type RedisInfo struct {
	Version          string `json:"redis_version"`
	UsedMemory       int64  `json:"used_memory"`
	UsedMemoryHuman  string `json:"used_memory_human"`
	MaxMemoryHuman   string `json:"maxmemory_human,omitempty"`
	ConnectedClients int    `json:"connected_clients"`
	Keys             int64  `json:"keys"`
}

// TableCount is how many rows a bound table has.
type TableCount struct {
	Table     string `json:"table"`
	Rows      *int64 `json:"rows"`
	Estimated bool   `json:"estimated"`
	Error     string `json:"error,omitempty"`
}

// SlotStatus is our replication slot, as PostgreSQL shows it.
type SlotStatus struct {
	Name   string `json:"name"`
	Exists bool   `json:"exists"`
	Active bool   `json:"active"`
	// Holder is who reads it.
	Holder string `json:"holder,omitempty"`
	// WALStatus is reserved, extended, unreserved or lost.
	WALStatus string `json:"wal_status,omitempty"`
	// RetainedWAL is kept for the slot, SafeWAL how much more will be, -1 for no
	// limit; bytes.
	RetainedWAL int64 `json:"retained_wal"`
	SafeWAL     int64 `json:"safe_wal"`
	// Confirmed is the position up to which everything is done.
	Confirmed reconciler.LSN `json:"-"`
}

// PauseStatus is since when and by whom removals are paused.
type PauseStatus struct {
	Since time.Time `json:"since"`
	By    string    `json:"by"`
}

// Leader is the copy that leads, nil for none.
func (r *Report) Leader() *DaemonStatus {
	for i := range r.Daemons {
		if r.Daemons[i].Role == watcher.RoleLeader {
			return &r.Daemons[i]
		}
	}
	return nil
}

// Inspect asks both stores, side by side, and reports what each said in time.
func (s *Stores) Inspect(ctx context.Context) *Report {
	ctx, cancel := Bounded(ctx)
	defer cancel()
	r := &Report{Timestamp: time.Now().UTC(), Tables: []TableCount{}, Daemons: []DaemonStatus{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.inspectRedis(ctx, r); err != nil {
			r.RedisError = err.Error()
			return
		}
		r.RedisConnected = true
	})
	wg.Go(func() {
		if err := s.broker.Ping(ctx).Err(); err != nil {
			r.BrokerError = firstLine(err)
			return
		}
		r.BrokerConnected = true
	})
	wg.Go(func() {
		if err := s.inspectPostgres(ctx, r); err != nil {
			r.DatabaseError = err.Error()
			return
		}
		r.DatabaseConnected = true
	})
	wg.Wait()
	r.conclude()
	return r
}

// conclude adds up what the daemons and the tables said.
func (r *Report) conclude() {
	if leader := r.Leader(); leader != nil {
		n := int64(0)
		for _, held := range leader.Held {
			n += held
		}
		for _, waiting := range leader.Queue.Waiting { // those of Messages are of the same tasks
			n += int64(waiting)
		}
		r.OrphanedTasks = &n
		r.Guard = leader.Guard
	}
	sum := int64(0)
	for _, t := range r.Tables {
		if t.Rows == nil {
			return
		}
		sum += *t.Rows
	}
	if r.DatabaseConnected {
		r.DatabaseTasks = &sum
	}
}

func (s *Stores) inspectRedis(ctx context.Context, r *Report) error {
	text, err := s.redis.Info(ctx).Result()
	if err != nil {
		return errors.New(firstLine(err)) // go-redis says what it was about
	}
	info := infoFields(text)
	r.RedisInfo = &RedisInfo{
		Version: info["redis_version"], UsedMemoryHuman: info["used_memory_human"],
	}
	r.RedisInfo.UsedMemory, _ = strconv.ParseInt(info["used_memory"], 10, 64)
	r.RedisInfo.ConnectedClients, _ = strconv.Atoi(info["connected_clients"])
	if info["maxmemory"] != "0" {
		r.RedisInfo.MaxMemoryHuman = info["maxmemory_human"]
	}
	if r.RedisInfo.Keys, err = s.Celery.CountEstimate(ctx); err != nil {
		return err
	}
	if r.Daemons, err = s.Daemons(ctx); err != nil {
		return err
	}
	state, err := s.Celery.State(ctx)
	if err != nil {
		return err
	}
	if state.Paused {
		r.Paused = &PauseStatus{Since: state.PausedSince, By: state.PausedBy}
	}
	if r.Guard, err = TripOf(state); err != nil {
		return err
	}
	n, exact, err := s.countResults(ctx, r.RedisInfo.Keys)
	if err != nil {
		return err
	}
	r.CeleryTasks, r.CeleryTasksEstimated = &n, !exact
	return nil
}

// TripOf is the guard's trip as the control key keeps it, nil for none.
func TripOf(state ControlState) (*reconciler.Trip, error) {
	if len(state.Guard) == 0 {
		return nil, nil //nolint:nilnil // no trip is no error
	}
	var trip reconciler.Trip
	if err := json.Unmarshal(state.Guard, &trip); err != nil {
		return nil, fmt.Errorf("read the guard in orphanwatch:control: %w", err)
	}
	return &trip, nil
}

// Daemons are the copies that have published their state in the last seconds,
// the leader first; of two, the newest: one that was stopped and replaced may say for a
// moment that it still is.
func (s *Stores) Daemons(ctx context.Context) ([]DaemonStatus, error) {
	all, err := s.Celery.ReadStatus(ctx)
	if err != nil {
		return nil, err
	}
	daemons := make([]DaemonStatus, 0, len(all))
	for instance, body := range all {
		var d DaemonStatus
		if err := json.Unmarshal(body, &d); err != nil {
			return nil, fmt.Errorf("read the status of %s: %w", instance, err)
		}
		daemons = append(daemons, d)
	}
	rank := func(d DaemonStatus) int {
		return slices.Index([]string{watcher.RoleLeader, watcher.RoleStandby, watcher.RoleStarting}, d.Role)
	}
	slices.SortFunc(daemons, func(a, b DaemonStatus) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.Epoch, a.Epoch), cmp.Compare(a.Instance, b.Instance))
	})
	return daemons, nil
}

// Bounds of countResults: SCANs of about 1 ms each, with as long a pause.
const (
	countCalls = 200
	countTime  = 700 * time.Millisecond
	countPage  = 1000
)

// countResults counts the result keys: all of them where the database is small,
// else from the share that the first keys show.
func (s *Stores) countResults(ctx context.Context, total int64) (n int64, exact bool, err error) {
	var cursor uint64
	seen := map[string]bool{}
	results, began := int64(0), time.Now()
	for range countCalls {
		call := time.Now()
		keys, next, err := s.redis.Scan(ctx, cursor, "", countPage).Result()
		if err != nil {
			return 0, false, fmt.Errorf("count result keys: %w", err)
		}
		for _, key := range keys {
			if seen[key] {
				continue
			}
			seen[key] = true
			if _, ok := s.Celery.Keys.ResultID(key); ok {
				results++
			}
		}
		if cursor = next; cursor == 0 {
			return results, true, nil
		}
		if time.Since(began) > countTime {
			break
		}
		select {
		case <-time.After(time.Since(call)):
		case <-ctx.Done():
			return 0, false, ctx.Err()
		}
	}
	return int64(float64(results) / float64(max(len(seen), 1)) * float64(max(total, int64(len(seen))))), false, nil
}

// infoFields reads the answer of INFO.
func infoFields(text string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

// countable: tables of up to so many rows, by estimate, are counted.
const countable = 200_000

func (s *Stores) inspectPostgres(ctx context.Context, r *Report) error {
	slot, err := s.Slot(ctx)
	if err != nil {
		return err
	}
	r.Slot = &slot
	for i, b := range Bindings(s.config) {
		t := TableCount{Table: b.Name()}
		n, err := s.rows.Estimate(ctx, i)
		t.Estimated = true
		if err == nil && n <= countable {
			var exact int64
			switch exact, err = s.rows.Count(ctx, i); {
			case err == nil:
				n, t.Estimated = exact, false
			case ctx.Err() != nil:
				err = nil // the estimate is what there is
			}
		}
		if errors.Is(err, reconciler.ErrUnreachable) {
			return err
		}
		if err != nil {
			t.Error = err.Error()
		} else {
			t.Rows = &n
		}
		r.Tables = append(r.Tables, t)
	}
	return nil
}

const slotStatusSQL = `
SELECT s.active, coalesce('pid ' || s.active_pid || coalesce(' (' || nullif(a.application_name, '') || ')', ''), ''),
       coalesce(s.wal_status, ''), coalesce(s.safe_wal_size, -1),
       coalesce((CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - s.restart_lsn)::bigint, 0),
       coalesce((s.confirmed_flush_lsn - '0/0')::bigint, 0)
  FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.slot_name = $1`

// Slot reads our slot's row of pg_replication_slots.
func (s *Stores) Slot(ctx context.Context) (SlotStatus, error) {
	slot := SlotStatus{Name: s.config.Replication.Slot, SafeWAL: -1}
	config, err := pgx.ParseConfig(s.config.Postgres.URL.Reveal())
	if err != nil {
		return slot, fmt.Errorf("postgres: read the URL: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return slot, fmt.Errorf("postgres: connect: %w: %w", reconciler.ErrUnreachable, err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	err = conn.QueryRow(ctx, slotStatusSQL, slot.Name).Scan(&slot.Active, &slot.Holder, &slot.WALStatus, &slot.SafeWAL, &slot.RetainedWAL, &slot.Confirmed)
	if errors.Is(err, pgx.ErrNoRows) {
		return slot, nil
	}
	if err != nil {
		return slot, fmt.Errorf("postgres: read slot %s: %w", slot.Name, err)
	}
	slot.Exists = true
	return slot, nil
}

// firstLine is an error on one line.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
