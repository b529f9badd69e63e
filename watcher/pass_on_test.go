package watcher

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func messagesOf(e Event) Event {
	e.Subject = e.Subject.Messages()
	return e
}

// leads is a verdict that leads to tasks.
func leads(outcome reconciler.Outcome, tasks ...string) []reconciler.Verdict {
	v := reconciler.Verdict{Decision: reconciler.Decision{Outcome: outcome}}
	for _, id := range tasks {
		v.Tasks = append(v.Tasks, reconciler.Look{Subject: reconciler.TaskSubject(id)})
	}
	return []reconciler.Verdict{v}
}

// A row's deletion is acknowledged once the tasks that it has led to are done.
func TestPassesOnTheTasksOfARow(t *testing.T) {
	l := &looker{verdicts: leads(reconciler.OutcomeRemoved, "a", "b")}
	term := newTestTerm(l, 10)
	remembered := 0
	term.c.Remember = func(reconciler.Subject) { remembered++ }
	acked := map[string]int{}
	ack := func(name string) func() { return func() { acked[name]++ } }
	term.Offer(messagesOf(deletion("row", 0, 1, ack("0"))))
	term.Offer(messagesOf(deletion("row", 1, 2, ack("1"))))
	weak := messagesOf(hint("row"))
	weak.Done = ack("weak")
	term.Offer(weak)
	_, entries := takeIDs(t, term.messages, 10)
	require.NoError(t, term.reconcile(t.Context(), term.messages, entries))
	require.Zero(t, term.messages.Stats().Pending)
	require.Empty(t, acked)
	require.Equal(t, 2, remembered, "the row's deletions, not the tasks'")

	_, tasks := takeIDs(t, term.queue, 10)
	require.Len(t, tasks, 2)
	for _, e := range tasks {
		require.Equal(t, reconciler.Task, e.Work.Subject.Kind)
		require.Equal(t, reconciler.ByDelete, e.Work.Trigger)
		require.Len(t, e.Work.Deletions, 2, "on the same evidence")
		require.Equal(t, "row", e.Work.Deletions[0].Key)
	}
	finish(term.queue, tasks[0])
	require.Empty(t, acked)
	term.queue.Finish(tasks[1], true, 0, "")
	require.Empty(t, acked, "it comes back")
	_, tasks = takeIDs(t, term.queue, 10)
	finish(term.queue, tasks...)
	require.Equal(t, map[string]int{"0": 1, "1": 1, "weak": 1}, acked)
}

// What has to come back anyhow passes nothing on, nor what has led to nothing.
func TestPassesNothingOn(t *testing.T) {
	for _, c := range []struct {
		outcome reconciler.Outcome
		tasks   []string
		acked   int
	}{{reconciler.OutcomeDeferred, []string{"a"}, 0}, {reconciler.OutcomeError, []string{"a"}, 0}, {reconciler.OutcomeRemoved, nil, 1}} {
		l := &looker{verdicts: leads(c.outcome, c.tasks...)}
		term := newTestTerm(l, 10)
		acked := 0
		term.Offer(messagesOf(deletion("row", 0, 1, func() { acked++ })))
		_, entries := takeIDs(t, term.messages, 10)
		require.NoError(t, term.reconcile(t.Context(), term.messages, entries))
		require.Zero(t, term.queue.Stats().Pending)
		require.Equal(t, c.acked, acked)
		require.Equal(t, 1-c.acked, term.messages.Stats().Pending)
	}
}

// A row is never kept from being done by a full queue: of its tasks there are no more
// than one sweep holds.
func TestPassesOnThoughTheQueueIsFull(t *testing.T) {
	l := &looker{verdicts: leads(reconciler.OutcomeRemoved, "a", "b", "c")}
	term := newTestTerm(l, 1)
	acked := 0
	require.True(t, term.Offer(deletion("other", 0, 1, nil)))
	require.False(t, term.Offer(deletion("another", 0, 1, nil)))
	term.Offer(messagesOf(deletion("row", 0, 1, func() { acked++ })))
	_, entries := takeIDs(t, term.messages, 10)
	require.NoError(t, term.reconcile(t.Context(), term.messages, entries))
	ids, tasks := takeIDs(t, term.queue, 10)
	require.Equal(t, []string{"other", "a", "b", "c"}, ids)
	require.Zero(t, acked)
	finish(term.queue, tasks...)
	require.Equal(t, 1, acked)
}

