package reconciler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// suspects are those of what is in the broker.
func (w *world) suspects(onlyDeleted bool) (suspects []Suspect, deleted int) {
	w.Helper()
	deleted, err := w.LookAtMessages(w.Context(), w.Sweep, onlyDeleted, func(_ context.Context, batch []Suspect) error {
		for _, s := range batch {
			require.Equal(w, TaskMessages, s.Subject.Kind)
			require.Empty(w, s.Message.Place.Envelope, "bare")
			require.Equal(w, s.Message.Refs, s.Refs)
			require.False(w, s.Accepted)
			suspects = append(suspects, s)
		}
		return nil
	})
	require.NoError(w, err)
	return suspects, deleted
}

// lookAtMessages gives the suspects by their tags.
func (w *world) lookAtMessages(onlyDeleted bool) (tags []string, deleted int) {
	w.Helper()
	suspects, deleted := w.suspects(onlyDeleted)
	for _, s := range suspects {
		tags = append(tags, s.Message.Place.Tag)
	}
	return tags, deleted
}

func TestLookAtMessages(t *testing.T) {
	w := newWorld(t, named, kwargued)
	w.put("messages living scan", "messages gone scan", "unacked gone/2 scan", "messages mail mail",
		"messages j1 build 1:living", "messages j2 build 1:gone", "messages j3 build")
	w.rows[RowRef{0, "living"}], w.rows[RowRef{1, "living"}] = true, true
	suspects, deleted := w.lookAtMessages(false)
	require.Equal(t, []string{"gone", "gone2", "j2"}, suspects)
	require.Zero(t, deleted)
	require.True(t, w.foreign.Load(), "a name that is in no binding")
	require.Equal(t, []string{"j2"}, w.seen.TasksOf(RowRef{1, "gone"}))

	// Those of known deletions, whatever their names; a record counts as well.
	w.Memory.Add(RowSubject(1, "gone"))
	w.records[TaskSubject("gone")] = &worldRecord{evidence: Deleted}
	suspects, deleted = w.lookAtMessages(false)
	require.Equal(t, []string{"gone", "gone2", "j2"}, suspects)
	require.Equal(t, 3, deleted)
}

// The watch for messages of deleted rows asks the database of these alone.
func TestLookAtMessagesOfDeletedRows(t *testing.T) {
	w := newWorld(t, scans, argued)
	w.put("messages a scan", "messages b scan", "messages c scan 1:row", "messages d scan 1:other")
	suspects, deleted := w.lookAtMessages(true)
	require.Empty(t, suspects)
	require.Zero(t, deleted)
	require.NotContains(t, w.calls, "rows")

	w.Memory.Add(TaskSubject("a"))
	w.Memory.Add(RowSubject(1, "row"))
	suspects, deleted = w.lookAtMessages(true)
	require.Equal(t, []string{"a", "c"}, suspects)
	require.Equal(t, 2, deleted)

	w.broker[0].InChord = true
	suspects, deleted = w.lookAtMessages(true)
	require.Equal(t, []string{"c"}, suspects, "one that is left for its chord is no news")
	require.Equal(t, 1, deleted)
	suspects, _ = w.lookAtMessages(false)
	require.Contains(t, suspects, "a")
	w.Policy.RemoveChords = true
	suspects, _ = w.lookAtMessages(true)
	require.Equal(t, []string{"a", "c"}, suspects)

	w.rows[RowRef{0, "a"}] = true
	suspects, deleted = w.lookAtMessages(true)
	require.Equal(t, []string{"c"}, suspects, "inserted again")
	require.Equal(t, 1, deleted)
}

// R7: a message of any name is no suspect unless its deletion is known.
func TestLookAtMessagesOfAnyName(t *testing.T) {
	w := newWorld(t, scans)
	w.put("messages a scan", "messages b scan")
	w.Memory.Add(TaskSubject("b"))
	suspects, deleted := w.lookAtMessages(false)
	require.Equal(t, []string{"b"}, suspects)
	require.Equal(t, 1, deleted)
	require.False(t, w.foreign.Load(), "any name is of the binding")
}

