package sandbox_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// Broker, results and runs are apart, keys have a prefix, and rows have children.
func TestRunsAreRecorded(t *testing.T) {
	t.Parallel()
	sb := sandbox.New(t)
	ctx := t.Context()
	other, err := sb.StartRedis(ctx, sandbox.RedisOptions{})
	require.NoError(t, err)
	database, err := sb.Postgres.NewExampleDatabase(ctx)
	require.NoError(t, err)
	conn, err := pgx.Connect(ctx, database)
	require.NoError(t, err)
	defer conn.Close(ctx)
	living, dead := uuid.NewString(), uuid.NewString()
	_, err = conn.Exec(ctx, "INSERT INTO scan_tasks (id) VALUES ($1)", living)
	require.NoError(t, err)

	app := sandbox.Celery{
		Broker: sb.Redis.DB(2), Backend: other.DB(3), Runs: sb.Redis.DB(9), Database: database,
		Config: map[string]any{"broker_transport_options": map[string]any{"global_keyprefix": "pre:", "sep": ":"}},
	}
	producer, err := sb.StartProducer(ctx, app)
	require.NoError(t, err)
	worker, err := sb.StartWorker(ctx, sandbox.WorkerOptions{Celery: app, Pool: "prefork", Concurrency: 2})
	require.NoError(t, err)
	sandbox.AwaitTB(t, 20*time.Second, "the worker to answer a ping", func() error {
		nodes, err := producer.PingWorkers(ctx)
		if err == nil && !slices.Equal([]string{worker.Name()}, nodes) {
			err = fmt.Errorf("%v answer", nodes)
		}
		return err
	})

	before := time.Now()
	ids, err := producer.Send(ctx,
		sandbox.Task{Name: sandbox.ScanTask, Args: []any{living}, Kwargs: map[string]any{"retry": 0.1}, Options: map[string]any{"compression": "gzip"}},
		sandbox.Task{Name: sandbox.ScanTask, Args: []any{dead}, Options: map[string]any{"priority": 9}},
		sandbox.Task{Name: sandbox.OtherTask, Args: []any{1}, Kwargs: map[string]any{"wait": "gate"}},
	)
	require.NoError(t, err)
	runs := redisClient(t, sb.Redis.DB(9))
	var all []sandbox.Run
	awaitRuns := func(n int) {
		t.Helper()
		sandbox.AwaitTB(t, 20*time.Second, fmt.Sprintf("%d runs", n), func() (err error) {
			if all, err = sandbox.ReadRuns(ctx, runs, 0); err == nil && len(all) < n {
				err = fmt.Errorf("%+v", all)
			}
			return err
		})
		require.Len(t, all, n)
	}
	awaitRuns(4) // one of them twice
	times := map[string]int{}
	for _, run := range all {
		require.Equal(t, times[run.ID], run.Retries)
		times[run.ID]++
		require.WithinRange(t, run.At, before.Add(-time.Millisecond), time.Now())
		require.NotEqual(t, worker.PID(), run.PID)
		require.Equal(t, map[string]string{ids[0]: living, ids[1]: dead}[run.ID], run.Row)
		require.Equal(t, run.Row != "", run.Name == sandbox.ScanTask)
	}
	require.Equal(t, map[string]int{ids[0]: 2, ids[1]: 1, ids[2]: 1}, times)

	results := redisClient(t, other.DB(3))
	require.Zero(t, results.Exists(ctx, "celery-task-meta-"+ids[2]).Val(), "it waits")
	require.NoError(t, sandbox.Release(ctx, runs, "gate", 1))
	sandbox.AwaitTB(t, 20*time.Second, "all results", sandbox.Until(func() bool {
		return results.Exists(ctx, "celery-task-meta-"+ids[0], "celery-task-meta-"+ids[1], "celery-task-meta-"+ids[2]).Val() == 3
	}))
	var children int
	require.NoError(t, conn.QueryRow(ctx, "SELECT count(*) FROM task_logs WHERE task_id = $1", living).Scan(&children))
	require.Equal(t, 2, children, "each run of a living row's task writes one")
	sandbox.AwaitTB(t, 20*time.Second, "the foreign key to end the other", func() error {
		log, err := os.ReadFile(worker.LogPath())
		if err == nil && (!strings.Contains(string(log), "ForeignKeyViolation") || !strings.Contains(string(log), dead)) {
			err = errors.New(string(log))
		}
		return err
	})
}
