package celery_test

import (
	"strings"
	"testing"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

func TestKeys(t *testing.T) {
	t.Parallel()
	k := celery.NewKeys("pre_", []reconciler.Binding{
		{Schema: "s", Table: "a", Companions: []string{"task_created:{key}", "no key", "{key}/{key}x"}},
		{Schema: "s", Table: "b", Companions: []string{"b*[{key}]?"}},
		{Schema: "s", Table: "c", Companions: []string{"{key}!"}},
	})
	upper := strings.ToUpper(id1)
	odd := upper[:20] + id1[20:]
	for key, want := range map[string][]reconciler.Look{
		"pre_celery-task-meta-" + id1:    {{Subject: reconciler.TaskSubject(id1)}},
		"pre_celery-task-meta-" + upper:  {{Subject: reconciler.TaskSubject(id1)}},
		"pre_celery-task-meta-" + odd:    {{Subject: reconciler.TaskSubject(id1), Spelling: odd}},
		"pre_celery-task-meta-scan:42":   {{Subject: reconciler.TaskSubject("scan:42")}},
		"pre_celery-task-meta-\x00\xff":  {{Subject: reconciler.TaskSubject("\x00\xff")}},
		"pre_celery-task-meta-":          nil,
		"celery-task-meta-" + id1:        nil,
		"pre_celery-taskset-meta-" + id1: nil,
		"task_created:":                  nil,
		"task_created:7":                 {{Subject: reconciler.RowSubject(0, "7")}},
		"task_created:" + upper:          {{Subject: reconciler.RowSubject(0, id1)}},
		"7/7x":                           {{Subject: reconciler.RowSubject(0, "7")}},
		"7/8x":                           nil,
		"/x":                             nil,
		"no key":                         nil,
		"b*[7]?":                         {{Subject: reconciler.RowSubject(1, "7")}},
		"bx[7]y":                         nil,
		"a!":                             {{Subject: reconciler.RowSubject(2, "a")}},
		"_kombu.binding.celery!":         nil,
		"orphanwatch:undo:a!":            nil,
		"celery-taskset-meta-x!":         nil,
		"":                               nil,
	} {
		got := k.AppendLooks(nil, key)
		if len(got) != len(want) || len(got) == 1 && (got[0].Subject != want[0].Subject || got[0].Spelling != want[0].Spelling) {
			t.Errorf("%q: %+v, want %+v", key, got, want)
		}
	}
	if got := strings.Join(k.Patterns(), " "); got != `pre_celery-task-meta-* task_created:* */*x b\*\[*\]\? *!` {
		t.Errorf("patterns %s", got)
	}
}

// FuzzCompanion: a key made of a row's key is read back as that row's, and
// whatever is read back makes the same key.
func FuzzCompanion(f *testing.F) {
	f.Add("task_created:{key}", id1)
	f.Add("{key}{key}", "aa")
	f.Add("a{key}b{key}a", "b")
	f.Fuzz(func(t *testing.T, pattern, id string) {
		b := reconciler.Binding{Companions: []string{pattern}}
		k := celery.NewKeys("\x00never\x00", []reconciler.Binding{b})
		for _, key := range append(b.CompanionKeys(id), id, pattern) {
			looks := k.AppendLooks(nil, key)
			if len(looks) > 1 {
				t.Fatalf("%q of %q: %+v", key, pattern, looks)
			}
			for _, l := range looks {
				spellings := append(reconciler.Spellings(l.Subject.ID), l.Spelling)
				found := false
				for _, s := range spellings {
					found = found || b.CompanionKeys(s)[0] == key
				}
				if !found {
					t.Errorf("%q of %q was read as %+v", key, pattern, l)
				}
			}
		}
	})
}
