package sandbox_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

func TestCeleryRunsATask(t *testing.T) {
	t.Parallel()
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	ctx := t.Context()
	app := sandbox.Celery{Backend: sb.Redis.DB(1), Config: map[string]any{"result_extended": true}}

	begin := time.Now()
	producer, err := sb.StartProducer(ctx, app)
	require.NoError(t, err)
	t.Logf("the producer serves after %v", time.Since(begin).Round(time.Millisecond))

	const id = "8a1f8bd6-33f0-4f42-9d4b-6c1f2a4e7a10"
	ids, err := producer.Send(ctx, sandbox.Task{
		ID: id, Name: sandbox.ScanTask, Args: []any{id}, Kwargs: map[string]any{"target_domain": "example.org"},
	})
	require.NoError(t, err)
	require.Equal(t, []string{id}, ids)
	broker, backend := redisClient(t, sb.Redis.URL()), redisClient(t, sb.Redis.DB(1))
	require.EqualValues(t, 1, broker.LLen(ctx, "celery").Val())

	begin = time.Now()
	worker, err := sb.StartWorker(ctx, sandbox.WorkerOptions{Celery: app})
	require.NoError(t, err)
	t.Logf("the worker serves after %v", time.Since(begin).Round(time.Millisecond))
	hasResult := func(id string) func() error {
		return func() error {
			text, err := backend.Get(ctx, "celery-task-meta-"+id).Result()
			if err == nil && len(text) < 20 {
				err = errors.New(text)
			}
			return err
		}
	}
	sandbox.AwaitTB(t, 20*time.Second, "the result of the task", hasResult(id))
	require.Contains(t, backend.Get(ctx, "celery-task-meta-"+id).Val(), `"name": "scan_domain_task"`, "result_extended")

	begin = time.Now()
	many := make([]sandbox.Task, 200)
	for i := range many {
		many[i] = sandbox.Task{Name: sandbox.OtherTask, Args: []any{i}}
	}
	ids, err = producer.Send(ctx, many...)
	require.NoError(t, err)
	require.Len(t, ids, 200)
	t.Logf("200 tasks sent within %v", time.Since(begin).Round(time.Millisecond))
	sandbox.AwaitTB(t, 30*time.Second, "the last result", hasResult(ids[199]))

	require.NoError(t, worker.Kill(ctx))
	require.False(t, worker.Running())
	require.NoError(t, worker.Start(ctx), "the old \"ready\" in its log does not count")
	took, err := worker.Stop(ctx)
	require.NoError(t, err)
	t.Logf("the worker stopped within %v", took.Round(time.Millisecond))
}

func TestCeleryCanvas(t *testing.T) {
	t.Parallel()
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	ctx := t.Context()
	producer, err := sb.StartProducer(ctx, sandbox.Celery{})
	require.NoError(t, err)
	client := redisClient(t, sb.Redis.URL())
	two := []sandbox.Task{{Name: sandbox.OtherTask}, {Name: sandbox.OtherTask}}

	group, ids, err := producer.Group(ctx, two...)
	require.NoError(t, err)
	require.Len(t, ids, 2)
	require.EqualValues(t, 1, client.Exists(ctx, "celery-taskset-meta-"+group).Val())

	ids, err = producer.Chain(ctx, two...)
	require.NoError(t, err)
	require.Len(t, ids, 2)

	group, ids, err = producer.Chord(ctx, append(two, sandbox.Task{Name: sandbox.ScanTask})...)
	require.NoError(t, err)
	require.NotEmpty(t, group)
	require.Len(t, ids, 3)

	_, err = producer.Send(ctx, sandbox.Task{Name: sandbox.OtherTask, Options: map[string]any{"queue": "slow", "countdown": 60}})
	require.NoError(t, err)
	require.EqualValues(t, 1, client.LLen(ctx, "slow").Val())

	_, err = producer.Send(ctx, sandbox.Task{Name: sandbox.OtherTask, Options: map[string]any{"serializer": "no such"}})
	require.ErrorContains(t, err, "no such")
	_, err = producer.Send(ctx, two...)
	require.NoError(t, err, "an error is an answer, the producer goes on")
}

func TestCeleryPrefork(t *testing.T) {
	t.Parallel()
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	ctx := t.Context()
	app := sandbox.Celery{Config: map[string]any{"task_acks_late": true, "worker_prefetch_multiplier": 1}}
	producer, err := sb.StartProducer(ctx, app)
	require.NoError(t, err)
	worker, err := sb.StartWorker(ctx, sandbox.WorkerOptions{
		Celery: app, Pool: "prefork", Concurrency: 2, Queues: []string{"a", "b"},
	})
	require.NoError(t, err)
	children := childrenOf(t, worker.PID())
	require.GreaterOrEqual(t, len(children), 2)

	_, err = producer.Send(ctx, sandbox.Task{
		Name: sandbox.OtherTask, Kwargs: map[string]any{"sleep": 600}, Options: map[string]any{"queue": "b"},
	})
	require.NoError(t, err)
	client := redisClient(t, sb.Redis.URL())
	sandbox.AwaitTB(t, 20*time.Second, "a message under way", sandbox.Until(func() bool {
		return client.HLen(ctx, "unacked").Val() == 1
	}))
	require.NoError(t, worker.Kill(ctx))
	for _, pid := range children {
		require.Contains(t, []string{"", "Z"}, state(pid), fmt.Sprintf("process %d of the pool", pid))
	}
	require.EqualValues(t, 1, client.HLen(ctx, "unacked").Val(), "a killed worker acknowledges nothing")
}
