package celery_test

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// TestMillionExpired removes what is too old of 1,000,000 results of 169 bytes:
//
//	go test ./reconciler/celery -run TestMillionExpired -million -v
func TestMillionExpired(t *testing.T) {
	if !*million {
		return
	}
	for _, tt := range []struct {
		percent int
		share   float64
	}{{10, 0.5}, {10, 1}, {100, 0.5}, {100, 1}} {
		t.Run(fmt.Sprintf("%d %%, share %v", tt.percent, tt.share), func(t *testing.T) {
			l := newLab(t, func(o *celery.Options) { o.ScanShare = tt.share })
			l.millionExpired(tt.percent)
		})
	}
}

func (l *lab) millionExpired(percent int) {
	const total = 1_000_000
	ctx := l.Context()
	now := time.Now().UTC()
	pipe := l.client.Pipeline()
	for i := range total {
		id := fmt.Sprintf("a2000000-0000-4000-8000-%012d", i)
		done := now.Add(-time.Duration(i%23) * time.Hour)
		if i%100 < percent {
			done = done.Add(-25 * time.Hour)
		}
		value := `{"status": "SUCCESS", "result": 3, "traceback": null, "children": [], "date_done": "` + done.Format("2006-01-02T15:04:05.000000-07:00") + `", "task_id": "` + id + `"}`
		pipe.SetEx(ctx, l.Keys.ResultKey(id), value, 24*time.Hour)
		if pipe.Len() == 1000 {
			_, err := pipe.Exec(ctx)
			l.ok(err)
		}
	}
	l.do("config", "set", "slowlog-log-slower-than", 500, "slowlog-max-len", 100_000)
	l.do("slowlog", "reset")
	l.do("config", "resetstat")
	var heap uint64
	steps := 0
	began := time.Now()
	report, err := l.RemoveExpired(ctx, l.epoch, reconciler.Expiry{
		Before: now.Add(-24 * time.Hour), TTL: 24 * time.Hour, Record: reconciler.Record{Evidence: reconciler.Expired, Trigger: reconciler.ByCLI},
		Progress: func(reconciler.Progress) {
			if steps++; steps%50 == 0 {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				heap = max(heap, m.HeapInuse)
			}
		},
	})
	wall := time.Since(began)
	l.ok(err)
	if want := int64(total / 100 * percent); report.Cleaned != want || report.Changed+report.Held+report.Undated > 0 {
		l.Errorf("%+v, want %d cleaned", report, want)
	}
	l.Logf("wall %v, %d of %d removed, heap in use %d MiB at most, RSS %s at most", wall.Round(time.Millisecond), report.Cleaned, total, heap>>20, peakRSS())
	l.logCalls()
}

// logCalls tells of the server's time by command, and of the longest calls.
func (l *lab) logCalls() {
	slow, err := l.client.SlowLogGet(l.Context(), 100_000).Result()
	l.ok(err)
	slices.SortFunc(slow, func(x, y redis.SlowLog) int { return int(y.Duration - x.Duration) })
	over := 0
	for _, e := range slow {
		if e.Duration > 5*time.Millisecond {
			over++
		}
	}
	if len(slow) > 0 {
		l.Logf("%d calls over 0.5 ms, %d over 5 ms, the longest: %v %.60v", len(slow), over, slow[0].Duration, slow[0].Args)
	}
	stats, err := l.client.Info(l.Context(), "commandstats").Result()
	l.ok(err)
	for line := range strings.Lines(stats) {
		if strings.Contains(line, "evalsha:") || strings.Contains(line, "_getrange:") || strings.Contains(line, "_scan:") {
			l.Log("  ", strings.TrimSpace(line))
		}
	}
}

// peakRSS is the most memory that this process has had.
func peakRSS() string {
	status, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}
