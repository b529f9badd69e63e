package wiring_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

var (
	modelChecks = flag.Int("model.checks", 6, "random schedules of TestModel")
	modelSteps  = flag.Int("model.steps", 30, "steps of each")
)

// model is what must be true of the stores after a schedule.
type model struct {
	*world
	t    *rapid.T
	rows map[string]bool // committed
	// must: written while its row was committed or being inserted, and the row has
	// not been deleted since: it must stay, as it is. value is what was last written.
	must  map[string]bool
	value map[string]string
	// deleted: the log position after the commit of the delete, of rows whose
	// result was there then; the position may be confirmed only once it is gone.
	deleted map[string]string
	// droppedAt is when the row was last deleted.
	droppedAt map[string]time.Time
	open      []insertion
	writes    int
}

type insertion struct {
	tx    pgx.Tx
	close func()
	id    string
}

// TestModel drives random schedules of everything that may happen to rows,
// results, both servers and the daemon, and asserts that no living result is ever
// touched, that the confirmed position is never beyond what was done, and that in
// the end no orphan is left.
func TestModel(t *testing.T) {
	require.NoError(t, flag.Set("rapid.checks", fmt.Sprint(*modelChecks)))
	require.NoError(t, flag.Set("rapid.shrinktime", "1ns")) // a schedule takes seconds, and is told anyhow
	w := newWorld(t)
	w.run()
	w.firstPass()
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{
			world: w, t: rt, rows: map[string]bool{}, must: map[string]bool{},
			value: map[string]string{}, deleted: map[string]string{}, droppedAt: map[string]time.Time{},
		}
		m.start()
		for range *modelSteps {
			m.step()
			m.check()
		}
		m.finish()
	})
}

func (m *model) start() {
	require.NoError(m.t, m.redis.Do(m.world.t.Context(), "EVAL",
		"for _, k in ipairs(redis.call('KEYS', 'celery-task-meta-*')) do redis.call('UNLINK', k) end return 1", 0).Err())
	m.sql("TRUNCATE scan_tasks CASCADE")
	for _, id := range m.world.rows(200) {
		m.rows[id] = true
		m.write(id)
	}
}

// write sets the result of a task, different each time.
func (m *model) write(id string) {
	m.writes++
	v := fmt.Sprintf(`{"status": "SUCCESS", "result": %d, "task_id": %q}`, m.writes, id)
	sandbox.AwaitTB(m.world.t, recovery, "a write", func() error {
		return m.redis.Set(m.world.t.Context(), resultKey(id), v, time.Hour).Err()
	})
	m.value[id] = v
	m.must[id] = m.rows[id] || m.inserting(id)
	delete(m.deleted, id)
}

func (m *model) inserting(id string) bool {
	return slices.ContainsFunc(m.open, func(i insertion) bool { return i.id == id })
}

func (m *model) pick(living bool) string {
	var all []string
	for id, is := range m.rows {
		if is == living {
			all = append(all, id)
		}
	}
	if len(all) == 0 {
		return uuid.NewString()
	}
	// Maps have no order: drawing an index would not be repeatable anyway, and the
	// stores' timing is not either.
	return all[rapid.IntRange(0, len(all)-1).Draw(m.t, "row")]
}

