package reconciler

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Seen remembers which rows tasks are of, from their messages: the default result
// of a task does not tell its arguments. It holds the newest ones only, at least
// half of its limit, and none for longer than twice its age.
type Seen struct {
	limit int
	age   time.Duration
	now   func() time.Time

	mu       sync.Mutex
	new, old seenTasks
}

type seenTasks struct {
	since time.Time
	tasks map[string]SeenTask
	rows  map[Subject][]string
}

// SeenTask is what a task's message said.
type SeenTask struct {
	Name string
	Refs []RowRef
}

// maxTasksOfRow bounds what is remembered of one row.
const maxTasksOfRow = 1000

// NewSeen remembers up to limit tasks, each for age at least where there is room.
func NewSeen(limit int, age time.Duration, now func() time.Time) *Seen {
	return &Seen{limit: limit, age: age, now: now, new: newSeenTasks(now())}
}

func newSeenTasks(now time.Time) seenTasks {
	return seenTasks{since: now, tasks: map[string]SeenTask{}, rows: map[Subject][]string{}}
}

// Add remembers a message, if it names rows.
func (s *Seen) Add(m *Message) {
	if len(m.Refs) > 0 {
		s.Note(CanonicalID(m.ID), m.Name, m.Refs)
	}
}

// Note remembers the rows of the task with this canonical id.
func (s *Seen) Note(id, name string, rows []RowRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	had, known := s.new.tasks[id]
	if known && slices.Equal(had.Refs, rows) {
		return
	}
	if len(s.new.tasks) >= s.limit/2 {
		s.old, s.new, known = s.new, newSeenTasks(s.now()), false
	}
	// Cloned: they are parts of the whole message.
	id = strings.Clone(id)
	refs := cloneRefs(rows)
	s.new.tasks[id] = SeenTask{Name: strings.Clone(name), Refs: refs}
	for _, r := range refs {
		row := r.Subject()
		ids := s.new.rows[row]
		if len(ids) < maxTasksOfRow && (!known || !slices.Contains(ids, id)) {
			s.new.rows[row] = append(ids, id)
		}
	}
}

// Task is what is remembered of the task with this canonical id.
func (s *Seen) Task(id string) (SeenTask, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	if t, ok := s.new.tasks[id]; ok {
		return t, true
	}
	t, ok := s.old.tasks[id]
	return t, ok
}

// TasksOf are the ids of the tasks that name the row.
func (s *Seen) TasksOf(row RowRef) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn()
	ids := slices.Clone(s.new.rows[row.Subject()])
	for _, id := range s.old.rows[row.Subject()] {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// turn lets go of what is too old, whether or not anything new comes.
func (s *Seen) turn() {
	switch now := s.now(); {
	case now.Sub(s.new.since) >= 2*s.age:
		s.old, s.new = seenTasks{}, newSeenTasks(now)
	case now.Sub(s.new.since) >= s.age:
		s.old, s.new = s.new, newSeenTasks(s.new.since.Add(s.age))
	}
}
