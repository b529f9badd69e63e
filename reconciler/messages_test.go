package reconciler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMessagesOfADeletedTask(t *testing.T) {
	w := newWorld(t, scans)
	w.put("messages a scan", "messages b scan", "unacked a/2 scan")
	v := w.settle(w.task("a"))[0]
	require.Equal(t, OutcomeRemoved, v.Outcome)
	require.Equal(t, map[ArtifactKind]int{QueuedMessage: 1, UnackedMessage: 1}, v.Removed)
	require.Equal(t, []string{"b"}, w.holds())
	require.Equal(t, map[string]int{"a": 1}, w.revoked)
	require.Equal(t, v.Removed, w.records[TaskSubject("a")].count)
	require.Equal(t, []string{"sweep", "artifacts", "rows", "bury", "revoke", "pull", "count", "heard"}, w.calls, "the record, the revoke, the messages")
	require.Empty(t, v.Tasks, "its result has a work of its own")

	w.put("unacked a/3 scan")
	v = w.settle(&Work{Subject: TaskSubject("a").Messages(), Trigger: ByEvent, Messages: []*Message{w.broker[1].Bare()}})[0]
	require.Equal(t, OutcomeRemoved, v.Outcome, "a retry is known by the record")
	require.Equal(t, map[string]int{"a": 1}, w.revoked, "and not revoked again")
}

// A message that is given back while a sweep goes on is met in both places.
func TestAMessageInTwoPlaces(t *testing.T) {
	w := newWorld(t, scans)
	w.put("unacked a scan", "messages a scan", "messages a scan")
	w.broker = w.broker[:2]
	work := w.task("a")
	verdicts, err := w.once(work)
	require.NoError(t, err)
	require.Equal(t, map[ArtifactKind]int{QueuedMessage: 1, UnackedMessage: 1}, verdicts[0].Removed)
	require.Empty(t, w.holds())

	w.put("messages a scan", "messages a scan")
	w.before["pull"] = func() { w.broker = w.broker[:1] }
	require.Equal(t, OutcomeRemoved, w.settle(w.task("a"))[0].Outcome, "met twice in one place, it is one")
}

// All the tasks of a row: queued, in hand, and one that was only seen before.
func TestMessagesOfADeletedRow(t *testing.T) {
	w := newWorld(t, argued)
	w.put("messages q scan 0:r", "unacked u scan 0:r", "messages living scan 0:other", "messages both scan 0:r 0:other", "messages mail mail")
	w.rows[RowRef{0, "other"}] = true
	w.seen.Note("seen", "scan", []RowRef{{0, "r"}})
	v := w.settle(w.row(0, "r"))[0]
	require.Equal(t, OutcomeRemoved, v.Outcome)
	require.Equal(t, map[ArtifactKind]int{QueuedMessage: 1, UnackedMessage: 1}, v.Removed)
	require.Equal(t, []string{"living", "both", "mail"}, w.holds(), "a task that names a living row too is left")
	require.Equal(t, map[string]int{"u": 1, "seen": 1}, w.revoked)
	var tasks []string
	for _, l := range v.Tasks {
		require.Contains(t, l.Refs, RowRef{0, "r"})
		tasks = append(tasks, l.Subject.ID)
	}
	require.ElementsMatch(t, []string{"q", "u", "seen"}, tasks)
	require.Equal(t, "r", w.records[TaskSubject("q")].key)
	require.True(t, w.records[TaskSubject("u")].revoked)
}

func TestARowThatIsInsertedAgain(t *testing.T) {
	for _, b := range []Binding{scans, argued} {
		w := newWorld(t, b)
		w.put("messages a scan 0:a", "unacked a/2 scan 0:a")
		works := []*Work{w.task("a")}
		if b.ByArgument() {
			works = []*Work{w.row(0, "a")}
		}
		w.records[TaskSubject("a")] = &worldRecord{evidence: Deleted, hold: w.clock.Add(time.Hour)}
		w.rows[RowRef{0, "a"}] = true
		w.says["revive"] = Late // the record tells of something newer
		late, err := w.once(works...)
		require.NoError(t, err)
		_, again := late[0].Again()
		require.True(t, again, late[0].Reason)
		delete(w.says, "revive")
		v := w.settle(works...)[0]
		require.Equal(t, OutcomeKept, v.Outcome)
		require.Empty(t, v.Tasks)
		require.Len(t, w.holds(), 2)
		require.Empty(t, w.revoked)
		require.Equal(t, []Subject{TaskSubject("a")}, w.revived)
		require.Subset(t, []Subject{TaskSubject("a")}, w.released)
		require.False(t, w.Memory.Has(works[0].Subject.Owner()), "its deletion is no evidence any more")
	}
}

