package celery_test

import (
	"fmt"
	"testing"

	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// fill makes a list of n elements: tombstones where ours says so, else messages.
func (l *brokerLab) fill(n int, ours func(i int) bool) (tombstones int64) {
	l.Helper()
	all := make([]any, n)
	for i := range all {
		if all[i] = envelopeOf(fmt.Sprint("t", i)); ours(i) {
			all[i] = celery.Tombstone
			tombstones++
		}
	}
	l.ok(l.client.Del(l.Context(), "celery").Err())
	l.ok(l.client.RPush(l.Context(), "celery", all...).Err())
	return tombstones
}

// TestSweepCountsTombstones: each once, wherever windows end.
func TestSweepCountsTombstones(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	for name, ours := range map[string]func(int) bool{
		"every second":  func(i int) bool { return i%2 == 1 },
		"nearly all":    func(i int) bool { return i%16 != 0 },
		"a long run":    func(i int) bool { return i >= 300 && i < 2400 },
		"all":           func(int) bool { return true },
		"all but first": func(i int) bool { return i > 0 },
		"some":          func(i int) bool { return i%7 < 3 },
	} {
		want := l.fill(3000, ours)
		if got := len(l.sweep()); got != 3000-int(want) || l.Tombstones() != want || l.Unreadable() != 0 {
			t.Errorf("%s: %d messages, %d tombstones, %d unreadable; want %d tombstones", name, got, l.Tombstones(), l.Unreadable(), want)
		}
	}
}

// TestPurgeNearTail: of a long list only what workers pop next.
func TestPurgeNearTail(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	const n = 9000
	l.fill(n, func(i int) bool { return i == 10 || i == 4990 || i == 5010 || i == n-1 })
	l.sweep()
	l.ok(l.PurgeTombstones(t.Context()))
	for i, want := range map[int64]bool{10: true, 4990: true, 5010: false} {
		if got := l.client.LIndex(t.Context(), "celery", i).Val() == celery.Tombstone; got != want {
			t.Errorf("a tombstone at %d: %v", i, got)
		}
	}
	if left := l.client.LLen(t.Context(), "celery").Val(); left != n-2 || l.Tombstones() != 2 {
		t.Errorf("%d elements, %d tombstones", left, l.Tombstones())
	}
}
