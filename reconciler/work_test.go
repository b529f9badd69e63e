package reconciler

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNotice(t *testing.T) {
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	t1, t2 := t0.Add(time.Second), t0.Add(2*time.Second)
	fenced := func(w *Work) { w.Fence = NewFence(t0, Running{}) }
	for _, c := range []struct {
		name string
		// between the first look at t0 and the second at t1, which finds digest.
		between func(w *Work)
		digest  uint64
		changed bool
		since   time.Time
		fence   bool
	}{
		{"the same", fenced, 1, false, t0, true},
		{"another", fenced, 2, true, t1, false},
		{"the same, written again", func(w *Work) { fenced(w); w.Touch() }, 1, true, t1, false},
		{"another, after a newer deletion", func(w *Work) { fenced(w); w.Renew(&Commit{}) }, 2, false, t1, false},
		{"the same, after a newer deletion", func(w *Work) { fenced(w); w.Renew(&Commit{}) }, 1, false, t0, true},
		{"touched before the first look since a deletion", func(w *Work) { fenced(w); w.Renew(&Commit{}); w.Touch() }, 1, false, t0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &Work{}
			w.notice(1, t0)
			require.False(t, w.changed, "a first look is no change")
			require.Equal(t, t0, w.since)
			c.between(w)
			w.notice(c.digest, t1)
			require.Equal(t, c.changed, w.changed)
			require.Equal(t, c.since, w.since)
			require.Equal(t, c.fence, w.Fence != nil)
			require.False(t, w.Touched())
			w.notice(c.digest, t2)
			require.Equal(t, c.since, w.since, "a third look finds the same")
			require.Equal(t, c.changed, w.changed, "once changed, it stays so until a newer deletion")
		})
	}
}

func TestNoticeMessages(t *testing.T) {
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	t1 := t0.Add(time.Second)
	for _, c := range []struct {
		name          string
		first, second []Artifact
		renew         bool
		changed       bool
		since         time.Time
		fence         bool
	}{
		{"the same", []Artifact{queued("scan", "a")}, []Artifact{queued("scan", "a")}, false, false, t0, true},
		{"taken by a worker", []Artifact{queued("scan", "a")}, []Artifact{unacked("scan", "a")}, false, false, t0, true},
		{"one has gone", []Artifact{queued("scan", "a"), queued("scan", "b")}, []Artifact{queued("scan", "b")}, false, false, t0, true},
		{"all have gone", []Artifact{queued("scan", "a")}, nil, false, false, t0, true},
		{"one has come", []Artifact{queued("scan", "a")}, []Artifact{queued("scan", "a"), queued("scan", "b")}, false, true, t1, false},
		{"one has come where there was none", nil, []Artifact{queued("scan", "a")}, false, true, t1, false},
		{"one has come after a newer deletion", []Artifact{queued("scan", "a")}, []Artifact{queued("scan", "b")}, true, false, t1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &Work{}
			w.noticeMessages(c.first, t0)
			require.False(t, w.changed)
			require.Equal(t, t0, w.since)
			w.Fence = NewFence(t0, Running{})
			if c.renew {
				w.Renew(&Commit{})
			}
			w.noticeMessages(c.second, t1)
			require.Equal(t, c.changed, w.changed)
			require.Equal(t, c.since, w.since)
			require.Equal(t, c.fence, w.Fence != nil)
			w.noticeMessages(c.first, t1.Add(time.Second))
			require.Equal(t, c.since, w.since, "one that comes back is the same")
		})
	}
}

func TestWorkSeesEachMessageOnce(t *testing.T) {
	w := &Work{}
	for i := range 2 * maxMessages {
		for range 2 {
			w.See(&Message{ID: "t", Place: Place{Tag: fmt.Sprint(i)}})
		}
	}
	require.Len(t, w.Messages, maxMessages)
	for i, m := range w.Messages {
		require.Equal(t, fmt.Sprint(i), m.Place.Tag)
	}
}

func verdict(o Outcome, after time.Duration, counts map[ArtifactKind]int, tasks ...string) Verdict {
	v := Verdict{Decision: Decision{Outcome: o, After: after, Reason: string(o)}, Removed: counts}
	for _, id := range tasks {
		v.Tasks = append(v.Tasks, Look{Subject: TaskSubject(id)})
	}
	if o == OutcomeError {
		v.Err = errStore
	}
	return v
}

// What has to come back decides, then what was done; in whatever order the parts come.
func TestVerdictsMerge(t *testing.T) {
	for i, less := range severity {
		for _, more := range severity[i:] {
			for _, parts := range [][2]Outcome{{less, more}, {more, less}} {
				v := verdict(parts[0], time.Second, nil)
				v.merge(verdict(parts[1], time.Second, nil))
				require.Equal(t, more, v.Outcome, parts)
				require.Equal(t, more == OutcomeError, errors.Is(v.Err, errStore))
			}
		}
	}
	require.Len(t, severity, 8, "every outcome has its place")

	for _, waits := range [][2]time.Duration{{time.Second, time.Minute}, {time.Minute, time.Second}} {
		v := verdict(OutcomeDeferred, waits[0], nil)
		v.merge(verdict(OutcomeDeferred, waits[1], nil))
		require.Equal(t, time.Second, v.After, "the one that is due first")
	}

	for _, o := range [][2]Outcome{{OutcomeRemoved, OutcomeRemoved}, {OutcomeRemoved, OutcomeDeferred}, {OutcomeDeferred, OutcomeRemoved}, {OutcomeRemoved, OutcomeNoop}, {OutcomeNoop, OutcomeError}} {
		first := map[ArtifactKind]int{QueuedMessage: 1, UnackedMessage: 2}
		second := map[ArtifactKind]int{QueuedMessage: 10, ResultKey: 3}
		v := verdict(o[0], 0, first, "a")
		v.merge(verdict(o[1], 0, second, "b", "c"))
		require.Equal(t, map[ArtifactKind]int{QueuedMessage: 11, UnackedMessage: 2, ResultKey: 3}, v.Removed, o)
		require.Equal(t, map[ArtifactKind]int{QueuedMessage: 1, UnackedMessage: 2}, first, "a part is not changed")
		require.Equal(t, map[ArtifactKind]int{QueuedMessage: 10, ResultKey: 3}, second)
		var ids []string
		for _, l := range v.Tasks {
			ids = append(ids, l.Subject.ID)
		}
		require.Equal(t, []string{"a", "b", "c"}, ids)
	}

	for _, one := range []bool{true, false} {
		v, part := verdict(OutcomeRemoved, 0, nil), verdict(OutcomeNoop, 0, nil)
		if one {
			v.Removed = map[ArtifactKind]int{ResultKey: 1}
		} else {
			part.Removed = map[ArtifactKind]int{ResultKey: 1}
		}
		v.merge(part)
		require.Equal(t, map[ArtifactKind]int{ResultKey: 1}, v.Removed)
	}
}
