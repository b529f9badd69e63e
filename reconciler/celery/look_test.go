package celery_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

func TestLookFindsEverySpelling(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	odd := strings.ToUpper(id1[:20]) + id1[20:]
	spellings := append(reconciler.Spellings(id1), odd)
	for _, id := range spellings {
		l.do("set", "celery-task-meta-"+id, `{"name": "scan.`+id+`"}`)
		l.do("sadd", "task_created:"+id, "x")
	}
	found, err := l.Look(t.Context(), []reconciler.Look{
		{Subject: reconciler.TaskSubject(id1), Spelling: odd},
		{Subject: reconciler.RowSubject(0, id1), Spelling: odd},
		{Subject: reconciler.TaskSubject(id2)},
		{Subject: reconciler.Subject{Kind: reconciler.Canary, ID: "redis"}},
	})
	l.ok(err)
	for i, prefix := range []string{"celery-task-meta-", "task_created:"} {
		var got []string
		for _, a := range found[i].Artifacts {
			id := strings.TrimPrefix(a.Key, prefix)
			got = append(got, id)
			if i == 0 && (a.Name != "scan."+id || a.Kind != reconciler.ResultKey) {
				t.Errorf("%+v", a)
			}
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(spellings))
		if !slices.Equal(got, want) {
			t.Errorf("%s%q, want %q", prefix, got, want)
		}
	}
	if len(found[2].Artifacts)+len(found[3].Artifacts) > 0 {
		t.Errorf("%+v", found[2:])
	}
	if _, err := l.Look(t.Context(), []reconciler.Look{{Subject: reconciler.RowSubject(1, id1)}}); err == nil {
		t.Error("a binding that is not there is looked up")
	}
}

// TestLargeValues: values of 1 MB, and more of them than one call may answer. No
// call of ours takes over 5 ms by the server's own clock: in one of a few rounds,
// since that clock also counts when the machine runs something else. Names behind
// a large result are read.
func TestLargeValues(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(o *celery.Options) {
		b := scans
		b.Names = []string{"scan.run"}
		o.Bindings = []reconciler.Binding{b}
		o.Quarantine = 0
	})
	l.do("config", "set", "slowlog-log-slower-than", 0, "slowlog-max-len", 10000)
	longest := time.Hour
	for round := 0; round < 10 && longest > 5*time.Millisecond; round++ {
		longest = l.largeRound()
		t.Logf("longest call %v", longest)
	}
	if longest == 0 || longest > 5*time.Millisecond {
		t.Errorf("the longest call took %v", longest)
	}
}

// largeRound sets, finds and removes values of 1 MB and of 16 kB, and tells how
// long the longest call took.
func (l *lab) largeRound() (longest time.Duration) {
	l.Helper()
	const n = 16
	body := strings.Repeat("x", 1<<20)
	var looks []reconciler.Look
	for i := range n {
		id := fmt.Sprint("big", i)
		l.do("set", "celery-task-meta-"+id, `{"status": "SUCCESS", "result": "`+body+`", "name": "scan.`+fmt.Sprint(i)+`"}`)
		looks = append(looks, reconciler.Look{Subject: reconciler.TaskSubject(id)})
	}
	for i := range 300 {
		id := fmt.Sprint("medium", i)
		l.do("set", "celery-task-meta-"+id, fmt.Sprint(i)+body[:reconciler.StampWhole-10])
		looks = append(looks, reconciler.Look{Subject: reconciler.TaskSubject(id)})
	}
	l.do("slowlog", "reset")
	found, err := l.Look(l.Context(), looks)
	l.ok(err)
	var removals []reconciler.Removal
	for i, f := range found {
		if len(f.Artifacts) != 1 {
			l.Fatalf("%v: %d artifacts", looks[i], len(f.Artifacts))
		}
		a := f.Artifacts[0]
		if i < n && (a.Name != fmt.Sprint("scan.", i) || a.Stamp.Len < 1<<20 || len(a.Stamp.Head)+len(a.Stamp.Tail) != 2*reconciler.StampEdge) {
			l.Fatalf("%v: name %q, stamp of %d", looks[i], a.Name, a.Stamp.Len)
		}
		removals = append(removals, reconciler.Removal{Subject: looks[i].Subject, Artifacts: f.Artifacts})
	}
	// One differs in its last byte only.
	l.do("setrange", "celery-task-meta-big0", removals[0].Artifacts[0].Stamp.Len-1, "]")
	for i, r := range l.remove(removals...) {
		if want := reconciler.Removed; i > 0 && r.Status != want || i == 0 && r.Status != reconciler.Changed {
			l.Fatalf("%d: %+v", i, r)
		}
	}
	slow, err := l.client.SlowLogGet(l.Context(), -1).Result()
	l.ok(err)
	for _, entry := range slow {
		if name := strings.ToLower(entry.Args[0]); name == "evalsha" || name == "getrange" {
			longest = max(longest, entry.Duration)
		}
	}
	return longest
}
