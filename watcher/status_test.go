package watcher

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// What waits is as old as its commit, from before the lead is claimed, and as long as
// nothing moves: also when the term in which it was read has ended.
func TestTheOldestIsTrueWhileNothingMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Controller{}
		c.state.health = map[string]Health{}
		age := func(want time.Duration) {
			t.Helper()
			require.InDelta(t, want.Seconds(), c.Status().Oldest, 5)
		}
		age(0)

		queue, messages := NewQueue(10), NewQueue(10)
		c.state.hold(queue, messages)
		ago := func(d time.Duration) *reconciler.Commit { return &reconciler.Commit{LocalTime: time.Now().Add(-d)} }
		task := reconciler.TaskSubject("a")
		offer := func(by *reconciler.Commit) {
			require.True(t, queue.Offer(Event{Subject: task, Seen: time.Now(), Deletion: &reconciler.Deletion{Commit: by}}))
		}
		offer(ago(time.Minute))
		age(time.Minute)
		offer(ago(time.Second)) // a newer one of the same row
		age(time.Minute)

		c.state.end(nil)
		age(time.Minute)
		c.state.hold(NewQueue(10), NewQueue(10))
		c.state.lead(reconciler.Term{Epoch: 1})
		age(time.Minute)
		c.state.caughtUp()
		age(0)

		c.state.report(SourcePostgres, Health{StuckSince: time.Now().Add(-2 * time.Minute)})
		age(2 * time.Minute)
		c.state.end(nil)
		age(2 * time.Minute)
		c.state.standby("our own of before, or another")
		age(2 * time.Minute)
		time.Sleep(ownHolder + time.Second)
		age(0)
		time.Sleep(time.Hour)
		c.state.hold(NewQueue(10), NewQueue(10)) // the others have done it
		age(0)
		c.state.lead(reconciler.Term{Epoch: 9})
		age(0)
	})
}

// A copy that takes over stays ready while it subscribes, not for ever; one that starts
// is ready once it has.
func TestReadyWhileItTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Controller{}
		c.state.health = map[string]Health{}
		ready := func(want bool, why string) {
			t.Helper()
			is, because := c.Ready()
			require.Equal(t, want, is, because)
			require.Contains(t, because, why)
		}
		ready(false, "not held yet")
		c.state.lead(reconciler.Term{Epoch: 1})
		ready(false, "not subscribed")
		c.state.subscribe()
		ready(true, "leader")

		c.state.end(nil)
		ready(false, "not held yet")
		c.state.standby("another")
		ready(true, "another leads")
		c.state.hold(NewQueue(10), NewQueue(10))
		ready(true, "not claimed")
		time.Sleep(takeOver + time.Second)
		ready(false, "not claimed") // Redis is away, and nobody leads
		c.state.lead(reconciler.Term{Epoch: 3})
		c.state.report(SourceRedis, Health{Err: "refused"})
		ready(true, "not subscribed to Redis yet; redis is not subscribed: refused")
		time.Sleep(takeOver + time.Second)
		ready(false, "refused")
		c.state.report(SourceRedis, Health{Mode: ModeKeyspace})
		c.state.subscribe()
		ready(true, "leader")
	})
}
