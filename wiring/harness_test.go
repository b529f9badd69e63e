package wiring_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// recovery is how long the daemon may take to be whole again after any fault.
const recovery = 30 * time.Second

// grace is policy.grace in these tests.
const grace = 500 * time.Millisecond

// world is both stores, a daemon, and what must be true of them.
type world struct {
	t      *testing.T
	sb     *sandbox.Sandbox
	dbURL  string
	db     *pgxpool.Pool
	redis  *redis.Client
	store  *celery.Store
	daemon *daemon
	env    []string // of every daemon and command, over the defaults
}

func newWorld(t *testing.T, opts ...sandbox.Options) *world {
	t.Helper()
	if len(opts) == 0 {
		opts = []sandbox.Options{{Redis: sandbox.RedisOptions{AppendOnly: true}}}
	}
	if opts[0].Redis.ACLFile == "" {
		opts[0].Redis.ACLFile = usersACL
	}
	w := &world{t: t, sb: sandbox.New(t, opts...)}
	var err error
	w.dbURL, err = w.sb.Postgres.NewExampleDatabase(t.Context())
	require.NoError(t, err)
	w.setup()
	w.connect()
	w.useResults(w.sb.Redis, 0)
	t.Cleanup(func() { w.notRefused(w.redis) })
	return w
}

// watched is a world with n rows that have results, and a daemon after its first pass.
func watched(t *testing.T, n int, env ...string) (w *world, rows []string) {
	t.Helper()
	w = newWorld(t)
	rows = w.rows(n)
	w.results(rows...)
	w.run(env...)
	w.firstPass()
	return w, rows
}

// client is one of a database of a Redis, for as long as the test runs.
func (w *world) client(server *sandbox.Redis, db int) *redis.Client {
	c := server.Client(db)
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// useResults says where the results are, and our own keys beside them.
func (w *world) useResults(server *sandbox.Redis, db int) {
	w.redis = w.client(server, db)
	w.store = celery.New(celery.Options{Client: w.redis})
}

func (w *world) connect() {
	var err error
	w.db, err = pgxpool.New(w.t.Context(), w.dbURL)
	require.NoError(w.t, err)
	w.t.Cleanup(w.db.Close)
}

func (w *world) sql(statement string, args ...any) {
	w.t.Helper()
	_, err := w.db.Exec(w.t.Context(), statement, args...)
	require.NoError(w.t, err)
}

// one reads one value.
func one[T any](w *world, statement string, args ...any) (v T) {
	w.t.Helper()
	require.NoError(w.t, w.db.QueryRow(w.t.Context(), statement, args...).Scan(&v))
	return v
}

// rows inserts n rows and gives their ids.
func (w *world) rows(n int) []string {
	w.t.Helper()
	ids := make([]string, n)
	for i := range ids {
		ids[i] = uuid.NewString()
	}
	w.sql("INSERT INTO scan_tasks (id) SELECT unnest($1::uuid[])", ids)
	return ids
}

func resultKey(id string) string { return "celery-task-meta-" + id }

func resultValue(id string) string {
	return fmt.Sprintf(`{"status": "SUCCESS", "result": 1, "traceback": null, "children": [], "date_done": "2026-11-23T13:30:13.852832", "task_id": %q}`, id)
}

// results writes result keys as Celery does.
func (w *world) results(ids ...string) {
	w.t.Helper()
	for len(ids) > 0 {
		page := ids[:min(1000, len(ids))]
		ids = ids[len(page):]
		_, err := w.redis.Pipelined(w.t.Context(), func(p redis.Pipeliner) error {
			for _, id := range page {
				p.SetEx(w.t.Context(), resultKey(id), resultValue(id), 24*time.Hour)
				p.Publish(w.t.Context(), resultKey(id), resultValue(id))
			}
			return nil
		})
		require.NoError(w.t, err)
	}
}

// have counts those of the ids that have a result.
func (w *world) have(ids ...string) int {
	w.t.Helper()
	n, err := w.count(ids)
	require.NoError(w.t, err)
	return n
}

func (w *world) count(ids []string) (n int, err error) {
	for len(ids) > 0 {
		page := ids[:min(1000, len(ids))]
		ids = ids[len(page):]
		keys := make([]string, len(page))
		for i, id := range page {
			keys[i] = resultKey(id)
		}
		c, err := w.redis.Exists(w.t.Context(), keys...).Result()
		if err != nil {
			return 0, err
		}
		n += int(c)
	}
	return n, nil
}

// gone awaits that none of the ids has a result.
func (w *world) gone(timeout time.Duration, ids ...string) {
	w.t.Helper()
	sandbox.AwaitTB(w.t, timeout, "the results to be gone", func() error {
		n, err := w.count(ids)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d of %d are left", n, len(ids))
		}
		return err
	})
}

// stays watches for a while that every one of the ids keeps its result. What is
// tested is that time passes and nothing happens.
func (w *world) stays(d time.Duration, ids ...string) {
	w.t.Helper()
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		require.Equal(w.t, len(ids), w.have(ids...), "a result that must stay is gone")
		select {
		case <-end.C:
			return
		case <-tick.C:
		}
	}
}

// environ is what a daemon and a command have in common.
func (w *world) environ() []string {
	return append([]string{
		"DATABASE_URL=" + w.watchURL(), "REDIS_URL=" + w.redisURL(),
		"ORPHANWATCH_POLICY_GRACE=" + grace.String(),
	}, w.env...)
}

// status is what the daemon has published.
func (w *world) status() (s wiring.DaemonStatus, err error) {
	all, err := w.store.ReadStatus(w.t.Context())
	if err != nil {
		return s, err
	}
	for _, body := range all {
		if err := json.Unmarshal(body, &s); err != nil {
			return s, err
		}
		if s.Role == "leader" {
			return s, nil
		}
	}
	if len(all) == 0 {
		return s, errors.New("no copy has published its status")
	}
	return s, nil
}

// awaitStatus waits until the published status says so.
func (w *world) awaitStatus(timeout time.Duration, what string, is func(wiring.DaemonStatus) bool) {
	w.t.Helper()
	sandbox.AwaitTB(w.t, timeout, what, func() error {
		s, err := w.status()
		if err == nil && !is(s) {
			text, _ := json.Marshal(s)
			err = fmt.Errorf("the status is %s", text)
		}
		return err
	})
}

// awaitPass waits for a pass that began from now on.
func (w *world) awaitPass(timeout time.Duration) {
	w.t.Helper()
	from := time.Now()
	w.awaitStatus(timeout, "a pass to end", func(s wiring.DaemonStatus) bool {
		return s.Pass.Started.After(from) && !s.Pass.Ended.IsZero()
	})
}

// firstPass waits until the first pass has ended.
func (w *world) firstPass() {
	w.t.Helper()
	w.awaitStatus(recovery, "the first pass", func(s wiring.DaemonStatus) bool { return !s.Pass.Ended.IsZero() })
}

// confirmed is the slot's position.
func (w *world) confirmed() string {
	return one[string](w, "SELECT coalesce(confirmed_flush_lsn, '0/0')::text FROM pg_replication_slots WHERE slot_name = 'orphanwatch'")
}

// begin opens a transaction on a connection of its own.
func (w *world) begin() (pgx.Tx, func()) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.dbURL)
	require.NoError(w.t, err)
	tx, err := conn.Begin(w.t.Context())
	require.NoError(w.t, err)
	return tx, func() { _ = conn.Close(context.WithoutCancel(w.t.Context())) }
}

// writeConfig writes a configuration file.
func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "orphanwatch.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}