// A task that is passed on while a worker has it is done after that worker.
func TestPassesOnToATaskInHand(t *testing.T) {
	l := &looker{verdicts: leads(reconciler.OutcomeRemoved, "a")}
	term := newTestTerm(l, 10)
	acked := 0
	term.Offer(hint("a"))
	_, inHand := takeIDs(t, term.queue, 1)
	term.Offer(messagesOf(deletion("row", 0, 1, func() { acked++ })))
	_, entries := takeIDs(t, term.messages, 1)
	require.NoError(t, term.reconcile(t.Context(), term.messages, entries))
	finish(term.queue, inHand...)
	require.Zero(t, acked)
	_, again := takeIDs(t, term.queue, 1)
	require.Len(t, again[0].Work.Deletions, 1)
	// A newer deletion stands for this one.
	term.Offer(deletion("a", 0, 2, nil))
	finish(term.queue, again...)
	require.Equal(t, 1, acked)
	_, again = takeIDs(t, term.queue, 1)
	finish(term.queue, again...)
	require.Equal(t, 1, acked)
}

func TestDetach(t *testing.T) {
	q := NewQueue(10)
	acked := map[string]int{}
	ack := func(name string) func() { return func() { acked[name]++ } }
	q.Offer(deletion("a", 0, 1, ack("1")))
	q.Offer(deletion("a", 1, 1, ack("other")))
	_, entries := takeIDs(t, q, 1)
	acknowledge := q.Detach(entries[0])
	q.Offer(deletion("a", 0, 2, ack("2")))
	q.Finish(entries[0], true, 0, "")
	require.Empty(t, acked, "what was detached is the caller's, also when a newer one comes")
	_, entries = takeIDs(t, q, 1)
	require.Len(t, entries[0].Work.Deletions, 2)
	finish(q, entries...)
	require.Equal(t, map[string]int{"2": 1}, acked)
	acknowledge()
	require.Equal(t, map[string]int{"1": 1, "2": 1, "other": 1}, acked)
}

func TestLatch(t *testing.T) {
	const n = 1000
	l := newLatch(n + 1)
	called := 0
	var all sync.WaitGroup
	for range n {
		all.Go(l.done)
	}
	l.release(func() { called++ })
	all.Wait()
	require.Zero(t, called)
	l.done()
	require.Equal(t, 1, called)
	newLatch(1).done() // nothing to release
}

// A message that is seen again is no new one: it does not begin the grace anew.
func TestQueueMergesMessagesByTag(t *testing.T) {
	saw := func(tag string) Event {
		e := messagesOf(hint("a"))
		e.Message = &reconciler.Message{ID: "a", Place: reconciler.Place{Tag: tag}}
		return e
	}
	tags := func(w *reconciler.Work) (out []string) {
		for _, m := range w.Messages {
			out = append(out, m.Place.Tag)
		}
		return out
	}
	q := NewQueue(10)
	for _, tag := range []string{"1", "2", "1", "1"} {
		require.True(t, q.Offer(saw(tag)))
	}
	_, entries := takeIDs(t, q, 10)
	w := &entries[0].Work
	require.Equal(t, []string{"1", "2"}, tags(w))
	require.False(t, w.Touched())
	q.Offer(saw("2"))
	q.Offer(saw("3"))
	q.Finish(entries[0], true, 0, "")
	require.Equal(t, []string{"1", "2", "3"}, tags(w), "those that came meanwhile")
	require.False(t, w.Touched())
	q.Offer(messagesOf(hint("a")))
	require.True(t, w.Touched(), "an event that names no message may be of any")

	ofResult := hint("a")
	require.True(t, q.Offer(ofResult))
	require.Equal(t, 2, q.Stats().Pending, "messages and results are different subjects")
}
