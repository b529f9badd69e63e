package reconciler

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// newTestSeen has a clock that the test sets.
func newTestSeen(limit int, age time.Duration) (*Seen, *time.Time) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return NewSeen(limit, age, func() time.Time { return now }), &now
}

func TestSeenHoldsAtLeastHalfOfItsLimit(t *testing.T) {
	s, _ := newTestSeen(100, time.Hour)
	row := RowRef{0, "r"}
	for i := range 1000 {
		s.Note(fmt.Sprint("t", i), "scan", []RowRef{row})
		require.LessOrEqual(t, len(s.new.tasks)+len(s.old.tasks), 100)
	}
	for i := 950; i < 1000; i++ {
		got, ok := s.Task(fmt.Sprint("t", i))
		require.True(t, ok, i)
		require.Equal(t, SeenTask{"scan", []RowRef{row}}, got)
	}
	_, ok := s.Task("t0")
	require.False(t, ok)
	require.Contains(t, s.TasksOf(row), "t999")
	require.NotContains(t, s.TasksOf(row), "t0")
}

func TestSeenBoundsTheTasksOfARow(t *testing.T) {
	s, _ := newTestSeen(100_000, time.Hour)
	for i := range maxTasksOfRow + 10 {
		s.Note(fmt.Sprint("t", i), "scan", []RowRef{{0, "r"}})
	}
	require.Len(t, s.TasksOf(RowRef{0, "r"}), maxTasksOfRow)
	require.Empty(t, s.TasksOf(RowRef{1, "r"}), "of another table")
}

// A task is remembered for its age at least, and for twice that at most, whether
// or not others come.
func TestSeenForgets(t *testing.T) {
	const age = time.Hour
	for _, busy := range []bool{false, true} {
		for _, at := range []time.Duration{0, age / 2, age - 1} {
			t.Run(fmt.Sprint("busy ", busy, " at ", at), func(t *testing.T) {
				s, now := newTestSeen(1000, age)
				start := now.Add(at)
				*now = start
				ref := RowRef{0, "r"}
				s.Note("t", "scan", []RowRef{ref})
				for step := time.Duration(0); step <= 3*age; step += age / 4 {
					*now = start.Add(step)
					if busy {
						s.Note("other", "scan", []RowRef{{0, fmt.Sprint(step)}})
					}
					_, known := s.Task("t")
					switch {
					case step <= age:
						require.True(t, known, step)
						require.Equal(t, []string{"t"}, s.TasksOf(ref))
					case step > 2*age:
						require.False(t, known, step)
						require.Empty(t, s.TasksOf(ref))
					}
				}
			})
		}
	}
	t.Run("asked only long after", func(t *testing.T) {
		s, now := newTestSeen(1000, age)
		s.Note("t", "scan", []RowRef{{0, "r"}})
		*now = now.Add(10 * age)
		require.Empty(t, s.TasksOf(RowRef{0, "r"}))
		_, known := s.Task("t")
		require.False(t, known)
	})
	t.Run("asked late, and again", func(t *testing.T) {
		s, now := newTestSeen(1000, age)
		start := *now
		s.Note("t", "scan", []RowRef{{0, "r"}})
		*now = start.Add(2*age - 1)
		require.Len(t, s.TasksOf(RowRef{0, "r"}), 1)
		*now = start.Add(2 * age)
		require.Empty(t, s.TasksOf(RowRef{0, "r"}), "being asked for does not keep it")
	})
	t.Run("noted again long after", func(t *testing.T) {
		s, now := newTestSeen(1000, age)
		s.Note("t", "scan", []RowRef{{0, "r"}})
		*now = now.Add(10 * age)
		s.Note("other", "scan", []RowRef{{0, "r"}})
		require.Equal(t, []string{"other"}, s.TasksOf(RowRef{0, "r"}))
	})
}

func TestSeenTakesWhatMessagesSay(t *testing.T) {
	s, _ := newTestSeen(100, time.Hour)
	const id = "0A1B2C3D-0000-4000-8000-00000000002A"
	s.Add(&Message{ID: id, Name: "scan", Refs: []RowRef{{0, "1"}, {1, "2"}}})
	s.Add(&Message{ID: "none", Name: "scan"})
	got, ok := s.Task(CanonicalID(id))
	require.True(t, ok)
	require.Equal(t, SeenTask{"scan", []RowRef{{0, "1"}, {1, "2"}}}, got)
	_, ok = s.Task("none")
	require.False(t, ok, "a message that names no row")
	require.Equal(t, []string{CanonicalID(id)}, s.TasksOf(RowRef{1, "2"}))

	refs := []RowRef{{0, "mine"}}
	s.Note("t", "scan", refs)
	refs[0].Key = "changed"
	got, _ = s.Task("t")
	require.Equal(t, "mine", got.Refs[0].Key, "what it is given is cloned")
	ids := s.TasksOf(RowRef{0, "mine"})
	ids[0] = "changed"
	require.Equal(t, []string{"t"}, s.TasksOf(RowRef{0, "mine"}), "and so is what it gives")
}

// A task whose message and whose result name other rows is one task of each.
func TestSeenNamesATaskOnce(t *testing.T) {
	s, now := newTestSeen(100, time.Hour)
	a, b := RowRef{0, "a"}, RowRef{0, "b"}
	for range 2 * maxTasksOfRow {
		s.Note("t", "scan", []RowRef{a, b})
		s.Note("t", "scan", []RowRef{a})
		s.Note("t", "scan", []RowRef{a})
	}
	require.Equal(t, []string{"t"}, s.TasksOf(a))
	require.Equal(t, []string{"t"}, s.TasksOf(b))
	s.Note("u", "scan", []RowRef{a})
	require.Equal(t, []string{"t", "u"}, s.TasksOf(a), "it does not fill what is remembered of a row")
	*now = now.Add(time.Hour)
	s.Note("t", "scan", []RowRef{a})
	require.Equal(t, []string{"t", "u"}, s.TasksOf(a), "in both generations")
}

func TestSeenByManyAtOnce(t *testing.T) {
	s := NewSeen(200, time.Minute, time.Now)
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range 2000 {
				id := fmt.Sprint(worker, "-", i)
				s.Add(&Message{ID: id, Name: "scan", Refs: []RowRef{{0, fmt.Sprint(i % 7)}}})
				if got, ok := s.Task(id); ok && got.Name != "scan" {
					t.Errorf("%+v", got)
				}
				s.TasksOf(RowRef{0, "3"})
			}
		})
	}
	all.Wait()
}