// The living are told to the guard, in as many batches as there are; the suspects
// count when they are judged.
func TestLookAtMessagesCountsForTheGuard(t *testing.T) {
	w := newWorld(t, named)
	const n = 2*lookBatch + 100
	for i := range n {
		w.put(fmt.Sprintf("messages t%d scan", i))
		if i%2 == 0 {
			w.rows[RowRef{0, fmt.Sprint("t", i)}] = true
		}
	}
	batches, suspects := 0, 0
	scan := func(_ context.Context, yield func([]Message) error) error {
		for i := range w.broker {
			if err := yield(w.broker[i : i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	_, err := w.LookAtMessages(t.Context(), scan, false, func(_ context.Context, batch []Suspect) error {
		batches++
		suspects += len(batch)
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, n/2, suspects)
	require.Equal(t, 2, batches, "one for each lookBatch suspects, and the rest")
	require.Equal(t, n/2, w.Guard.buckets[0].seen)
	require.Zero(t, w.Guard.buckets[0].orphans)
	require.Zero(t, len(w.calls)-6, "three looks at rows, three at records: %v", w.calls)
}

func TestLookAtMessagesFails(t *testing.T) {
	for step, call := range []string{"sweep", "rows", "artifacts"} {
		w := newWorld(t, named)
		w.put("messages a scan")
		w.fails = step
		_, err := w.LookAtMessages(t.Context(), w.Sweep, false, func(context.Context, []Suspect) error {
			t.Error("submits what it does not know")
			return nil
		})
		require.ErrorIs(t, err, errStore)
		require.Equal(t, call, w.calls[step])
	}
	w := newWorld(t, named)
	w.put("messages a scan")
	errFull := errors.New("full")
	_, err := w.LookAtMessages(t.Context(), w.Sweep, false, func(context.Context, []Suspect) error { return errFull })
	require.ErrorIs(t, err, errFull)
}

// What can be of no binding costs the database nothing.
func TestForeignMessagesAreNotLookedUp(t *testing.T) {
	w := newWorld(t, named)
	w.put("messages a mail")
	suspects, _ := w.lookAtMessages(false)
	require.Empty(t, suspects)
	require.Equal(t, []string{"sweep"}, w.calls)
}

// A row whose key is a text may be a UUID in any spelling, which is then its task's.
func TestAMessageIsLookedUpAsItIsWritten(t *testing.T) {
	row := RowRef{0, "0A1b2C3d-0000-4000-8000-00000000002a"}
	w := newWorld(t, named)
	w.rows[row] = true
	w.put("messages " + row.Key + " scan")
	suspects, _ := w.suspects(false)
	require.Empty(t, suspects)

	// It is inserted after the first look.
	delete(w.rows, row)
	suspects, _ = w.suspects(false)
	require.Len(t, suspects, 1)
	w.rows[row] = true
	s := suspects[0]
	verdicts, err := w.once(&Work{Subject: s.Subject, Spelling: s.Spelling, Trigger: ByEvent, Messages: []*Message{s.Message}})
	require.NoError(t, err)
	require.Equal(t, OutcomeKept, verdicts[0].Outcome)
}

// Looks hold a bounded part of large messages.
func TestLooksLetLargeMessagesGo(t *testing.T) {
	w := newWorld(t, scans)
	big := strings.Repeat("x", 1<<20)
	most := 0
	_, err := w.LookAtMessages(t.Context(), func(_ context.Context, yield func([]Message) error) error {
		held, calls := 0, 0
		for i := range 100 {
			if len(w.calls) > calls {
				held, calls = 0, len(w.calls)
			}
			held += len(big)
			most = max(most, held)
			if err := yield([]Message{{ID: fmt.Sprint(i), Name: "scan", Place: Place{Tag: fmt.Sprint(i), Envelope: big}}}); err != nil {
				return err
			}
		}
		return nil
	}, false, func(context.Context, []Suspect) error { return nil })
	require.NoError(t, err)
	require.LessOrEqual(t, most, 16<<20)
}
