package wiring

import (
	"context"
	"sync"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

const (
	// checkers are how many batches of checks are under way at once, checkBatch how
	// many questions are in one.
	checkers   = 2
	checkBatch = 500
)

// checks answers questions that come at about the same time together: what arrives
// while the stores are asked is the next batch. At rest each is asked at once.
type checks struct {
	judge func(context.Context, []reconciler.CheckQuestion) ([]reconciler.CheckReport, error)

	mu      sync.Mutex
	waiting []*check
	running int
}

// check is one question; report and err are set when done is closed.
type check struct {
	question reconciler.CheckQuestion
	report   reconciler.CheckReport
	err      error
	done     chan struct{}
}

func (c *checks) ask(ctx context.Context, q reconciler.CheckQuestion) (reconciler.CheckReport, error) {
	one := &check{question: q, done: make(chan struct{})}
	c.mu.Lock()
	c.waiting = append(c.waiting, one)
	begin := c.running < checkers
	if begin {
		c.running++
	}
	c.mu.Unlock()
	if begin {
		go c.drain(context.WithoutCancel(ctx))
	}
	select {
	case <-one.done:
		return one.report, one.err
	case <-ctx.Done():
		return reconciler.CheckReport{}, ctx.Err()
	}
}

// drain asks batch by batch, until nobody waits.
func (c *checks) drain(ctx context.Context) {
	for {
		c.mu.Lock()
		n := min(checkBatch, len(c.waiting))
		if n == 0 {
			c.waiting = nil
			c.running--
			c.mu.Unlock()
			return
		}
		batch := c.waiting[:n]
		c.waiting = c.waiting[n:]
		c.mu.Unlock()
		c.answer(ctx, batch)
	}
}

func (c *checks) answer(ctx context.Context, batch []*check) {
	ctx, cancel := Bounded(ctx)
	defer cancel()
	questions := make([]reconciler.CheckQuestion, len(batch))
	for i, one := range batch {
		questions[i] = one.question
	}
	reports, err := c.judge(ctx, questions)
	for i, one := range batch {
		if one.err = err; err == nil {
			one.report = reports[i]
		}
		close(one.done)
	}
}
