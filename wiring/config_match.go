package wiring

import (
	"strconv"
	"strings"
)

// MatchKind is how a task id leads to a row.
type MatchKind string

// The kinds of match.
const (
	// MatchCeleryID: the task id is the row's key.
	MatchCeleryID MatchKind = "celery_id"
	// MatchColumn: a column of the row holds the task id.
	MatchColumn MatchKind = "column"
	// MatchArgs: a positional argument of the task is the row's key.
	MatchArgs MatchKind = "args"
	// MatchKwargs: a keyword argument of the task is the row's key.
	MatchKwargs MatchKind = "kwargs"
)

// Match is one way in which a task id leads to a row.
type Match struct {
	Kind MatchKind
	// Name is the column (MatchColumn) or the keyword argument (MatchKwargs).
	Name string
	// Position is the argument's, from 0 (MatchArgs).
	Position int
}

// String is the match as it is written in the configuration.
func (m Match) String() string {
	switch m.Kind {
	case MatchColumn, MatchKwargs:
		return string(m.Kind) + ":" + m.Name
	case MatchArgs:
		return string(m.Kind) + ":" + strconv.Itoa(m.Position)
	default:
		return string(m.Kind)
	}
}

// ParseMatch reads celery_id, column:C, args:N or kwargs:K; ok tells whether
// text is one of them. Load has checked every match of a Config.
func ParseMatch(text string) (m Match, ok bool) {
	kind, arg, hasArg := strings.Cut(text, ":")
	m.Kind = MatchKind(kind)
	switch m.Kind {
	case MatchCeleryID:
		return m, !hasArg
	case MatchColumn:
		m.Name = arg
		return m, identifier(arg)
	case MatchKwargs:
		m.Name = arg
		return m, arg != "" && strings.TrimSpace(arg) == arg
	case MatchArgs:
		n, err := strconv.Atoi(arg)
		m.Position = n
		return m, err == nil && n >= 0 && n < 1000 && strconv.Itoa(n) == arg
	default:
		return m, false
	}
}

// identifier tells whether name can be the name of a schema, table or column,
// as the catalog holds it.
func identifier(name string) bool {
	return name != "" && len(name) <= 63 && !strings.ContainsAny(name, "\x00\".") && strings.TrimSpace(name) == name
}
