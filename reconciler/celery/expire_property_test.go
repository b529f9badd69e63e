package celery_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// TestExpiredProperty: whatever the dates and spellings, what is removed ended before
// the limit, and all of that is.
func TestExpiredProperty(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	rapid.Check(t, func(rt *rapid.T) {
		l.do("flushall")
		l.epoch, _ = l.ClaimEpoch(t.Context(), 0)
		expired := map[string]bool{}
		for i := range rapid.IntRange(1, 120).Draw(rt, "n") {
			done := limit.Add(time.Duration(rapid.Int64Range(-3, 3).Draw(rt, "µs")) * time.Microsecond)
			if rapid.Bool().Draw(rt, "far") {
				done = limit.Add(time.Duration(rapid.Int64Range(-1e6, 1e6).Draw(rt, "s")) * time.Second)
			}
			spelling := rapid.SampledFrom([]string{"", "+00:00", "Z", "offset", "none"}).Draw(rt, "spelling")
			layout, suffix := "2006-01-02T15:04:05.999999", spelling
			switch spelling {
			case "offset":
				done = done.In(time.FixedZone("", 900*rapid.IntRange(-56, 56).Draw(rt, "zone")))
				suffix = done.Format("-07:00")
			case "none":
				suffix = "?"
			}
			id := fmt.Sprint("t", i)
			l.do("set", l.Keys.ResultKey(id), resultOf(id, done.Format(layout)+suffix))
			expired[id] = spelling != "none" && done.Before(limit)
		}
		report := l.expire()
		n := 0
		for id, want := range expired {
			if want {
				n++
			}
			if gone := l.do("exists", l.Keys.ResultKey(id)) == int64(0); gone != want {
				rt.Fatalf("%s: gone %v, want %v", id, gone, want)
			}
		}
		if int(report.Cleaned) != n || int(report.Scanned) != len(expired) {
			rt.Fatalf("%+v, want %d", report, n)
		}
	})
}

// TestExpiredShortCalls: with values of up to 16 kB, which are compared whole, no call
// takes over 5 ms by the server's own clock, in one of a few rounds.
func TestExpiredShortCalls(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(o *celery.Options) { o.ScanShare = 1 })
	l.do("config", "set", "slowlog-log-slower-than", 0, "slowlog-max-len", 10_000)
	body := strings.Repeat("x", reconciler.StampWhole-200)
	longest := time.Hour
	for round := 0; round < 10 && longest > 5*time.Millisecond; round++ {
		for i := range 600 {
			date := oldDate
			if i%2 == 0 {
				date = "null"
			}
			id := fmt.Sprint(round, "-", i)
			l.do("set", l.Keys.ResultKey(id), strings.Replace(resultOf(id, date), "3", `"`+body+`"`, 1))
		}
		l.do("slowlog", "reset")
		l.wantReport(l.expire(), reconciler.ExpiredReport{Cleaned: 300, Undated: int64(300 * (round + 1)), TTLSet: 300, Scanned: int64(600 + 300*round)})
		slow, err := l.client.SlowLogGet(t.Context(), -1).Result()
		l.ok(err)
		longest = 0
		for _, entry := range slow {
			longest = max(longest, entry.Duration)
		}
		t.Logf("longest call %v", longest)
	}
	if longest == 0 || longest > 5*time.Millisecond {
		t.Errorf("the longest call took %v", longest)
	}
}
