package celery

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// The broker's database has a control hash of its own where it is not that of
// the results: what pull.lua compares has to be beside what it removes.

// Epoch is the newest leader's that this database knows, 0 for none. A leader
// claims one that is higher (Store.ClaimEpoch).
func (b *Broker) Epoch(ctx context.Context) (uint64, error) {
	epoch, err := b.client.HGet(ctx, controlKey, fieldEpoch).Uint64()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return epoch, failed("read epoch", err)
}

// SetEpoch makes a claimed epoch known here; it fails where a newer one is.
func (b *Broker) SetEpoch(ctx context.Context, epoch uint64) error {
	want := strconv.FormatUint(epoch, 10)
	reply, err := raiseScript.one(ctx, b.client, []string{controlKey}, want)
	if err == nil && reply != want {
		err = fmt.Errorf("epoch %s is known to the broker, newer than %s", reply, want)
	}
	return failed("set epoch", err)
}

// Pause stops all pulls, by any copy, until Resume. A second call keeps the first
// one's time and name.
func (b *Broker) Pause(ctx context.Context, by string) error { return pause(ctx, b.client, by) }

// Resume lets pulls go on.
func (b *Broker) Resume(ctx context.Context) error {
	return failed("resume", b.client.HDel(ctx, controlKey, fieldPaused, fieldPausedBy).Err())
}

// Release tells of tasks whose row exists: an operator's hold has done its work.
func (b *Broker) Release(ctx context.Context, epoch uint64, revivals []reconciler.Revival) (late []bool, err error) {
	late, err = revive(ctx, b.client, &b.clock, epoch, revivals, func(of reconciler.Subject) string {
		return messagesPrefix + b.keys.recordID(of)
	})
	return late, failed("release messages", err)
}
