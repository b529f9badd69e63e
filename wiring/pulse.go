package wiring

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// beats makes each answer of Redis, an error too, a step of the loop that has asked.
type beats struct{}

var _ redis.Hook = beats{}

// DialHook is redis.Hook's.
func (beats) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook is redis.Hook's.
func (beats) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		defer reconciler.Beat(ctx)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook is redis.Hook's.
func (beats) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		defer reconciler.Beat(ctx)
		return next(ctx, cmds)
	}
}
