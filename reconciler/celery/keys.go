package celery

import (
	"strings"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Own is the prefix of every key of ours.
const Own = "orphanwatch:"

const (
	controlKey   = Own + "control"
	recordPrefix = Own + "record:"
	recordsKey   = Own + "records"
	undoPrefix   = Own + "undo:"
	statusPrefix = Own + "status:"
	instancesKey = Own + "instances"
	// messagesPrefix stands before a record's id, in the broker's database.
	messagesPrefix = Own + "messages:"

	// resultPrefix is celery.backends.base.KeyValueStoreBackend.task_keyprefix.
	resultPrefix = "celery-task-meta-"

	rowKey = "{key}"
)

// never are the prefixes of keys that no companion pattern reaches: our own, the
// exchanges' bindings and the saved groups (design, R10).
var never = []string{Own, "_kombu.binding.", "celery-taskset-meta-"}

// Keys names the artifacts of tasks and rows. It does no I/O and is safe for
// concurrent use.
type Keys struct {
	prefix     string
	bindings   []reconciler.Binding
	companions []companion
}

// companion is a pattern such as "task_created:{key}", cut at its {key}s.
type companion struct {
	binding int
	pattern string
	parts   []string
}

// NewKeys takes the prefix of result keys as it stands in Redis: what Celery
// makes of the backend's global_keyprefix, with its separator (facts, 1.1).
// A companion pattern without {key} names no row and is left out.
func NewKeys(resultKeyPrefix string, bindings []reconciler.Binding) *Keys {
	k := &Keys{prefix: resultKeyPrefix + resultPrefix, bindings: bindings}
	for i, b := range bindings {
		for _, p := range b.Companions {
			if parts := strings.Split(p, rowKey); len(parts) > 1 {
				k.companions = append(k.companions, companion{i, p, parts})
			}
		}
	}
	return k
}

// ResultKey is the key of the task's result; id is taken as it is written.
func (k *Keys) ResultKey(id string) string { return k.prefix + id }

// ResultID is the task id, as written, that a result key is of.
func (k *Keys) ResultID(key string) (id string, ok bool) {
	id, ok = strings.CutPrefix(key, k.prefix)
	return id, ok && id != ""
}

// AppendLooks appends what a key is an artifact of: nothing for a foreign key,
// one task, or one row for each companion pattern that it matches.
func (k *Keys) AppendLooks(to []reconciler.Look, key string) []reconciler.Look {
	if id, ok := k.ResultID(key); ok {
		to = append(to, reconciler.LookFor(reconciler.TaskSubject(id), id))
	}
	for _, c := range k.companions {
		if id, ok := c.match(key); ok {
			to = append(to, reconciler.LookFor(reconciler.RowSubject(c.binding, id), id))
		}
	}
	return to
}

// isCompanion tells whether some companion pattern is this key's too.
func (k *Keys) isCompanion(key string) bool {
	for _, c := range k.companions {
		if _, ok := c.match(key); ok {
			return true
		}
	}
	return false
}

// Patterns are the globs under which every artifact is found, the results' first.
func (k *Keys) Patterns() []string {
	out := []string{escapeGlob(k.prefix) + "*"}
	for _, c := range k.companions {
		parts := make([]string, len(c.parts))
		for i, p := range c.parts {
			parts[i] = escapeGlob(p)
		}
		out = append(out, strings.Join(parts, "*"))
	}
	return out
}

// candidates are the keys of a subject, with what each would be and the number of
// its spelling, the most frequent first.
func (k *Keys) candidates(l reconciler.Look, yield func(kind reconciler.ArtifactKind, spelling int, key string)) {
	spellings := reconciler.Spellings(l.Subject.ID)
	if l.Spelling != "" && !has(spellings, l.Spelling) {
		spellings = append(spellings, l.Spelling)
	}
	for n, id := range spellings {
		switch l.Subject.Kind {
		case reconciler.Task:
			yield(reconciler.ResultKey, n, k.ResultKey(id))
		case reconciler.Row:
			for _, c := range k.companions {
				if key := strings.Join(c.parts, id); c.binding == l.Subject.Binding && id != "" && reachable(key) {
					yield(reconciler.CompanionKey, n, key)
				}
			}
		}
	}
}

// recordID names a subject's record; the table's name keeps it stable when the
// configuration's order changes.
func (k *Keys) recordID(s reconciler.Subject) string {
	if s.Kind == reconciler.Row {
		return "row:" + k.bindings[s.Binding].Name() + ":" + s.ID
	}
	return "task:" + s.ID
}

// match finds the row key in a key. Where {key} stands more than once, each must
// be the same.
func (c companion) match(key string) (string, bool) {
	fixed := len(c.pattern) - len(rowKey)*(len(c.parts)-1)
	places := len(c.parts) - 1
	n := (len(key) - fixed) / places
	if n < 1 || fixed+n*places != len(key) || !reachable(key) {
		return "", false
	}
	at := len(c.parts[0])
	id := key[at : at+n]
	return id, strings.Join(c.parts, id) == key
}

func reachable(key string) bool {
	for _, p := range never {
		if strings.HasPrefix(key, p) {
			return false
		}
	}
	return true
}

func has(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)

// escapeGlob makes a text match only itself in MATCH and PSUBSCRIBE.
func escapeGlob(s string) string { return globEscaper.Replace(s) }
