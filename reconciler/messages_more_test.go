package reconciler

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A task whose own row and another that it names are deleted together is taken once.
func TestATaskAndItsRowAreDeletedTogether(t *testing.T) {
	w := newWorld(t, scans, argued)
	w.put("unacked a scan 1:r")
	works := []*Work{w.task("a"), w.row(1, "r")}
	verdicts, err := w.once(works...)
	require.NoError(t, err)
	require.Len(t, verdicts[1].Tasks, 1, "it is one of the row's as well")
	w.settle(works...)
	require.Empty(t, w.holds())
	require.Equal(t, map[string]int{"a": 1}, w.revoked)
}

// What was granted and could not be published is published by whoever comes next.
func TestAnUnsentRevokeIsSentLater(t *testing.T) {
	w := newWorld(t, scans)
	w.put("unacked a scan", "messages living scan")
	w.rows[RowRef{0, "living"}] = true
	w.fails = 4
	_, err := w.once(w.task("a"))
	require.NoError(t, err)
	require.Equal(t, "revoke", w.calls[4])
	require.Empty(t, w.revoked)
	require.Equal(t, []string{"a", "living"}, w.holds(), "its message stays until it is revoked")
	_, err = w.once(w.task("living"))
	require.NoError(t, err)
	require.Equal(t, map[string]int{"a": 1}, w.revoked)
	w.settle(w.task("a"))
	require.Equal(t, map[string]int{"a": 1}, w.revoked)
	require.Equal(t, []string{"living"}, w.holds())
}

// The body's row need not be remembered where it is the work's own.
func TestAChordOfTheDeletedRow(t *testing.T) {
	w := newWorld(t, scans, argued)
	w.put("messages a scan 1:r")
	w.broker[0].InChord, w.broker[0].Body = true, &ChordBody{ID: "body", Refs: []RowRef{{1, "r"}}}
	work := w.row(1, "r")
	w.Memory.Forget(RowSubject(1, "r"))
	require.Equal(t, OutcomeRemoved, w.settle(work)[0].Outcome)
	require.Empty(t, w.revoked)
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

// What can be of no binding costs the database nothing.
func TestForeignMessagesAreNotLookedUp(t *testing.T) {
	w := newWorld(t, named)
	w.put("messages a mail")
	suspects, _ := w.lookAtMessages(false)
	require.Empty(t, suspects)
	require.Equal(t, []string{"sweep"}, w.calls)
}
