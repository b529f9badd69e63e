package reconciler

import "context"

// Pulse is how a loop shows whoever watches over it that it moves. Its methods may
// be called by several goroutines.
type Pulse interface {
	// Beat: a step has just been done, such as an answer of a store, or its error.
	Beat()
	// Rest: from now until the next Beat it waits for something that may take any
	// time, and that is bounded or watched over elsewhere.
	Rest()
}

type pulseKey struct{}

// WithPulse is ctx for all that a loop does.
func WithPulse(ctx context.Context, p Pulse) context.Context {
	return context.WithValue(ctx, pulseKey{}, p)
}

// Beat shows that the loop under ctx moves. It is nothing where there is none.
func Beat(ctx context.Context) {
	if p, ok := ctx.Value(pulseKey{}).(Pulse); ok {
		p.Beat()
	}
}

// Rest says that the loop under ctx waits, until resume is called.
func Rest(ctx context.Context) (resume func()) {
	p, ok := ctx.Value(pulseKey{}).(Pulse)
	if !ok {
		return func() {}
	}
	p.Rest()
	return p.Beat
}
