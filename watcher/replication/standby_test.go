package replication

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
)

// A standby whose server is gone without a word must notice it: it would stand by for as
// long as TCP tries, a quarter of an hour, while nobody leads.
func TestStandbyIsCutOff(t *testing.T) {
	t.Parallel() // it waits for a timeout
	first := example(t)
	proxy, err := sandbox.StartProxy(sandbox.SharedPostgres(t).Addr())
	require.NoError(t, err)
	defer proxy.Close()
	opts := first.src.opts
	opts.URL = proxy.URL(opts.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 2*ioTimeout)
	defer cancel()
	stalled := time.Time{}
	_, err = New(opts).Acquire(ctx, func(string) {
		if stalled.IsZero() {
			proxy.Stall()
			stalled = time.Now()
		}
	})
	require.ErrorIs(t, err, reconciler.ErrUnreachable)
	require.Less(t, time.Since(stalled), senderTimeout+5*time.Second, "so long a hand-over may take")
}

// The server that a standby has seen the slot on was replaced by one without it: whoever
// of the copies is the first there tells of the loss.
func TestStandbyKnowsThatThereWasASlot(t *testing.T) {
	first := example(t)
	second := New(first.src.opts)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := second.Acquire(ctx, func(string) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, first.stop())
	require.NoError(t, first.src.Teardown(t.Context()))

	sess, err := second.Acquire(t.Context(), func(string) {})
	require.NoError(t, err)
	require.True(t, sess.(*Session).gaps["slot recreated"])
	ended, end := context.WithCancel(t.Context())
	end()
	require.NoError(t, sess.Run(ended, newSink()))
}

// A server that hangs while a copy looks whether all is there is given up too.
func TestAServerThatHangsIsGivenUp(t *testing.T) {
	t.Parallel() // it waits for a timeout
	pg := sandbox.NewPostgres(t)
	dsn, err := pg.NewExampleDatabase(t.Context())
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), "BEGIN; LOCK TABLE pg_publication")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*ioTimeout)
	defer cancel()
	_, err = New(options(dsn)).Acquire(ctx, func(string) {})
	require.NoError(t, ctx.Err())
	require.ErrorIs(t, err, reconciler.ErrUnreachable)
}
