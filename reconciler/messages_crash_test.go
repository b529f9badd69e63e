package reconciler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whichever call of a store fails, before or after its effect, and whether the
// process goes on or a new one takes over: in the end all is removed, nothing of a
// living row, and no id is revoked twice.
func TestMessagesWithACrashAtEveryStep(t *testing.T) {
	for _, after := range []bool{false, true} {
		for _, restart := range []bool{false, true} {
			for step := 0; ; step++ {
				done := false
				t.Run(fmt.Sprintf("after %v restart %v step %d", after, restart, step), func(t *testing.T) {
					done = crashAt(t, step, after, restart)
				})
				if t.Failed() {
					return
				}
				if done {
					require.Greater(t, step, 10)
					break
				}
			}
		}
	}
}

// crashAt tells whether there was no such step.
func crashAt(t *testing.T, step int, after, restart bool) bool {
	w := newWorld(t, argued, scans)
	w.put("messages q scan 0:r", "unacked u scan 0:r", "messages living scan 0:living", "messages weak scan 0:absent", "messages again scan 0:again")
	w.rows[RowRef{0, "living"}], w.rows[RowRef{0, "again"}] = true, true
	w.records[TaskSubject("again")] = &worldRecord{evidence: Deleted, hold: w.clock.Add(time.Hour)}
	w.seen.Note("seen", "scan", []RowRef{{0, "r"}})
	w.before["pull"] = func() { w.popped("q") }
	w.fails, w.after = step, after
	weak := w.broker[3].Bare()
	works := func() []*Work {
		return []*Work{w.row(0, "r"), w.row(0, "again"), {Subject: TaskSubject("weak").Messages(), Trigger: ByEvent, Messages: []*Message{weak}}}
	}
	batch := works()
	var last []Verdict
	if restart {
		verdicts, err := w.once(batch...)
		require.NoError(t, err)
		for len(w.calls) <= step && slices.ContainsFunc(verdicts, func(v Verdict) bool { _, again := v.Again(); return again }) {
			w.clock = w.clock.Add(time.Second)
			verdicts, err = w.once(batch...)
			require.NoError(t, err)
		}
		if len(w.calls) <= step {
			return true
		}
		w.start(argued, scans)
		batch = works()
	}
	last = w.settle(batch...)
	if len(w.calls) <= step {
		return true
	}
	require.Equal(t, []string{"living", "again"}, w.holds(), "%v", w.calls)
	require.Equal(t, OutcomeKept, last[1].Outcome)
	require.True(t, w.records[TaskSubject("again")].hold.IsZero(), "%v", w.calls)
	most := 1
	if after && !restart && w.calls[step] == "revoke" {
		most = 2 // nothing tells that it was heard
	}
	for _, id := range []string{"q", "u", "seen"} {
		require.LessOrEqual(t, w.revoked[id], most, id)
		// Granted without our knowing it, it is not published: rather never than twice.
		if !after && !restart {
			require.Equal(t, 1, w.revoked[id], "%s: %v", id, w.calls)
		}
	}
	require.Zero(t, w.revoked["weak"]+w.revoked["living"]+w.revoked["again"])
	return false
}