// What was just seen is judged on what is known of it; only what would be removed is
// swept for.
func TestAWeakWorkSweepsLate(t *testing.T) {
	work := func(w *world) *Work {
		w.put("messages a scan")
		return &Work{Subject: TaskSubject("a").Messages(), Trigger: ByEvent, Messages: []*Message{w.broker[0].Bare()}}
	}
	first := func(w *world, weak *Work) {
		verdicts, err := w.once(weak)
		require.NoError(w, err)
		require.Equal(w, HeldByGrace, verdicts[0].HeldBy)
		require.NotContains(w, w.calls, "sweep")
		w.clock = w.clock.Add(policy.Grace)
	}
	t.Run("removed", func(t *testing.T) {
		w := newWorld(t, named)
		weak := work(w)
		first(w, weak)
		require.Equal(t, OutcomeRemoved, w.settle(weak)[0].Outcome)
		require.Empty(t, w.holds())
		require.Contains(t, w.calls, "sweep")
	})
	t.Run("the row appears before the second look", func(t *testing.T) {
		w := newWorld(t, named)
		weak := work(w)
		first(w, weak)
		w.rows[RowRef{0, "a"}] = true
		require.Equal(t, OutcomeKept, w.settle(weak)[0].Outcome)
		require.NotContains(t, w.calls, "sweep")
	})
	t.Run("the row appears during the sweep", func(t *testing.T) {
		w := newWorld(t, named)
		weak := work(w)
		first(w, weak)
		w.before["sweep"] = func() { w.rows[RowRef{0, "a"}] = true }
		require.Equal(t, OutcomeKept, w.settle(weak)[0].Outcome)
		require.Equal(t, []string{"a"}, w.holds())
	})
	t.Run("another message of it has come", func(t *testing.T) {
		w := newWorld(t, named)
		weak := work(w)
		first(w, weak)
		w.before["sweep"] = func() { w.put("messages a/2 scan") }
		verdicts, err := w.once(weak)
		require.NoError(t, err)
		require.Equal(t, HeldByGrace, verdicts[0].HeldBy, "the grace begins anew")
		require.Len(t, w.holds(), 2)
		require.Equal(t, OutcomeRemoved, w.settle(weak)[0].Outcome)
		require.Empty(t, w.holds())
	})
	t.Run("another message of it is seen", func(t *testing.T) {
		w := newWorld(t, named)
		weak := work(w)
		first(w, weak)
		w.put("messages a/2 scan")
		weak.See(w.broker[1].Bare())
		first(w, weak)
		require.Equal(t, map[ArtifactKind]int{QueuedMessage: 2}, w.settle(weak)[0].Removed)
	})
	t.Run("what a sweep has found needs none", func(t *testing.T) {
		w := newWorld(t, named)
		weak := work(w)
		weak.Messages, w.running = nil, []Transaction{{ID: "2/1"}}
		for range 5 {
			_, err := w.once(weak)
			require.NoError(t, err)
			w.clock = w.clock.Add(policy.Grace)
		}
		require.Equal(t, 1, w.sweeps())
		require.Len(t, w.holds(), 1)
	})
	t.Run("transactions are open", func(t *testing.T) {
		w := newWorld(t, named)
		weak := work(w)
		w.running = []Transaction{{ID: "2/1"}}
		first(w, weak)
		verdicts, err := w.once(weak)
		require.NoError(t, err)
		require.Equal(t, HeldByTransactions, verdicts[0].HeldBy)
		w.running = nil
		require.Equal(t, OutcomeRemoved, w.settle(weak)[0].Outcome)
	})
}

// A deletion that is not prompt is judged again behind a fence, in the same attempt.
func TestALateDeletionIsJudgedAtOnce(t *testing.T) {
	w := newWorld(t, scans)
	w.put("messages a scan", "messages b scan")
	late, other := w.task("a"), w.task("b")
	w.clock = w.clock.Add(time.Minute)
	w.before["running"] = func() { w.rows[RowRef{0, "b"}] = true } // commits while the fence is taken
	verdicts, err := w.once(late, other)
	require.NoError(t, err)
	require.Equal(t, OutcomeRemoved, verdicts[0].Outcome)
	require.Equal(t, OutcomeKept, verdicts[1].Outcome)
	require.Equal(t, []string{"b"}, w.holds())
	require.Equal(t, 1, w.sweeps())
}

// A worker pops a message between the sweep and the pull: it is found in its hands,
// and revoked, once.
func TestAMessagePoppedMeanwhile(t *testing.T) {
	w := newWorld(t, scans)
	w.put("messages a scan")
	w.before["pull"] = func() { w.popped("a") }
	work := w.task("a")
	verdicts, err := w.once(work)
	require.NoError(t, err)
	require.Equal(t, OutcomeDeferred, verdicts[0].Outcome)
	require.Equal(t, HeldByChange, verdicts[0].HeldBy)
	require.Equal(t, lookAgain, verdicts[0].After)
	require.Empty(t, w.revoked)
	v := w.settle(work)[0]
	require.Equal(t, map[ArtifactKind]int{UnackedMessage: 1}, v.Removed)
	require.Equal(t, map[string]int{"a": 1}, w.revoked)
	require.Empty(t, w.holds())
}

