package wiring_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
	"github.com/orphanwatch/orphanwatch/wiring"
)

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
