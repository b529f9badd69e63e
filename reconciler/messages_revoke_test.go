package reconciler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

// A revoke is by the ids as the messages write them.
func TestRevokesBySpelling(t *testing.T) {
	w := newWorld(t, scans)
	const id = "0a1b2c3d-0000-4000-8000-00000000002a"
	w.put("unacked "+strings.ToUpper(id)+" scan", "unacked "+strings.ToUpper(id)+"/2 scan")
	w.settle(w.task(id), w.task("unseen"))
	require.Equal(t, map[string]int{strings.ToUpper(id): 1, "unseen": 1}, w.revoked)
}

func TestNoRevokeOfWhatHasEnded(t *testing.T) {
	for name, set := range map[string]func(w *world){
		"its result says so": func(w *world) {
			w.results[TaskSubject("a")] = Artifact{Kind: ResultKey, Ended: true}
		},
		"the record of its result says so": func(w *world) { w.records[TaskSubject("a")] = &worldRecord{ended: true, count: map[ArtifactKind]int{}} },
		"revoked before": func(w *world) {
			w.records[TaskSubject("a")] = &worldRecord{revoked: true, count: map[ArtifactKind]int{}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, scans)
			set(w)
			w.put("unacked a scan")
			require.Equal(t, OutcomeRemoved, w.settle(w.task("a"))[0].Outcome)
			require.Empty(t, w.holds())
			w.calls = nil
			require.Equal(t, OutcomeNoop, w.settle(w.task("a"))[0].Outcome)
			require.Empty(t, w.revoked)
			require.Equal(t, []string{"sweep", "artifacts", "rows"}, w.calls, "nor asked for")
		})
	}
}

func TestRevokeLimits(t *testing.T) {
	w := newWorld(t, scans)
	w.revokes.unseen = rate.NewLimiter(0, 1)
	for _, v := range w.settle(w.task("a"), w.task("b")) {
		require.Equal(t, OutcomeNoop, v.Outcome)
	}
	require.Len(t, w.revoked, 1, "what nobody may have is not worth waiting for")
	require.Len(t, w.records, 1)

	w = newWorld(t, scans)
	w.revokes.held = rate.NewLimiter(rate.Every(10*time.Millisecond), 1)
	w.put("unacked a scan", "unacked b scan")
	began := time.Now()
	w.settle(w.task("a"), w.task("b"))
	require.Equal(t, map[string]int{"a": 1, "b": 1}, w.revoked, "what is in a worker's hands waits")
	require.GreaterOrEqual(t, time.Since(began), 9*time.Millisecond)
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

// A pause that begins between the record and the revoke holds both it and the message.
func TestAPauseHoldsARevoke(t *testing.T) {
	w := newWorld(t, scans)
	w.put("unacked a scan")
	work := w.task("a")
	w.says["revoke"] = Paused
	verdicts, err := w.once(work)
	require.NoError(t, err)
	require.NoError(t, verdicts[0].Err)
	require.Equal(t, HeldByPause, verdicts[0].HeldBy)
	after, again := verdicts[0].Again()
	require.True(t, again)
	require.Equal(t, pausedRetry, after)
	require.Empty(t, w.revoked)
	require.Equal(t, []string{"a"}, w.holds())
	delete(w.says, "revoke")
	w.settle(work)
	require.Equal(t, map[string]int{"a": 1}, w.revoked)
	require.Empty(t, w.holds())
}

// R1: a revoke that could not be published is not published later for a row that is
// there again by then: its task may have the same id.
func TestALateRevokeIsOfNoLivingRow(t *testing.T) {
	w := newWorld(t, scans)
	w.put("unacked a scan", "unacked b scan")
	works := []*Work{w.task("a"), w.task("b")}
	w.fails = 4
	verdicts, err := w.once(works...)
	require.NoError(t, err)
	require.Equal(t, "revoke", w.calls[4])
	require.Error(t, verdicts[0].Err)
	require.Equal(t, []string{"a", "b"}, w.holds())
	w.rows[RowRef{0, "a"}] = true
	_, err = w.once(works...)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"b": 1}, w.revoked)
	require.Equal(t, []string{"a"}, w.holds())
}

