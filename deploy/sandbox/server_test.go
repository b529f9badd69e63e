package sandbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

func query[T any](t *testing.T, dsn, sql string) (value T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&value))
	return value
}

func redisClient(t *testing.T, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	opts.MaxRetries = -1
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	return client
}

func TestPostgresIsReadyForLogicalReplication(t *testing.T) {
	t.Parallel()
	dsn := sandbox.NewExampleDatabase(t)
	require.Equal(t, "logical", query[string](t, dsn, "SHOW wal_level"))
	require.Equal(t, "10", query[string](t, dsn, "SHOW max_replication_slots"))
	require.Equal(t, "UTF8", query[string](t, dsn, "SHOW server_encoding"))
	require.Zero(t, query[int](t, dsn, "SELECT count(*) FROM scan_tasks JOIN task_logs ON task_id = scan_tasks.id"))
	// A slot that a test forgets must not keep its database (and 9 others) from going.
	query[string](t, dsn, "SELECT slot_name FROM pg_create_logical_replication_slot('forgotten', 'pgoutput')")

	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	config.RuntimeParams["replication"] = "database"
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err, "trust also for replication")
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "IDENTIFY_SYSTEM")
	require.NoError(t, err)
}

func TestPostgresKeepsDataAndAddress(t *testing.T) {
	t.Parallel()
	pg := sandbox.NewPostgres(t)
	ctx := t.Context()
	addr := pg.Addr()
	require.NoError(t, pg.Exec(ctx, "postgres", "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1)"))

	took, err := pg.Stop(ctx)
	require.NoError(t, err)
	t.Logf("PostgreSQL stopped within %v", took.Round(time.Millisecond))
	require.False(t, pg.Running())
	require.Error(t, pg.Exec(ctx, "postgres", "SELECT 1"))
	require.NoError(t, pg.Start(ctx))
	require.Error(t, pg.Start(ctx), "it runs")
	require.Equal(t, 1, query[int](t, pg.URL(), "SELECT count(*) FROM kept"))

	require.NoError(t, pg.Kill(ctx))
	require.Zero(t, pg.PID())
	require.NoError(t, pg.Start(ctx))
	require.Equal(t, 1, query[int](t, pg.URL(), "SELECT count(*) FROM kept"))

	require.NoError(t, pg.Pause(ctx))
	require.NoError(t, pg.Kill(ctx), "a paused cluster, backends included")
	require.NoError(t, pg.Restart(ctx))
	require.Equal(t, 1, query[int](t, pg.URL(), "SELECT count(*) FROM kept"))
	require.Equal(t, addr, pg.Addr())
}

func TestPostgresReconfigure(t *testing.T) {
	t.Parallel()
	pg := sandbox.NewPostgres(t, sandbox.PostgresOptions{
		Durable: true, Settings: map[string]string{"wal_sender_timeout": "2s"},
	})
	require.Equal(t, "2s", query[string](t, pg.URL(), "SHOW wal_sender_timeout"))
	require.Equal(t, "on", query[string](t, pg.URL(), "SHOW fsync"))
	pid := pg.PID()
	require.NoError(t, pg.Reconfigure(t.Context(), map[string]string{"wal_sender_timeout": "7s"}))
	require.Equal(t, "7s", query[string](t, pg.URL(), "SHOW wal_sender_timeout"))
	require.Equal(t, pid, pg.PID(), "a reload was enough")
	require.NoError(t, pg.Reconfigure(t.Context(), map[string]string{"wal_sender_timeout": ""}))
	require.Equal(t, "2s", query[string](t, pg.URL(), "SHOW wal_sender_timeout"))

	require.NoError(t, pg.Reconfigure(t.Context(), map[string]string{"wal_level": "replica"}))
	require.Equal(t, "replica", query[string](t, pg.URL(), "SHOW wal_level"))
	require.NotEqual(t, pid, pg.PID(), "this one needs a restart")
	require.Error(t, pg.Reconfigure(t.Context(), map[string]string{"no_such": "1"}))
}

func TestPostgresPauseAndResume(t *testing.T) {
	t.Parallel()
	pg := sandbox.NewPostgres(t)
	conn, err := pgx.Connect(t.Context(), pg.URL())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, pg.Pause(t.Context()))

	answer := make(chan error, 1)
	go func() { _, err := conn.Exec(context.Background(), "SELECT 1"); answer <- err }()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	select {
	case err := <-answer:
		require.Fail(t, "a paused backend has answered", "%v", err)
	case <-ctx.Done():
	}
	_, err = pg.Stop(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded, "a paused server cannot stop")
	pg.Resume()
	// It gets the connection's statement and the request to stop at once: either may win.
	<-answer
	sandbox.AwaitTB(t, 10*time.Second, "the stop that was asked for", sandbox.Until(func() bool { return !pg.Running() }))
	require.Error(t, pg.Pause(t.Context()), "it is down")

	require.NoError(t, pg.Start(t.Context()))
	require.NoError(t, pg.Pause(t.Context()))
	pg.Resume()
	require.Equal(t, 1, query[int](t, pg.URL(), "SELECT 1"))
}

