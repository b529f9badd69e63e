package celery

import (
	"context"
	"fmt"
	"maps"
	"slices"
)

const (
	// purgeWhole is up to what length all tombstones are taken out of a list;
	// purgeReach, how far from the tail of a longer one. Either costs up to 2 ms.
	purgeWhole, purgeReach = 8000, 4000
)

// Tombstones is how many of ours should be in the lists: workers that consume
// some are not noticed before the next sweep.
func (b *Broker) Tombstones() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := int64(0)
	for _, s := range b.states {
		n += s.tombstones
	}
	return n
}

// PurgeTombstones takes tombstones out of where workers will pop next, and all of
// them out of lists that have become short. It is cheap, and is to be called every
// second or so while Tombstones is not 0.
func (b *Broker) PurgeTombstones(ctx context.Context) error {
	b.mu.Lock()
	lists := slices.Sorted(maps.Keys(b.states))
	lists = slices.DeleteFunc(lists, func(list string) bool { return b.states[list].tombstones == 0 })
	b.mu.Unlock()
	pace := b.pace()
	for _, list := range lists {
		var reply any
		err := timed(pace, func() (err error) {
			reply, err = purgeScript.one(ctx, b.client, []string{list}, tombstone, purgeWhole, purgeReach)
			return err
		})
		if err != nil {
			return failed("purge tombstones", err)
		}
		answer, _ := reply.([]any)
		if len(answer) != 2 {
			return fmt.Errorf("redis: purge.lua: unexpected reply %v", reply)
		}
		removed, _ := answer[0].(int64)
		b.with(list, func(s *listState) {
			if s.tombstones = max(0, s.tombstones-removed); answer[1] == int64(0) {
				s.tombstones, s.marked = 0, 0
			}
		})
		if err := pace.pay(ctx); err != nil {
			return err
		}
	}
	return nil
}
