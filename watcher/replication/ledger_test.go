package replication

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// modelCommit is a commit as the model knows it: end is 0 while it is open.
type modelCommit struct {
	c    *commit
	end  reconciler.LSN
	left int
}

// TestLedger drives random schedules against the definition: the confirmed position
// is the end of the newest commit before which nothing is unfinished.
func TestLedger(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const start = 100
		progress := 0
		l := newLedger(start, func() { progress++ })
		pos, last := reconciler.LSN(start), reconciler.LSN(start)
		var all []*modelCommit
		var open *modelCommit
		floor := reconciler.LSN(start) // by Release and Advance

		check := func() {
			want := floor
			unfinished := 0
			blocked := false
			for _, m := range all {
				if m.left > 0 || m.end == 0 {
					unfinished++
					blocked = true
				} else if !blocked {
					want = max(want, m.end)
				}
			}
			got := l.Confirmed()
			if got != want || got < last || got == 0 {
				t.Fatalf("confirmed %d, want %d, before %d", got, want, last)
			}
			if (got > last) != (progress > 0) {
				t.Fatalf("moved %d to %d, progress called %d times", last, got, progress)
			}
			progress, last = 0, got
			held := 0
			for c := l.first; c != nil; c = c.next {
				held++
				if c.next == nil && l.last != c {
					t.Fatalf("the list's end is lost")
				}
			}
			if held != unfinished {
				t.Fatalf("holds %d commits, %d are unfinished", held, unfinished)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				if open == nil {
					open = &modelCommit{c: l.Begin()}
					all = append(all, open)
				}
			},
			"add": func(t *rapid.T) {
				if open != nil {
					open.c.Add()
					open.left++
				}
			},
			"end": func(t *rapid.T) {
				if open != nil {
					pos += reconciler.LSN(rapid.IntRange(1, 5).Draw(t, "size"))
					open.end = pos
					l.End(open.c, pos)
					open = nil
				}
			},
			"finish": func(t *rapid.T) {
				var busy []*modelCommit
				for _, m := range all {
					if m.left > 0 {
						busy = append(busy, m)
					}
				}
				if len(busy) > 0 {
					m := rapid.SampledFrom(busy).Draw(t, "commit")
					m.left--
					m.c.done()
				}
			},
			"keepalive": func(t *rapid.T) {
				pos++
				idle := open == nil
				for _, m := range all {
					idle = idle && m.left == 0
				}
				if idle {
					floor = pos
				}
				l.Advance(pos)
			},
			"release": func(t *rapid.T) {
				l.Release()
				var kept []*modelCommit
				for _, m := range all {
					if m.end == 0 {
						kept = append(kept, m)
					} else {
						floor = max(floor, m.end)
						for ; m.left > 0; m.left-- { // late ones must do nothing
							m.c.done()
						}
					}
				}
				all = kept
			},
			"": func(*rapid.T) { check() },
		})
	})
}

// TestLedgerStaysSmall: a million finished commits behind one that is not.
func TestLedgerStaysSmall(t *testing.T) {
	l := newLedger(1, func() {})
	first := l.Begin()
	first.Add()
	l.End(first, 2)
	for i := range reconciler.LSN(1000) {
		l.End(l.Begin(), i+3)
	}
	require.Same(t, l.first, l.last)
	require.EqualValues(t, 1, l.Confirmed())
	first.done()
	require.EqualValues(t, 1002, l.Confirmed())
	require.Nil(t, l.first)
}
