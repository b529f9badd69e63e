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
)

// TestMillionExpired removes what is too old of 1,000,000 results of 169 bytes:
//
//	go test ./reconciler/celery -run TestMillionExpired -million -v
func TestMillionExpired(t *testing.T) {
	if !*million {
		return
	}
	for _, tt := range []struct {
		name    string
		percent int
		awaited bool
	}{{"tenth", 10, true}, {"tenth in the background", 10, false}, {"all", 100, true}, {"all in the background", 100, false}} {
		t.Run(tt.name, func(t *testing.T) {
			newLab(t).millionExpired(tt.percent, tt.awaited)
		})
	}
}

func (l *lab) millionExpired(percent int, awaited bool) {
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
	memory := l.usedMemory()
	began := time.Now()
	for cursor := uint64(0); ; {
		_, next, err := l.client.Scan(ctx, cursor, "celery-task-meta-*", 1000).Result()
		l.ok(err)
		if cursor = next; cursor == 0 {
			break
		}
	}
	floor := time.Since(began)
	l.do("config", "set", "slowlog-log-slower-than", 500, "slowlog-max-len", 100_000)
	l.do("slowlog", "reset")
	l.do("config", "resetstat")
	var heap uint64
	steps := 0
	began = time.Now()
	report, err := l.RemoveExpired(ctx, l.epoch, reconciler.Expiry{
		Awaited: awaited, Before: now.Add(-24 * time.Hour), TTL: 24 * time.Hour, Record: reconciler.Record{Evidence: reconciler.Expired, Trigger: reconciler.ByCLI},
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
	l.Logf("wall %v, %.1f × SCAN alone (%v), %d of %d removed, heap in use %d MiB at most, RSS %s at most", wall.Round(time.Millisecond), wall.Seconds()/floor.Seconds(), floor.Round(time.Millisecond), report.Cleaned, total, heap>>20, peakRSS())
	l.Logf("Redis used %d MiB before and %d MiB after it", memory>>20, l.usedMemory()>>20)
	l.logCalls()
}

func (l *lab) usedMemory() (bytes int64) {
	info, err := l.client.InfoMap(l.Context(), "memory").Result()
	l.ok(err)
	_, err = fmt.Sscan(info["Memory"]["used_memory"], &bytes)
	l.ok(err)
	return bytes
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
