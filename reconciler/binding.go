package reconciler

import (
	"slices"
	"strings"
)

// MaxBindings is how many bindings one daemon serves; a BindingSet has a bit for each.
const MaxBindings = 64

// Binding says which table holds the rows of a kind of task, and how a task id
// leads to a row of it.
type Binding struct {
	Schema, Table string
	// Key is the column that identifies a row: uuid, text, varchar, int or bigint.
	Key string
	// CeleryID: the task id is the row's key.
	CeleryID bool
	// Columns hold a task id each (match column:C).
	Columns []string
	// Args are positions, from 0, and Kwargs names of arguments of the task that are
	// the row's key (match args:N, kwargs:K). They need Names.
	Args   []int
	Kwargs []string
	// Names are the Celery task names of this binding; empty means any.
	Names []string
	// Exclusive: this place in Redis holds no other tasks than these.
	Exclusive bool
	// Companions are further Redis keys of a row, with {key} for the row's key.
	Companions []string
	// Children are schema.table.column of child rows, which hold the row's key; empty
	// means that they are found from the foreign keys.
	Children []string
}

// Name is the table's qualified name, as it is shown everywhere.
func (b Binding) Name() string { return b.Schema + "." + b.Table }

// HasName tells whether a task of that name can belong to this binding.
func (b Binding) HasName(name string) bool {
	if len(b.Names) == 0 {
		return true
	}
	for _, n := range b.Names {
		if n == name {
			return true
		}
	}
	return false
}

// ByArgument tells whether tasks are bound by their arguments.
func (b Binding) ByArgument() bool { return len(b.Args)+len(b.Kwargs) > 0 }

// CompanionKeys are the Redis keys of the row with that key.
func (b Binding) CompanionKeys(key string) []string {
	keys := make([]string, len(b.Companions))
	for i, c := range b.Companions {
		keys[i] = strings.ReplaceAll(c, "{key}", key)
	}
	return keys
}

// BindingSet is a set of indexes into the configured bindings.
type BindingSet uint64

// Has tells whether binding i is in the set.
func (s BindingSet) Has(i int) bool { return s&(1<<uint(i)) != 0 }

// With is the set with binding i added.
func (s BindingSet) With(i int) BindingSet { return s | 1<<uint(i) }

// Kind is what a Subject names.
type Kind uint8

const (
	// Task is a Celery task; its artifacts are result keys.
	Task Kind = iota
	// Row is a row of a binding; its artifacts are companion keys.
	Row
	// Canary is a probe of a source; it has no artifacts and ends in a no-op.
	Canary
	// TaskMessages are the messages of a task, queued and unacked.
	TaskMessages
	// RowMessages are the messages of all tasks that have a row's key for an argument.
	RowMessages
	// QueueList is a list of the broker, by its key, in which something is new.
	QueueList
)

// OfMessages tells whether the subject's artifacts are messages, which are found
// by a sweep over the broker, and not by their names.
func (k Kind) OfMessages() bool { return k == TaskMessages || k == RowMessages }

// Subject names something to look at: the key of the queue. It carries no truth.
type Subject struct {
	Kind Kind
	// Binding is the index of the row's binding; 0 where Kind is not Row.
	Binding int
	// ID is the canonical task id, the row's key as text, or the canary's source.
	ID string
}

// TaskSubject names the task with that id, in whatever spelling.
func TaskSubject(id string) Subject { return Subject{Kind: Task, ID: CanonicalID(id)} }

// RowSubject names a row of binding i.
func RowSubject(i int, key string) Subject {
	return Subject{Kind: Row, Binding: i, ID: CanonicalID(key)}
}

// Messages names the messages of a task, or of the tasks of a row.
func (s Subject) Messages() Subject {
	switch s.Kind {
	case Task:
		s.Kind = TaskMessages
	case Row:
		s.Kind = RowMessages
	}
	return s
}

// Owner names the task or the row that messages are of, and else the subject itself.
func (s Subject) Owner() Subject {
	switch s.Kind {
	case TaskMessages:
		s.Kind = Task
	case RowMessages:
		s.Kind = Row
	}
	return s
}

// Subject names the row.
func (r RowRef) Subject() Subject { return RowSubject(r.Binding, r.Key) }

// NewRowRef names a row by its key as an argument or the log writes it.
func NewRowRef(binding int, written string) RowRef {
	l := LookFor(RowSubject(binding, written), written)
	if l.Spelling != "" {
		return RowRef{binding, written}
	}
	return RowRef{binding, l.Subject.ID}
}

// Look asks for the row.
func (r RowRef) Look() Look { return LookFor(r.Subject(), r.Key) }

// LookFor asks for what a subject names, whose id was seen written like this.
func LookFor(s Subject, written string) Look {
	l := Look{Subject: s}
	if s.ID != written && !slices.Contains(Spellings(s.ID), written) {
		l.Spelling = strings.Clone(written)
	}
	return l
}

// CanonicalID is the one spelling of an id under which everything of a task is
// merged: lower-case with dashes for what is a UUID in any spelling that
// Python's uuid and str give, any other id as it is.
func CanonicalID(id string) string {
	hex, ok := uuidHex(id)
	if !ok {
		return id
	}
	b := make([]byte, 0, 36)
	for i := 0; i < 32; i++ {
		if i == 8 || i == 12 || i == 16 || i == 20 {
			b = append(b, '-')
		}
		b = append(b, hex[i])
	}
	if string(b) == id {
		return id
	}
	return string(b)
}

// IsUUID tells whether a canonical id is a UUID.
func IsUUID(id string) bool {
	_, ok := uuidHex(id)
	return ok
}

// Spellings are the ways in which producers write the canonical id, the most
// frequent first: str(uuid), uuid.hex, and both in upper case.
func Spellings(id string) []string {
	if !IsUUID(id) {
		return []string{id}
	}
	hex := strings.ReplaceAll(id, "-", "")
	all := [...]string{id, hex, strings.ToUpper(id), strings.ToUpper(hex)}
	out := all[:1]
	for _, s := range all[1:] {
		if s != out[len(out)-1] && s != out[0] && (len(out) < 2 || s != out[1]) {
			out = append(out, s)
		}
	}
	return out
}

// uuidHex gives the 32 lower-case hex digits of a dashed or undashed UUID.
func uuidHex(s string) (digits [32]byte, ok bool) {
	if len(s) != 36 && len(s) != 32 {
		return digits, false
	}
	n := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if len(s) == 36 && (i == 8 || i == 13 || i == 18 || i == 23) {
			if c != '-' {
				return digits, false
			}
			continue
		}
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
		case c >= 'A' && c <= 'F':
			c += 'a' - 'A'
		default:
			return digits, false
		}
		digits[n] = c
		n++
	}
	return digits, n == 32
}