// R1: pages of revokes wait for their limit; by then the row may be there again.
func TestRowsAreReadAgainBeforeALatePage(t *testing.T) {
	w := newWorld(t, scans)
	w.Now = time.Now                                           // the limit's clock
	w.revokes.held = rate.NewLimiter(2*revokePage, revokePage) // the second page waits
	var works []*Work
	for i := range revokePage + revokePage/2 {
		w.put(fmt.Sprintf("unacked t%d scan", i))
		works = append(works, w.task(fmt.Sprint("t", i)))
	}
	last := fmt.Sprint("t", len(works)-1)
	w.before["rows"] = func() {
		w.before["rows"] = func() { w.rows[RowRef{0, last}] = true }
	}
	_, err := w.once(works...)
	require.NoError(t, err)
	require.Equal(t, []string{last}, w.holds())
	require.Len(t, w.revoked, len(works)-1)
	require.NotContains(t, w.revoked, last)
}

// R9: a task whose queued message was taken out is not revoked, though two entries
// of one row lead to it (celery_id and args:0), in one batch or one after another.
func TestATaskTakenFromAQueueIsNotRevoked(t *testing.T) {
	for _, batches := range []int{1, 2} {
		t.Run(fmt.Sprint("batches: ", batches), func(t *testing.T) {
			w := newWorld(t, both)
			w.put("messages 7 scan 0:7")
			task, row := w.task("7"), w.row(0, "7")
			if batches == 1 {
				verdicts, err := w.once(task, row)
				require.NoError(t, err)
				require.Equal(t, 1, w.sweeps())
				require.Equal(t, OutcomeRemoved, verdicts[0].Outcome)
				_, again := verdicts[1].Again()
				require.False(t, again, "%+v", verdicts[1])
				require.Equal(t, 1, total(verdicts[0].Removed)+total(verdicts[1].Removed))
			} else {
				_, err := w.once(task)
				require.NoError(t, err)
				_, err = w.once(row)
				require.NoError(t, err)
			}
			require.Equal(t, map[ArtifactKind]int{QueuedMessage: 1}, w.removed)
			require.Empty(t, w.holds())
			require.Empty(t, w.revoked)
		})
	}
}

// R9: what comes back because of one task does not revoke the others of its row.
func TestARowThatComesBackDoesNotRevokeWhatWasTaken(t *testing.T) {
	w := newWorld(t, argued)
	w.put("messages a scan 0:7", "messages b scan 0:7", "messages c scan 0:7")
	w.before["pull"] = func() { w.vanishes("b") }
	row := w.row(0, "7")
	verdicts, err := w.once(row)
	require.NoError(t, err)
	_, again := verdicts[0].Again()
	require.True(t, again)
	_, err = w.once(row)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"b": 1}, w.revoked, "the one that a worker has popped")
}

// R9: one message of a task was taken out, another popped: it may run.
func TestATaskOfTwoMessagesOneOfThemPoppedIsRevoked(t *testing.T) {
	w := newWorld(t, scans)
	w.put("messages a scan", "messages a/2 scan")
	w.before["pull"] = func() { w.vanishes("a2") }
	task := w.task("a")
	verdicts, err := w.once(task)
	require.NoError(t, err)
	_, again := verdicts[0].Again()
	require.True(t, again)
	_, err = w.once(task)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"a": 1}, w.revoked)
}

// A row whose key cannot be a task's id must not stop all others.
func TestAnEmptyKeyDoesNotStopRevokes(t *testing.T) {
	w := newWorld(t, scans)
	w.put("unacked b scan")
	_, err := w.once(w.task(""))
	require.NoError(t, err)
	verdicts, err := w.once(w.task("b"))
	require.NoError(t, err)
	require.NoError(t, verdicts[0].Err)
	require.Empty(t, w.holds())
	require.Equal(t, map[string]int{"b": 1}, w.revoked)
}
