package celery

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// clock is a server's, without asking it each time: a removal that has waited in a
// connection, or in a process that was stopped, is told from a prompt one by it.
type clock struct {
	mu sync.Mutex
	// server was its time at local or before.
	server, local time.Time
}

// clockFor is how long an answer is good for: the two clocks may be set meanwhile.
const clockFor = 10 * time.Second

// deadlines gives what tells until when, by the server's clock in ms, a look at the
// rows is good: 0 for ever, where looked is zero.
func (c *clock) deadlines(ctx context.Context, client redis.UniversalClient) (func(looked time.Time) int64, error) {
	at, err := c.read(ctx, client)
	if err != nil {
		return nil, err
	}
	return func(looked time.Time) int64 {
		if looked.IsZero() {
			return 0
		}
		return at(looked).Add(reconciler.RowsGood).UnixMilli()
	}, nil
}

// read asks the server where the last answer is too old, and gives what tells a time
// of ours by its clock. It errs to the early side, by as much as the answer was under way.
func (c *clock) read(ctx context.Context, client redis.UniversalClient) (func(time.Time) time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.local.IsZero() || time.Since(c.local) > clockFor {
		now, err := client.Time(ctx).Result()
		if err != nil {
			return nil, err
		}
		c.server, c.local = now, time.Now()
	}
	server, local := c.server, c.local
	return func(t time.Time) time.Time { return server.Add(t.Sub(local)) }, nil
}

// forget makes the next call ask: something came late, or our answer was wrong.
func (c *clock) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.local = time.Time{}
}
