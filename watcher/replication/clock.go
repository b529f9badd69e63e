package replication

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// clockAge is how long a measurement is kept for one that took less time to make: then
// the clocks may have been set.
const clockAge = 30 * time.Second

// clock knows how far the server's clock is from ours, so that lags can be told though
// commits carry the server's time.
type clock struct {
	// offset is the server's time minus ours, in ns.
	offset atomic.Int64
	// took is what the measurement in use took, and at is when it was made: the answer
	// is from somewhere in between.
	took time.Duration
	at   time.Time
}

func (c *clock) measure(ctx context.Context, conn *pgx.Conn) error {
	before := time.Now()
	var server time.Time
	if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&server); err != nil {
		return fmt.Errorf("read the server's clock: %w", err)
	}
	c.take(before, time.Since(before), server)
	return nil
}

func (c *clock) take(before time.Time, took time.Duration, server time.Time) {
	if !c.at.IsZero() && took > c.took && before.Sub(c.at) < clockAge {
		return
	}
	c.at, c.took = before, took
	c.offset.Store(int64(server.Sub(before.Add(took / 2))))
}

// local is a time of the server's by our clock.
func (c *clock) local(t time.Time) time.Time { return t.Add(-time.Duration(c.offset.Load())) }
