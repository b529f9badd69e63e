package reconciler

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever fails, what was not removed is not said to be: it comes back.
func TestNothingIsClaimedThatWasNotDone(t *testing.T) {
	for _, after := range []bool{false, true} {
		var calls []string
		for step := 0; step <= len(calls); step++ {
			t.Run(fmt.Sprintf("after %v step %d", after, step), func(t *testing.T) {
				calls = failAt(t, step, after)
			})
		}
		require.Equal(t, []string{"running", "artifacts", "rows", "empty", "remove", "revive", "running"}, calls)
	}
}

// failAt gives the calls that are made where there is no such step.
func failAt(t *testing.T, step int, after bool) []string {
	w := newWorld(t, scans)
	for _, id := range []string{"deleted", "absent", "young", "back"} {
		w.results[TaskSubject(id)] = result
	}
	absent := &Work{Subject: TaskSubject("absent"), Trigger: ByEvent}
	_, err := w.once(absent)
	require.NoError(t, err)
	w.clock = w.clock.Add(policy.Grace)
	w.rows[RowRef{0, "back"}] = true
	w.records[TaskSubject("back")] = &worldRecord{evidence: Deleted}
	w.calls, w.fails, w.after = nil, step, after
	works := []*Work{
		{Subject: TaskSubject("deleted"), Trigger: ByDelete, Deletions: []Deletion{w.deletion(0, "deleted")}},
		absent,
		{Subject: TaskSubject("young"), Trigger: ByEvent},
		{Subject: TaskSubject("back"), Trigger: ByEvent},
	}
	verdicts, err := w.once(works...)
	require.NoError(t, err)
	for i, v := range verdicts {
		_, again := v.Again()
		_, there := w.results[works[i].Subject]
		if i == 3 {
			there = !w.records[works[i].Subject].revived // that is what is to be done about it
		}
		if !after || !again {
			require.Equal(t, there, again, "%+v", v)
		}
	}
	require.Contains(t, w.results, TaskSubject("young"))
	return w.calls
}

// Another leader has taken over.
func TestNothingIsClaimedThatIsStale(t *testing.T) {
	w := newWorld(t, scans)
	w.results[TaskSubject("a")] = result
	w.says["remove"] = Stale
	verdicts, err := w.once(&Work{Subject: TaskSubject("a"), Trigger: ByDelete, Deletions: []Deletion{w.deletion(0, "a")}})
	require.ErrorIs(t, err, ErrStale)
	require.NotEqual(t, OutcomeRemoved, verdicts[0].Outcome)
}

// The default result of a task does not tell its row: its message did.
func TestAResultOfASeenTask(t *testing.T) {
	look := func(set func(w *world)) Verdict {
		w := newWorld(t, argued)
		w.results[TaskSubject("a")] = result
		set(w)
		verdicts, err := w.once(&Work{Subject: TaskSubject("a"), Trigger: ByEvent})
		require.NoError(t, err)
		return verdicts[0]
	}
	seen := func(w *world) { w.seen.Note("a", "scan", []RowRef{{0, "r"}}) }
	require.Equal(t, HeldByUnknown, look(func(*world) {}).HeldBy)
	require.Equal(t, HeldByGrace, look(seen).HeldBy)
	require.Equal(t, OutcomeKept, look(func(w *world) { seen(w); w.rows[RowRef{0, "r"}] = true }).Outcome)
	require.Equal(t, HeldByGrace, look(func(w *world) {
		seen(w)
		w.foreign.Store(true)
	}).HeldBy, "its message told its name, too")
	recorded := look(func(w *world) {
		w.records[TaskSubject("a")] = &worldRecord{evidence: Absent, table: "public.logs", key: "r"}
		w.rows[RowRef{0, "r"}] = true
	})
	require.Equal(t, OutcomeKept, recorded.Outcome, "so does the record of a removal")
}
