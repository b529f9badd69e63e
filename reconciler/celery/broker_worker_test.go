package celery_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// TestWorkerAndBroker: a real worker lives on tombstones, runs what was restored,
// and hears a revoke.
func TestWorkerAndBroker(t *testing.T) {
	t.Parallel()
	for _, pool := range []string{"solo", "prefork"} {
		t.Run(pool, func(t *testing.T) {
			t.Parallel()
			sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
			ctx := t.Context()
			client := sb.Redis.Client(0)
			t.Cleanup(func() { _ = client.Close() })
			l := &brokerLab{TB: t, redis: sb.Redis, client: client, epoch: 1, Broker: celery.NewBroker(celery.BrokerOptions{
				Client: client, Bindings: []reconciler.Binding{scans}, Quarantine: time.Hour,
			})}
			l.ok(l.SetEpoch(ctx, 1))
			producer, err := sb.StartProducer(ctx, sandbox.Celery{})
			l.ok(err)
			ids, err := producer.Send(ctx, sandbox.Task{Name: sandbox.OtherTask, Args: []any{1}}, sandbox.Task{Name: sandbox.OtherTask, Args: []any{2}})
			l.ok(err)

			swept := l.sweep()
			if len(swept) != 2 || swept[ids[0]].Name != sandbox.OtherTask || !slices.Equal(l.Lists(), []string{"celery", "celery\x06\x163", "celery\x06\x166", "celery\x06\x169"}) {
				t.Fatalf("swept %v of %q", swept, l.Lists())
			}
			if got := l.pull(swept[ids[0]]); got[0] != reconciler.Removed {
				t.Fatal(got)
			}
			for range 5 { // before what is restored, and between
				l.ok(client.RPush(ctx, "celery", celery.Tombstone).Err())
			}
			restored, err := l.RestoreMessages(ctx, []string{"task:" + ids[0]}, time.Minute)
			l.ok(err)
			if len(restored[0].Messages) != 1 || restored[0].Messages[0].Status != "restored" {
				t.Fatalf("%+v", restored)
			}
			for range 5 {
				l.ok(client.LPush(ctx, "celery", celery.Tombstone).Err())
			}
			worker, err := sb.StartWorker(ctx, sandbox.WorkerOptions{Pool: pool, Args: []string{"--without-heartbeat"}})
			l.ok(err)
			later, err := producer.Send(ctx, sandbox.Task{Name: sandbox.OtherTask, Args: []any{3}})
			l.ok(err)
			for _, id := range append(ids, later...) {
				sandbox.AwaitTB(t, 30*time.Second, "the result of "+id, func() error {
					return client.Get(ctx, "celery-task-meta-"+id).Err()
				})
			}
			sandbox.AwaitTB(t, 10*time.Second, "everything to be acknowledged", sandbox.Until(func() bool {
				return client.Exists(ctx, "celery", "unacked", "unacked_index").Val() == 0
			}))
			if n, err := l.Workers(ctx); err != nil || n != 1 {
				t.Errorf("%d workers, %v", n, err)
			}
			if n, _, err := l.Revoke(ctx, l.epoch, time.Now(), []string{"never-1", "never-2"}); err != nil || n != 1 {
				t.Errorf("%d workers heard, %v", n, err)
			}
			logged := func() string {
				text, err := os.ReadFile(worker.LogPath())
				l.ok(err)
				return string(text)
			}
			sandbox.AwaitTB(t, 10*time.Second, "the worker to have revoked", sandbox.Until(func() bool {
				return strings.Contains(logged(), "never-2")
			}))
			text := logged()
			if !worker.Running() || strings.Contains(text, "CRITICAL") || strings.Contains(text, "Traceback") || strings.Count(text, "unknown message") != 10 {
				t.Errorf("the worker says\n%s", text)
			}

			// One that is held: pulled out of the hash, to which the revoke belongs.
			eta, err := producer.Send(ctx, sandbox.Task{Name: sandbox.OtherTask, Options: map[string]any{"countdown": 3600}})
			l.ok(err)
			sandbox.AwaitTB(t, 10*time.Second, "the worker to hold it", sandbox.Until(func() bool {
				return client.HLen(ctx, "unacked").Val() == 1
			}))
			m := l.sweep()[eta[0]]
			if m.Place.Kind != reconciler.UnackedMessage || m.Place.List != "celery" || m.Place.Tag == "" {
				t.Fatalf("%+v", m.Place)
			}
			if got := l.pull(m); got[0] != reconciler.Removed || client.Exists(ctx, "unacked", "unacked_index").Val() != 0 {
				t.Fatal(got)
			}
			_, err = worker.Stop(ctx)
			l.ok(err)
			if n := client.LLen(ctx, "celery").Val(); n != 0 {
				t.Errorf("%d messages came back", n)
			}
		})
	}
}