func TestRefusals(t *testing.T) {
	for _, by := range []string{"bury", "pull"} {
		for status, want := range map[RemoveStatus]HeldBy{Paused: HeldByPause, Held: HeldByRestore, Late: HeldByChange} {
			t.Run(fmt.Sprint(by, " ", status), func(t *testing.T) {
				w := newWorld(t, scans)
				w.put("unacked a scan", "messages b scan")
				w.says[by] = status
				verdicts, err := w.once(w.task("a"), w.task("b"))
				require.NoError(t, err)
				for _, v := range verdicts {
					require.Equal(t, want, v.HeldBy)
					_, again := v.Again()
					require.Equal(t, status != Held, again)
					require.Empty(t, v.Removed)
				}
				require.Len(t, w.holds(), 2)
				require.Equal(t, by == "pull", w.revoked["a"] == 1)
			})
		}
		t.Run(by+" stale", func(t *testing.T) {
			w := newWorld(t, scans)
			w.put("unacked a scan")
			w.says[by] = Stale
			verdicts, err := w.once(w.task("a"))
			require.ErrorIs(t, err, ErrStale)
			require.NotEqual(t, OutcomeRemoved, verdicts[0].Outcome)
			require.Len(t, w.holds(), 1)
			require.Equal(t, by == "pull", w.revoked["a"] == 1)
		})
	}
}

// A chord's member is left and revoked, unless nobody waits for the chord.
func TestChords(t *testing.T) {
	for _, c := range []struct {
		name   string
		body   *ChordBody
		set    func(w *world)
		remove bool
	}{
		{"nothing is known of its body", nil, nil, false},
		{"its body's row exists", &ChordBody{ID: "body"}, func(w *world) { w.rows[RowRef{0, "body"}] = true }, false},
		{"its body's row is only absent", &ChordBody{ID: "body"}, nil, false},
		{"its body's row was deleted", &ChordBody{ID: "body"}, func(w *world) { w.Memory.Add(TaskSubject("body")) }, true},
		{"its body's row was deleted and inserted again", &ChordBody{ID: "body"}, func(w *world) {
			w.Memory.Add(TaskSubject("body"))
			w.rows[RowRef{0, "body"}] = true
		}, false},
		{"its body is of the same row", &ChordBody{ID: "a"}, nil, true},
		{"policy", nil, func(w *world) { w.Policy.RemoveChords = true }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, scans)
			w.put("messages a scan")
			w.broker[0].InChord, w.broker[0].Body = true, c.body
			if c.set != nil {
				c.set(w)
			}
			v := w.settle(w.task("a"))[0]
			require.Equal(t, c.remove, len(w.holds()) == 0)
			require.Equal(t, c.remove, v.Outcome == OutcomeRemoved, v.Outcome)
			require.Equal(t, c.remove, len(w.revoked) == 0)
			if !c.remove {
				require.Equal(t, HeldByChord, v.HeldBy)
				require.Equal(t, OutcomeReported, w.settle(w.task("a"))[0].Outcome)
				require.Equal(t, map[string]int{"a": 1}, w.revoked, "once")
			}
		})
	}
}

// A sweep holds so many bytes; the rest is found by the next.
func TestManyBytes(t *testing.T) {
	w := newWorld(t, scans)
	big := strings.Repeat("x", maxFound/2+1)
	for i := range 4 {
		w.put(fmt.Sprintf("messages a/%d scan", i), "messages b scan")
		w.broker[2*i].Place.Envelope, w.broker[2*i+1].Place.Envelope = big, big
		w.broker[2*i+1].Place.Tag = fmt.Sprint("b", i)
	}
	verdicts, err := w.once(w.task("a"), w.task("b"))
	require.NoError(t, err)
	for i, v := range verdicts {
		require.Equal(t, OutcomeDeferred, v.Outcome, i)
	}
	require.Len(t, w.holds(), 7)
	w.settle(w.task("a"), w.task("b"))
	require.Empty(t, w.holds())
	require.Empty(t, w.revoked, "what is in a queue is in no worker's hands")

	w.put("messages a scan")
	w.broker[0].Place.Envelope = big + big
	w.settle(w.task("a"))
	require.Empty(t, w.holds(), "one is taken, however large")
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

// While a transaction is open that may be inserting the row again, nothing is swept:
// it may be open for very long.
func TestWhatWaitsForTransactionsDoesNotSweep(t *testing.T) {
	w := newWorld(t, both)
	w.running = []Transaction{{ID: "3/7"}}
	w.put("messages 7 scan 0:7")
	works := []*Work{w.task("7"), w.row(0, "7"), w.task("8")}
	w.clock = w.clock.Add(time.Minute)
	for range 10 {
		verdicts, err := w.once(works...)
		require.NoError(t, err)
		for _, v := range verdicts {
			require.Equal(t, HeldByTransactions, v.HeldBy, "%+v", v)
		}
	}
	require.Equal(t, 1, w.sweeps())
	w.running = nil
	verdicts, err := w.once(works...)
	require.NoError(t, err)
	for _, v := range verdicts {
		_, again := v.Again()
		require.False(t, again, "%+v", v)
	}
	require.Empty(t, w.holds())
	require.Equal(t, map[string]int{"8": 1}, w.revoked)
}
