package watcher

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func hint(id string) Event {
	return Event{Subject: reconciler.TaskSubject(id), Trigger: reconciler.ByEvent, Seen: time.Now()}
}

func deletion(id string, binding int, lsn reconciler.LSN, done func()) Event {
	e := hint(id)
	e.Trigger = reconciler.ByDelete
	e.Deletion = &reconciler.Deletion{Binding: binding, Key: id, Commit: &reconciler.Commit{LSN: lsn}}
	e.Done = done
	return e
}

func takeIDs(t *testing.T, q *Queue, limit int) (ids []string, entries []*Entry) {
	t.Helper()
	entries, err := q.Take(t.Context(), limit)
	require.NoError(t, err)
	for _, e := range entries {
		ids = append(ids, e.Work.Subject.ID)
	}
	return ids, entries
}

func finish(q *Queue, entries ...*Entry) {
	for _, e := range entries {
		q.Finish(e, false, 0, "")
	}
}

func TestQueueTakesDeletionsFirst(t *testing.T) {
	q := NewQueue(10)
	for _, id := range []string{"a", "b", "c"} {
		require.True(t, q.Offer(hint(id)))
	}
	require.True(t, q.Offer(deletion("d", 0, 1, nil)))
	require.True(t, q.Offer(deletion("b", 0, 2, nil)))
	ids, entries := takeIDs(t, q, 3)
	require.Equal(t, []string{"d", "b", "a"}, ids)
	finish(q, entries...)
	ids, _ = takeIDs(t, q, 3)
	require.Equal(t, []string{"c"}, ids, "b is not taken twice")
}

func TestQueueBoundsEachClass(t *testing.T) {
	q := NewQueue(2)
	require.True(t, q.Offer(hint("a")))
	require.True(t, q.Offer(hint("b")))
	room := q.Room()
	require.False(t, q.Offer(hint("c")))
	require.True(t, q.Offer(hint("a")), "merging needs no room")
	require.True(t, q.Offer(deletion("d", 0, 1, nil)), "a flood of hints does not stand in the way of a deletion")
	require.True(t, q.Offer(deletion("b", 0, 1, nil)), "b is of the other class now")
	require.False(t, q.Offer(deletion("e", 0, 1, nil)))
	<-room
	require.True(t, q.Offer(hint("c")))
	room = q.Room()
	_, entries := takeIDs(t, q, 10)
	finish(q, entries...)
	require.True(t, q.Offer(deletion("e", 0, 1, nil)))
	<-room
}

func TestQueueMergesWhatComesWhileItIsWorkedOn(t *testing.T) {
	q := NewQueue(10)
	var acked []string
	ack := func(s string) func() { return func() { acked = append(acked, s) } }
	q.Offer(deletion("a", 0, 1, ack("1")))
	_, first := takeIDs(t, q, 10)
	q.Offer(deletion("a", 0, 2, ack("2")))
	q.Offer(deletion("a", 0, 3, ack("3")))
	q.Offer(deletion("a", 1, 3, ack("other")))
	require.Equal(t, []string{"2"}, acked, "3 stands for 2")
	finish(q, first...)
	require.Equal(t, []string{"2", "1"}, acked)
	ids, second := takeIDs(t, q, 10)
	require.Equal(t, []string{"a"}, ids)
	require.Len(t, second[0].Work.Deletions, 2)
	finish(q, second...)
	require.Equal(t, []string{"2", "1", "3", "other"}, acked)
	require.Equal(t, Stats{Waiting: map[reconciler.HeldBy]int{}}, q.Stats())
}

func TestQueueComesBackWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue(10)
		q.Offer(hint("a"))
		_, entries := takeIDs(t, q, 10)
		start := time.Now()
		q.Finish(entries[0], true, 5*time.Second, reconciler.HeldByGrace)
		require.Equal(t, map[reconciler.HeldBy]int{reconciler.HeldByGrace: 1}, q.Stats().Waiting)
		q.Offer(hint("a"))
		_, entries = takeIDs(t, q, 10)
		require.Equal(t, 5*time.Second, time.Since(start), "another hint does not shorten the grace")
		q.Finish(entries[0], true, time.Hour, reconciler.HeldByTransactions)
		q.Offer(deletion("a", 0, 1, nil))
		_, entries = takeIDs(t, q, 10)
		require.Equal(t, 5*time.Second, time.Since(start), "a deletion is at once")
		require.Len(t, entries[0].Work.Deletions, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := q.Take(ctx, 1)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// Whatever is offered, taken and given back: one worker at a time has a subject,
// nothing is lost, every event is acknowledged exactly once and not before its
// subject was worked on after it came (or a newer deletion stands for it), and
// the counts come back to zero.
// What a pause holds comes back when it ends, and nothing else does.
func TestQueueHurries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue(10)
		for _, id := range []string{"a", "b", "c"} {
			require.True(t, q.Offer(hint(id)))
		}
		_, entries := takeIDs(t, q, 3)
		for i, by := range []reconciler.HeldBy{reconciler.HeldByPause, reconciler.HeldByGrace, reconciler.HeldByPause} {
			q.Finish(entries[i], true, time.Minute, by)
		}
		began := time.Now()
		q.Hurry(reconciler.HeldByPause)
		ids, entries := takeIDs(t, q, 3)
		require.ElementsMatch(t, []string{"a", "c"}, ids)
		require.Equal(t, began, time.Now())
		finish(q, entries...)
		ids, entries = takeIDs(t, q, 3)
		require.Equal(t, []string{"b"}, ids)
		require.Equal(t, time.Minute, time.Since(began))
		finish(q, entries...)
	})
}

func TestQueueLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := NewQueue(rapid.IntRange(1, 6).Draw(t, "limit"))
		type offered struct {
			subject  string
			deletion bool
			acked    int
			worked   bool // taken after it was offered
		}
		var all []*offered
		var inHand []*Entry
		lsn := reconciler.LSN(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0, 1:
				id := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "id")
				o := &offered{subject: id, deletion: rapid.Bool().Draw(t, "deletion")}
				e := hint(id)
				e.Done = func() { o.acked++ }
				binding := rapid.IntRange(0, 1).Draw(t, "binding")
				if o.deletion {
					lsn++
					e = deletion(id, binding, lsn, e.Done)
				}
				if q.Offer(e) {
					all = append(all, o)
				} else if o.acked > 0 {
					t.Fatal("acknowledged what was refused")
				}
			case 2:
				batch, _ := q.take(rapid.IntRange(1, 3).Draw(t, "batch"))
				for _, e := range batch {
					if slices.ContainsFunc(inHand, func(x *Entry) bool { return x.Work.Subject == e.Work.Subject }) {
						t.Fatalf("%v is with two workers", e.Work.Subject)
					}
					for _, o := range all {
						o.worked = o.worked || o.subject == e.Work.Subject.ID
					}
				}
				inHand = append(inHand, batch...)
			case 3:
				if len(inHand) > 0 {
					e := inHand[0]
					inHand = inHand[1:]
					q.Finish(e, rapid.Bool().Draw(t, "again"), 0, "")
				}
			}
			for i, o := range all {
				replaced := o.deletion && slices.ContainsFunc(all[i+1:], func(x *offered) bool { return x.subject == o.subject && x.deletion })
				if o.acked > 1 || (o.acked == 1 && !o.worked && !replaced) {
					t.Fatalf("offer %d of %s: acknowledged %d times, worked on: %v", i, o.subject, o.acked, o.worked)
				}
			}
		}
		for range 100 {
			finish(q, inHand...)
			if inHand, _ = q.take(10); len(inHand) == 0 {
				break
			}
		}
		for i, o := range all {
			if o.acked != 1 {
				t.Fatalf("offer %d of %s was acknowledged %d times", i, o.subject, o.acked)
			}
		}
		if q.size != [2]int{} || len(q.entries) != 0 || q.running != 0 {
			t.Fatalf("left behind: %v, %d entries, %d running", q.size, len(q.entries), q.running)
		}
	})
}

func TestQueueWithManyWorkers(t *testing.T) {
	q := NewQueue(1000)
	ctx, cancel := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	var mu sync.Mutex
	acked := 0
	for range 4 {
		workers.Go(func() {
			for {
				batch, err := q.Take(ctx, 7)
				if err != nil {
					return
				}
				finish(q, batch...)
			}
		})
	}
	const n = 20_000
	for i := range n {
		e := deletion(fmt.Sprint(i%997), 0, reconciler.LSN(i), func() { mu.Lock(); acked++; mu.Unlock() })
		for {
			room := q.Room()
			if q.Offer(e) {
				break
			}
			<-room
		}
	}
	require.Eventually(t, func() bool { return q.Stats().Pending == 0 }, 10*time.Second, time.Millisecond)
	cancel()
	workers.Wait()
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, n, acked)
}
