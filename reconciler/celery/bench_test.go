package celery_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

const benchKeys = 100_000

func (l *lab) fill(n int) (keys []string, looks []reconciler.Look) {
	l.Helper()
	value := `{"status": "SUCCESS", "result": 3, "traceback": null, "children": [], "date_done": "2026-11-23T13:42:32.872616+00:00", "task_id": "a2000000-0000-4000-8000-000000000001"}`
	pipe := l.client.Pipeline()
	for i := range n {
		id := fmt.Sprintf("a2000000-0000-4000-8000-%012d", i)
		keys = append(keys, l.Keys.ResultKey(id))
		looks = append(looks, reconciler.Look{Subject: reconciler.TaskSubject(id)})
		pipe.SetEx(l.Context(), keys[i], value, 24*time.Hour)
		if pipe.Len() == 1000 {
			_, err := pipe.Exec(l.Context())
			l.ok(err)
		}
	}
	_, err := pipe.Exec(l.Context())
	l.ok(err)
	return keys, looks
}

// BenchmarkLookRemove is Look and Remove of 1e5 results in batches of 1000,
// beside bare pipelined UNLINKs of as many. The ratio is of their rates.
func BenchmarkLookRemove(b *testing.B) {
	l := newLab(b)
	var look, remove, bare time.Duration
	record := reconciler.Record{Evidence: reconciler.Deleted, Trigger: reconciler.ByDelete, Table: scans.Name(), LSN: "0/16B3748", XID: 744, CommitTime: time.Now(), TraceID: "0123456789abcdef0123456789abcdef"}
	for b.Loop() {
		l.do("flushall")
		l.epoch, _ = l.ClaimEpoch(b.Context(), 0)
		keys, _ := l.fill(benchKeys)
		began := time.Now()
		for i := 0; i < len(keys); i += 1000 {
			pipe := l.client.Pipeline()
			for _, key := range keys[i : i+1000] {
				pipe.Unlink(b.Context(), key)
			}
			_, err := pipe.Exec(b.Context())
			l.ok(err)
		}
		bare += time.Since(began)
		_, looks := l.fill(benchKeys)
		for i := 0; i < len(looks); i += 1000 {
			began = time.Now()
			found, err := l.Look(b.Context(), looks[i:i+1000])
			l.ok(err)
			look += time.Since(began)
			removals := make([]reconciler.Removal, len(found))
			for j, f := range found {
				removals[j] = reconciler.Removal{Subject: looks[i+j].Subject, Artifacts: f.Artifacts, Record: record}
			}
			began = time.Now()
			for _, r := range l.remove(removals...) {
				if r.Count[reconciler.ResultKey] != 1 {
					b.Fatal(r)
				}
			}
			remove += time.Since(began)
		}
	}
	rate := func(d time.Duration) float64 { return float64(b.N*benchKeys) / d.Seconds() }
	b.ReportMetric(rate(bare), "unlink/s")
	b.ReportMetric(rate(look), "look/s")
	b.ReportMetric(rate(remove), "remove/s")
	b.ReportMetric(rate(look+remove), "both/s")
	b.ReportMetric(rate(look+remove)/rate(bare), "of-unlink")
	b.Logf("memory: %v", l.do("memory", "usage", "orphanwatch:record:task:a2000000-0000-4000-8000-000000000001"))
}
