package postgres_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// byArgs is a binding whose rows are named by an argument.
func byArgs(tableName string) reconciler.Binding {
	return reconciler.Binding{Schema: "public", Table: tableName, Key: "id", Args: []int{0}, Names: []string{"scan"}}
}

func refs(id string, rows ...reconciler.RowRef) reconciler.Look {
	return reconciler.Look{Subject: reconciler.TaskSubject(id), Refs: rows}
}

// sawArgued is saw, and then the argued.
func sawArgued(s reconciler.RowState) string { return fmt.Sprintf("%s/%b", saw(s), s.Argued) }

// TestLookRefs: a row that an argument names is found by the key alone, in every
// type; what the type cannot hold is no candidate, so that nothing says it is gone.
func TestLookRefs(t *testing.T) {
	t.Parallel()
	url, _ := database(t,
		`CREATE TABLE u (id uuid PRIMARY KEY)`, `CREATE TABLE i (id int PRIMARY KEY)`, `CREATE TABLE b (id bigint PRIMARY KEY)`,
		`CREATE TABLE x (id text PRIMARY KEY)`, `CREATE TABLE v (id varchar(4) PRIMARY KEY)`,
		`INSERT INTO u VALUES ('`+uuid1+`')`, `INSERT INTO i VALUES (7)`, `INSERT INTO b VALUES (9223372036854775807)`,
		`INSERT INTO x VALUES ('job-1'), ('7'), ('`+strings.ToUpper(uuid1)+`')`, `INSERT INTO v VALUES ('abcd')`)
	for _, tt := range []struct{ table, key, want string }{
		{"u", uuid1, "E1/1/1"},
		{"u", strings.ToUpper(uuid1), "E1/1/1"},
		{"u", strings.ReplaceAll(uuid1, "-", ""), "E1/1/1"},
		{"u", uuid2, "-1/1/1"},
		{"u", "7", "-0/0/0"},
		{"u", "", "-0/0/0"},
		{"i", "7", "E1/1/1"},
		{"i", "8", "-1/1/1"},
		{"i", "07", "-0/0/0"},
		{"i", "2147483648", "-0/0/0"},
		{"i", uuid1, "-0/0/0"},
		{"b", "9223372036854775807", "E1/1/1"},
		{"b", "9223372036854775808", "-0/0/0"},
		{"x", "job-1", "E1/1/1"},
		{"x", "7", "E1/1/1"},
		{"x", uuid1, "E1/1/1"},
		{"x", "job-2", "-1/1/1"},
		{"x", "a\x00", "-0/0/0"},
		{"v", "abcd", "E1/1/1"},
		{"v", "abcde", "-0/0/0"},
	} {
		t.Run(fmt.Sprintf("%s %q", tt.table, tt.key), func(t *testing.T) {
			s := open(t, url, byArgs(tt.table))
			if got := sawArgued(lookOne(t, s, refs("any task", reconciler.RowRef{Key: tt.key}))); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestLookRefsOfSeveralBindings: a task lives by any of its rows, and by its id; an
// id is no key where only arguments lead to rows.
func TestLookRefsOfSeveralBindings(t *testing.T) {
	t.Parallel()
	url, _ := database(t,
		`CREATE TABLE u (id uuid PRIMARY KEY, task text)`, `CREATE TABLE i (id int PRIMARY KEY)`, `CREATE TABLE x (id text PRIMARY KEY)`,
		`INSERT INTO u VALUES ('`+uuid1+`', 'in a column')`, `INSERT INTO i VALUES (7)`, `INSERT INTO x VALUES ('job-1'), ('7')`)
	byID := byKey("u")
	byID.Columns = []string{"task"}
	s := open(t, url, byID, byArgs("i"), byArgs("x"))
	ref := func(b int, key string) reconciler.RowRef { return reconciler.RowRef{Binding: b, Key: key} }
	cases := []struct {
		look reconciler.Look
		want string
	}{
		{refs(uuid1), "E1/1/0"},
		{refs(uuid2), "-1/1/0"},
		{refs("in a column"), "E1/0/0"},
		{refs("7"), "-1/0/0"},     // a key of i and x, but their tasks are not named so
		{refs("job-1"), "-1/0/0"}, // the text column task can hold it
		{refs(uuid2, ref(1, "7")), "E11/11/10"},
		{refs(uuid2, ref(1, "8")), "-11/11/10"},
		{refs(uuid2, ref(1, "8"), ref(2, "job-1")), "E111/111/110"},
		{refs(uuid2, ref(1, "job-1"), ref(2, "none")), "-101/101/100"},
		{refs(uuid2, ref(1, "8"), ref(1, "7")), "E11/11/10"},
		{refs(uuid1, ref(1, "8")), "E11/11/10"},
		{refs("in a column", ref(1, "8")), "E11/10/10"},
		{refs("x", ref(0, uuid1)), "E1/1/1"},
		{refs("x", ref(2, "7")), "E101/100/100"},
		{refs("x", ref(3, "7"), ref(-1, "7")), "-1/0/0"}, // no such binding
		{reconciler.Look{Subject: reconciler.RowSubject(1, "8"), Refs: []reconciler.RowRef{ref(2, "job-1")}}, "E110/110/100"},
	}
	looks := make([]reconciler.Look, len(cases))
	for i, c := range cases {
		looks[i] = c.look
	}
	answer, err := s.Look(t.Context(), looks)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		if got := sawArgued(answer.States[i]); got != c.want {
			t.Errorf("%+v: %s, want %s", c.look, got, c.want)
		}
	}
}
