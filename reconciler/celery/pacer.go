package celery

import (
	"context"
	"sync"
	"time"
)

// paceBurst is how much of the server's time may be taken at once: a timer for
// less is not worth it.
const paceBurst = 5 * time.Millisecond

// maxPause bounds what one pause pays for. Only a server that is away, where each call
// takes until its timeout, costs more, and that is none of its time.
const maxPause = 10 * time.Second

// pacer leaves the server the part of its time that its share does not take. It is
// safe for concurrent use: what all of its users take counts together.
type pacer struct {
	share float64
	// burst is what may be taken at once, after a rest.
	burst time.Duration

	mu sync.Mutex
	// taken, less what has been earned since, as of at.
	taken time.Duration
	at    time.Time
}

func newPacer(share float64, burst time.Duration) *pacer {
	return &pacer{share: share, burst: burst, at: time.Now()}
}

// owe notes what a call took.
func (p *pacer) owe(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.earn()
	p.taken = min(p.taken+took, p.burst+time.Duration(p.share*float64(maxPause)))
}

// earn brings taken up to date. The lock is held.
func (p *pacer) earn() {
	now := time.Now()
	p.taken = max(0, p.taken-time.Duration(float64(now.Sub(p.at))*p.share))
	p.at = now
}

// pay waits until no more than a burst has been taken.
func (p *pacer) pay(ctx context.Context) error {
	p.mu.Lock()
	p.earn()
	over := p.taken - p.burst
	p.mu.Unlock()
	if over <= 0 {
		return nil
	}
	pause := time.NewTimer(time.Duration(float64(over) / p.share))
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
