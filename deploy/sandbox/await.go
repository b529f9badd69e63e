package sandbox

import (
	"context"
	"fmt"
	"time"
)

// Await calls cond until it returns nil. It is the one place that polls: 2 ms at
// first, 50 ms in the end. When ctx ends first, the error names what was awaited and
// cond's last error.
func Await(ctx context.Context, what string, cond func() error) error {
	pause := 2 * time.Millisecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		last := cond()
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("await %s: %w; last: %w", what, context.Cause(ctx), last)
		case <-timer.C:
		}
		pause = min(pause*3/2, 50*time.Millisecond)
		timer.Reset(pause)
	}
}
