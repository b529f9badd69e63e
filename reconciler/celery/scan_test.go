package celery_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func TestScan(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	want := map[reconciler.Subject]bool{}
	for i := range 5000 {
		l.do("set", fmt.Sprint("other:", i), i)
		l.do("set", fmt.Sprint("celery-task-meta-t", i), i)
		want[reconciler.TaskSubject(fmt.Sprint("t", i))] = true
		if i%10 == 0 {
			l.do("set", fmt.Sprint("task_created:", i), i)
			want[reconciler.RowSubject(0, fmt.Sprint(i))] = true
		}
	}
	l.remove(l.removal(reconciler.TaskSubject("t1")))
	delete(want, reconciler.TaskSubject("t1"))
	got := map[reconciler.Subject]bool{}
	l.ok(l.Scan(t.Context(), func(looks []reconciler.Look) error {
		for _, look := range looks {
			if got[look.Subject] = true; !want[look.Subject] {
				t.Errorf("%v is not there", look.Subject)
			}
		}
		return nil
	}))
	if len(got) != len(want) {
		t.Errorf("%d subjects, want %d", len(got), len(want))
	}
	scanned, total := l.Scanned()
	if n, err := l.CountEstimate(t.Context()); err != nil || total != n*int64(len(l.Keys.Patterns())) || scanned != total {
		t.Errorf("progress %d of %d, want %d (%v)", scanned, total, n, err)
	}
	stop := errors.New("enough")
	if err := l.Scan(t.Context(), func([]reconciler.Look) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want the error of yield", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := l.Scan(ctx, func([]reconciler.Look) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
}

// TestScanTrims: records that have ended leave the set of records.
func TestScanTrims(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	now := time.Now().UnixMilli()
	for i := range 2500 {
		l.do("zadd", "orphanwatch:records", now-48*3600_000, fmt.Sprint("task:old", i))
	}
	l.do("zadd", "orphanwatch:records", now, "task:new")
	l.ok(l.Scan(t.Context(), func([]reconciler.Look) error { return nil }))
	if n := l.do("zcard", "orphanwatch:records"); n != int64(1) {
		t.Errorf("%v records are left, want 1", n)
	}
}

// TestScanPage: whatever comes and goes between two pages, all that stays is met.
func TestScanPage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		l := newLab(t)
		stay := rapid.IntRange(0, 300).Draw(rt, "stay")
		for i := range stay {
			l.do("set", fmt.Sprint("celery-task-meta-s", i), i)
		}
		met := map[string]bool{}
		n := 0
		for cursor, pages := uint64(0), 0; ; pages++ {
			looks, next, err := l.ScanPage(t.Context(), cursor, rapid.IntRange(1, 50).Draw(rt, "count"))
			l.ok(err)
			for _, look := range looks {
				met[look.Subject.ID] = true
			}
			if cursor = next; cursor == 0 {
				break
			}
			if pages > 10_000 {
				rt.Fatal("it does not end")
			}
			for range rapid.IntRange(0, 40).Draw(rt, "come") { // makes the table grow, and be rehashed
				l.do("set", fmt.Sprint("celery-task-meta-x", n), n)
				n++
			}
			for range rapid.IntRange(0, 40).Draw(rt, "go") {
				l.do("del", fmt.Sprint("celery-task-meta-x", rapid.IntRange(0, max(n, 1)).Draw(rt, "which")))
			}
		}
		for i := range stay {
			if !met[fmt.Sprint("s", i)] {
				rt.Errorf("s%d was not met", i)
			}
		}
	})
}