func TestRedisPersistence(t *testing.T) {
	t.Parallel()
	for _, appendOnly := range []bool{false, true} {
		r := sandbox.NewRedis(t, sandbox.RedisOptions{AppendOnly: appendOnly})
		client := redisClient(t, r.URL())
		require.NoError(t, client.Set(t.Context(), "k", "v", 0).Err())
		require.NoError(t, r.Restart(t.Context()))
		n, err := client.Exists(t.Context(), "k").Result()
		if err != nil { // the pooled connection had died with the server
			n, err = client.Exists(t.Context(), "k").Result()
		}
		require.NoError(t, err)
		require.Equal(t, appendOnly, n == 1)
		if appendOnly {
			require.NoError(t, client.Set(t.Context(), "k2", "v", 0).Err())
			require.NoError(t, r.Kill(t.Context()))
			require.NoError(t, r.Start(t.Context()))
			other := redisClient(t, r.URL())
			require.EqualValues(t, 2, other.Exists(t.Context(), "k", "k2").Val())
		}
	}
}

func TestRedisPauseAndReconfigure(t *testing.T) {
	t.Parallel()
	r := sandbox.NewRedis(t)
	client := redisClient(t, r.URL())
	require.Equal(t, "", client.ConfigGet(t.Context(), "notify-keyspace-events").Val()["notify-keyspace-events"])
	require.NoError(t, r.Reconfigure(t.Context(), map[string]string{"notify-keyspace-events": "Kg"}))
	require.Equal(t, "gK", client.ConfigGet(t.Context(), "notify-keyspace-events").Val()["notify-keyspace-events"])
	require.Error(t, r.Reconfigure(t.Context(), map[string]string{"no-such": "1"}))

	require.NoError(t, r.Pause(t.Context()))
	answer := make(chan error, 1)
	go func() { answer <- client.Ping(context.Background()).Err() }()
	select {
	case err := <-answer:
		require.Fail(t, "a paused server has answered", "%v", err)
	case <-time.After(150 * time.Millisecond):
	}
	r.Resume()
	require.NoError(t, <-answer)
}

func TestProxy(t *testing.T) {
	t.Parallel()
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	proxy := sandbox.NewProxy(t, sb.Redis.Addr())
	client := redisClient(t, proxy.URL(sb.Redis.URL()))
	ctx := t.Context()
	require.NoError(t, client.Ping(ctx).Err())
	require.Equal(t, 1, proxy.Connections())

	proxy.Cut()
	require.Error(t, client.Ping(ctx).Err())
	require.ErrorContains(t, client.Ping(ctx).Err(), "refused")
	require.NoError(t, proxy.Heal())
	require.NoError(t, client.Ping(ctx).Err())

	proxy.Stall()
	answer := make(chan error, 1)
	go func() { answer <- client.Set(context.Background(), "k", "v", 0).Err() }()
	select {
	case err := <-answer:
		require.Fail(t, "a stalled connection has answered", "%v", err)
	case <-time.After(150 * time.Millisecond):
	}
	direct := redisClient(t, sb.Redis.URL())
	require.Zero(t, direct.Exists(ctx, "k").Val())
	require.Positive(t, proxy.Held())
	require.NoError(t, proxy.Heal())
	require.NoError(t, <-answer, "the connection has survived")
	require.Zero(t, proxy.Held())
	require.EqualValues(t, 1, direct.Exists(ctx, "k").Val())

	proxy.Slow(60 * time.Millisecond)
	begin := time.Now()
	require.NoError(t, client.Ping(ctx).Err())
	require.GreaterOrEqual(t, time.Since(begin), 120*time.Millisecond, "each way")
	require.NoError(t, proxy.Heal())

	before := client.ClientID(ctx).Val()
	proxy.Drop()
	sandbox.AwaitTB(t, 5*time.Second, "a new connection", func() error { return client.Ping(ctx).Err() })
	require.NotEqual(t, before, client.ClientID(ctx).Val())

	// Cut and close while data waits: goleak finds what this would leave.
	proxy.Stall()
	go func() { answer <- client.Set(context.Background(), "k", string(make([]byte, 8<<20)), 0).Err() }()
	sandbox.AwaitTB(t, 5*time.Second, "a connection", sandbox.Until(func() bool { return proxy.Connections() > 0 }))
	proxy.Cut()
	require.Error(t, <-answer)
	sandbox.AwaitTB(t, 5*time.Second, "no connection", sandbox.Until(func() bool { return proxy.Connections() == 0 }))
}
