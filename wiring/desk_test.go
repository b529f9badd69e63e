package wiring_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// meanwhile is what the leader of before does just before a script is run.
type meanwhile struct {
	redis.Hook
	do func()
}

func (m meanwhile) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (m meanwhile) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (m meanwhile) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[len(cmds)-1].Name() == "evalsha" {
			m.do()
		}
		return next(ctx, cmds)
	}
}

// The guard that trips in the last moment of one leader holds in the next one.
func TestTheGuardIsHandedOver(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	client, other := server.Client(0), server.Client(0)
	t.Cleanup(func() { _, _ = client.Close(), other.Close() })
	last := celery.New(celery.Options{Client: other})
	epoch, err := last.ClaimEpoch(t.Context(), 0)
	require.NoError(t, err)
	client.AddHook(meanwhile{do: sync.OnceFunc(func() {
		require.NoError(t, last.SaveGuard(t.Context(), epoch, []byte(`{"reason":"a table is empty"}`)))
	})})
	guard := reconciler.NewGuard(reconciler.Policy{}, nil, time.Now)
	desk := wiring.Desk{
		Store: celery.New(celery.Options{Client: client}), Broker: celery.NewBroker(celery.BrokerOptions{Client: client}),
		Tables: oneDatabase{}, Log: slog.New(slog.DiscardHandler),
		Reconciler: &reconciler.Reconciler{Options: reconciler.Options{Guard: guard}},
	}
	_, err = desk.ClaimEpoch(t.Context())
	require.NoError(t, err)
	require.NotNil(t, guard.Tripped())
	require.ErrorIs(t, last.SaveGuard(t.Context(), epoch, nil), reconciler.ErrStale)
}

type oneDatabase struct{ reconciler.Tables }

func (oneDatabase) Identity(context.Context) (string, error) { return "1 app", nil }

// The results' Redis, a cache, has been emptied, or is a new one; the broker's has
// not: a new leader must be one at once, not after as many attempts as there were terms.
func TestALeaderIsNewerThanTheBrokerKnows(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	results, queues := server.Client(0), server.Client(1)
	t.Cleanup(func() { _, _ = results.Close(), queues.Close() })
	broker := celery.NewBroker(celery.BrokerOptions{Client: queues, DB: 1})
	require.NoError(t, broker.SetEpoch(t.Context(), 500))
	desk := wiring.Desk{
		Store: celery.New(celery.Options{Client: results}), Broker: broker, Tables: oneDatabase{}, Log: slog.New(slog.DiscardHandler),
		Reconciler: &reconciler.Reconciler{Options: reconciler.Options{Guard: reconciler.NewGuard(reconciler.Policy{}, nil, time.Now)}},
	}
	epoch, err := desk.ClaimEpoch(t.Context())
	require.NoError(t, err)
	require.Greater(t, epoch, uint64(500))

	// One that was replaced takes no orders, though it has no work that would be refused.
	require.NoError(t, desk.Store.AskResync(t.Context()))
	_, err = desk.Store.ClaimEpoch(t.Context(), 0)
	require.NoError(t, err)
	_, err = desk.Orders(t.Context())
	require.ErrorIs(t, err, reconciler.ErrStale)
	state, err := desk.Store.State(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, state.Resync, "the order is for the newest leader")
}

// A leader that was stopped says that it leads until it has learned that it was replaced.
func TestTheNewestLeaderIsTheLeader(t *testing.T) {
	t.Parallel()
	client := sandbox.NewRedis(t).Client(0)
	t.Cleanup(func() { _ = client.Close() })
	stores := wiring.Stores{Celery: celery.New(celery.Options{Client: client})}
	for instance, body := range map[string]string{
		"a": `{"instance":"a","role":"leader","epoch":7}`, "b": `{"instance":"b","role":"leader","epoch":8}`, "c": `{"instance":"c","role":"standby","epoch":9}`,
	} {
		require.NoError(t, stores.Celery.PublishStatus(t.Context(), instance, []byte(body), time.Minute))
	}
	daemons, err := stores.Daemons(t.Context())
	require.NoError(t, err)
	report := wiring.Report{Daemons: daemons}
	require.Equal(t, "b", report.Leader().Instance)
}
