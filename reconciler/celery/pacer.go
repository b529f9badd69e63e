package celery

import (
	"context"
	"time"
)

// paceDebt is for how long pauses add up before one is made.
const paceDebt = 5 * time.Millisecond

// pacer leaves the server the part of its time that its share does not take.
type pacer struct {
	share float64
	debt  time.Duration
}

// owe notes what a call took.
func (p *pacer) owe(took time.Duration) {
	p.debt += time.Duration(float64(took) * (1 - p.share) / p.share)
}

// pay makes the pauses that are owed, once they are worth a timer.
func (p *pacer) pay(ctx context.Context) error {
	if p.debt < paceDebt {
		return nil
	}
	pause := time.NewTimer(p.debt)
	p.debt = 0
	select {
	case <-pause.C:
		return nil
	case <-ctx.Done():
		pause.Stop()
		return ctx.Err()
	}
}

// share is the part of the server's time that is asked for, 0.5 for none.
func share(part float64) float64 {
	if part <= 0 || part > 1 {
		return 0.5
	}
	return part
}