// exec retries while the application's own connection is in the way of a fault.
func (m *model) exec(statements ...string) {
	sandbox.AwaitTB(m.world.t, recovery, "a transaction", func() error {
		return pgx.BeginFunc(m.world.t.Context(), m.db, func(tx pgx.Tx) error {
			for _, s := range statements {
				if _, err := tx.Exec(m.world.t.Context(), s); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// exec1 is exec without a transaction.
func (m *model) exec1(statement string) {
	sandbox.AwaitTB(m.world.t, recovery, "a statement", func() error {
		_, err := m.db.Exec(m.world.t.Context(), statement)
		return err
	})
}

func (m *model) lsn() (lsn string) {
	sandbox.AwaitTB(m.world.t, recovery, "the log position", func() error {
		return m.db.QueryRow(m.world.t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&lsn)
	})
	return lsn
}

// dropped notes that the row was deleted.
func (m *model) dropped(id string, seenInLog bool) {
	had := m.must[id]
	m.rows[id], m.must[id] = false, false
	m.droppedAt[id] = time.Now()
	if had && seenInLog {
		m.deleted[id] = m.lsn()
	}
}

func (m *model) step() {
	ctx := m.world.t.Context()
	steps := map[string]func(){
		"insert": func() {
			id := m.pick(false)
			if m.inserting(id) {
				return // it would wait for that one
			}
			m.exec(fmt.Sprintf("INSERT INTO scan_tasks (id) VALUES ('%s') ON CONFLICT DO NOTHING", id))
			m.rows[id] = true
			delete(m.deleted, id)
		},
		"insert and write": func() {
			id := uuid.NewString()
			m.exec(fmt.Sprintf("INSERT INTO scan_tasks (id) VALUES ('%s')", id))
			m.rows[id] = true
			m.write(id)
		},
		"begin an insert, write": func() {
			if len(m.open) > 3 {
				return
			}
			id := uuid.NewString()
			tx, closeIt := m.begin()
			_, err := tx.Exec(ctx, "INSERT INTO scan_tasks (id) VALUES ($1)", id)
			require.NoError(m.t, err)
			m.open = append(m.open, insertion{tx, closeIt, id})
			m.write(id)
		},
		"begin to insert a deleted row again, write": func() {
			if len(m.open) > 3 {
				return
			}
			id := m.pick(false)
			if m.inserting(id) {
				return
			}
			// R3: what is there at a prompt first look goes at once.
			waitFor(m.world.t, time.Until(m.droppedAt[id].Add(grace+100*time.Millisecond)))
			tx, closeIt := m.begin()
			_, err := tx.Exec(ctx, "INSERT INTO scan_tasks (id) VALUES ($1) ON CONFLICT DO NOTHING", id)
			require.NoError(m.t, err)
			m.open = append(m.open, insertion{tx, closeIt, id})
			m.write(id)
		},
		"write the same again": func() {
			id := m.pick(true)
			if v, ok := m.value[id]; ok {
				require.NoError(m.t, m.redis.Set(ctx, resultKey(id), v, time.Hour).Err())
				m.must[id] = true
				delete(m.deleted, id)
			}
		},
		"end an insert": func() { m.end(rapid.Bool().Draw(m.t, "commit")) },
		"delete": func() {
			id := m.pick(true)
			m.exec(fmt.Sprintf("DELETE FROM scan_tasks WHERE id = '%s'", id))
			m.dropped(id, true)
		},
		"delete some": func() {
			for range 5 {
				id := m.pick(true)
				m.exec(fmt.Sprintf("DELETE FROM scan_tasks WHERE id = '%s'", id))
				m.dropped(id, true)
			}
		},
		"delete and insert again": func() {
			id := m.pick(true)
			m.exec(fmt.Sprintf("DELETE FROM scan_tasks WHERE id = '%s'", id), fmt.Sprintf("INSERT INTO scan_tasks (id) VALUES ('%s')", id))
			if rapid.Bool().Draw(m.t, "write") {
				m.write(id)
			}
		},
		"delete, then insert again and write": func() {
			id := m.pick(true)
			m.exec(fmt.Sprintf("DELETE FROM scan_tasks WHERE id = '%s'", id))
			m.exec(fmt.Sprintf("INSERT INTO scan_tasks (id) VALUES ('%s')", id))
			m.write(id)
		},
		"delete in a savepoint that is rolled back": func() {
			id := m.pick(true)
			m.exec("SAVEPOINT s", fmt.Sprintf("DELETE FROM scan_tasks WHERE id = '%s'", id), "ROLLBACK TO s")
		},
		"delete, rolled back": func() {
			tx, closeIt := m.begin()
			defer closeIt()
			_, err := tx.Exec(ctx, "DELETE FROM scan_tasks WHERE id = $1", m.pick(true))
			require.NoError(m.t, err)
			require.NoError(m.t, tx.Rollback(ctx))
		},
		"change a key": func() {
			id, to := m.pick(true), uuid.NewString()
			m.exec(fmt.Sprintf("UPDATE scan_tasks SET id = '%s' WHERE id = '%s'", to, id))
			if m.rows[id] {
				m.rows[to] = true
			}
			m.dropped(id, true)
		},
		"truncate, and insert most again": func() {
			if len(m.open) > 0 {
				return // it would wait for them
			}
			lost := m.pick(true)
			m.exec("CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM scan_tasks",
				"TRUNCATE scan_tasks CASCADE",
				fmt.Sprintf("INSERT INTO scan_tasks SELECT * FROM kept WHERE id <> '%s'", lost))
			m.dropped(lost, false)
		},
		"write": func() {
			for range 10 {
				m.write(m.pick(true))
			}
		},
		"write late":   func() { m.write(m.pick(false)) },
		"write orphan": func() { m.rows[m.orphan()] = false },
		"kill -9": func() {
			m.daemon.kill()
			m.daemon = m.world.start()
		},
		"SIGTERM": func() {
			m.daemon.up() // before that the signal is not heard yet
			m.daemon.stop()
			m.daemon = m.world.start()
		},
		"cut redis": func() { _ = m.redis.Do(ctx, "CLIENT", "KILL", "TYPE", "pubsub").Err() },
		"cut postgres": func() {
			_, _ = m.db.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'orphanwatch%'")
		},
		"restart redis": func() { require.NoError(m.t, m.sb.Redis.Restart(ctx)) },
		"restart postgres": func() {
			m.end(true)
			if len(m.open) == 0 {
				require.NoError(m.t, m.sb.Postgres.Restart(ctx))
			}
		},
	}
	names := slices.Collect(maps.Keys(steps))
	// What the application does is more frequent than faults.
	frequent := []string{"begin to insert a deleted row again, write", "write the same again", "insert and write", "delete", "delete some", "write", "write orphan", "write late", "begin an insert, write", "end an insert"}
	slices.Sort(names)
	name := rapid.SampledFrom(append(append(names, frequent...), frequent...)).Draw(m.t, "step")
	steps[name]()
}

func (m *model) orphan() string {
	id := uuid.NewString()
	m.write(id)
	return id
}

func (m *model) end(commit bool) {
	if len(m.open) == 0 {
		return
	}
	i := m.open[0]
	m.open = m.open[1:]
	defer i.close()
	ctx := m.world.t.Context()
	if commit && rapid.Bool().Draw(m.t, "in two phases") {
		_, err := i.tx.Exec(ctx, fmt.Sprintf("PREPARE TRANSACTION '%s'", i.id))
		require.NoError(m.t, err)
		m.check()
		m.exec1(fmt.Sprintf("COMMIT PREPARED '%s'", i.id))
		m.rows[i.id] = true
		return
	}
	if commit {
		require.NoError(m.t, i.tx.Commit(ctx))
		m.rows[i.id] = true
		return
	}
	require.NoError(m.t, i.tx.Rollback(ctx))
	m.rows[i.id], m.must[i.id] = false, false
}

// check asserts what must hold at every moment.
func (m *model) check() {
	ctx, cancel := context.WithTimeout(m.world.t.Context(), recovery)
	defer cancel()
	var confirmed string
	if err := m.db.QueryRow(ctx, "SELECT coalesce(max(confirmed_flush_lsn), '0/0')::text FROM pg_replication_slots WHERE slot_name = 'orphanwatch'").Scan(&confirmed); err != nil {
		confirmed = "0/0" // a server that restarts: nothing is known, and nothing claimed
	}
	for id, must := range m.must {
		lsn, wasDeleted := m.deleted[id]
		if !must && !wasDeleted {
			continue
		}
		value, err := m.redis.Get(ctx, resultKey(id)).Result()
		switch {
		case must && value != m.value[id]:
			m.t.Fatalf("R1: the result of the living row %s is %q (%v), must be %q", id, value, err, m.value[id])
		case wasDeleted && value != "" && passed(confirmed, lsn):
			m.t.Fatalf("the position %s is confirmed, past the delete of %s (before %s), whose result is there", confirmed, id, lsn)
		}
	}
}

func passed(confirmed, lsn string) bool {
	var a, b [2]uint64
	_, _ = fmt.Sscanf(confirmed, "%X/%X", &a[0], &a[1])
	_, _ = fmt.Sscanf(lsn, "%X/%X", &b[0], &b[1])
	return a[0]<<32|a[1] >= b[0]<<32|b[1]
}

// finish ends what is open, and awaits that every orphan is gone.
func (m *model) finish() {
	for len(m.open) > 0 {
		m.end(rapid.Bool().Draw(m.t, "commit"))
	}
	m.daemon.ready(recovery)
	if s, err := m.status(); err == nil && s.Guard != nil {
		m.t.Logf("the guard has tripped (%s): accepted", s.Guard.Reason)
		require.NoError(m.t, m.store.AcceptAbsent(m.world.t.Context()))
	}
	var orphans []string
	for id := range m.value {
		if !m.rows[id] {
			orphans = append(orphans, id)
		}
	}
	m.gone(recovery, orphans...)
	m.check()
}
