package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// asCommand makes the test binary the command, so that its memory can be measured.
const asCommand = "TEST_AS_COMMAND"

var measure = flag.Bool("measure", false, "let TestMeasure measure")

// TestMeasure measures commands, as processes of their own, over a million results of
// which a tenth has no row:
//
//	go test ./cmd/orphanwatch -run TestMeasure -measure -v
func TestMeasure(t *testing.T) {
	if !*measure {
		return
	}
	const million = 1_000_000
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.exec(fmt.Sprintf("INSERT INTO scan_tasks SELECT md5(i::text)::uuid FROM generate_series(1, %d) i", million*9/10))
	s.exec("ANALYZE scan_tasks")
	s.fill(million)
	for _, args := range []string{"status", "tasks --orphaned -o json", "tasks -o json", "cleanup-orphaned --dry-run", "cleanup-orphaned --yes", "cleanup-expired --dry-run", "cleanup-expired --yes", "status"} {
		s.measure(strings.Fields(args)...)
	}
}

// fill sets n results as Celery writes them, every other one of them two days old.
func (s *site) fill(n int) {
	s.tb.Helper()
	const script = `
for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local h = redis.call('HGET', KEYS[1], i)
  local date = ARGV[3 + i % 2]
  redis.call('SETEX', 'celery-task-meta-' .. h, 86400, '{"status": "SUCCESS", "result": {"hosts": [' .. i .. '], "text": "' .. string.rep('x', 100) .. '"}, "traceback": null, "children": [], "date_done": "' .. date .. '", "task_id": "' .. h .. '"}')
end
return 1`
	run := redis.NewScript(script)
	conn := s.connect()
	old, fresh := time.Now().Add(-48*time.Hour).UTC(), time.Now().UTC()
	const layout = "2006-01-02T15:04:05.000000+00:00"
	const page = 1000
	for from := 1; from <= n; from += page {
		var ids []string
		if err := conn.QueryRow(s.tb.Context(), "SELECT array_agg(md5(i::text)::uuid::text ORDER BY i) FROM generate_series($1::int, $2::int) i", from, from+page-1).Scan(&ids); err != nil {
			s.tb.Fatal(err)
		}
		fields := make([]any, 0, 2*page)
		for i, id := range ids {
			fields = append(fields, from+i, id)
		}
		pipe := s.client.Pipeline()
		pipe.Del(s.tb.Context(), "ids")
		pipe.HSet(s.tb.Context(), "ids", fields...)
		run.Eval(s.tb.Context(), pipe, []string{"ids"}, from, from+page-1, old.Format(layout), fresh.Format(layout))
		pipe.Del(s.tb.Context(), "ids")
		if _, err := pipe.Exec(s.tb.Context()); err != nil {
			s.tb.Fatal(err)
		}
	}
}

// measure runs a command as a process, and tells its time and peak memory.
func (s *site) measure(args ...string) {
	s.tb.Helper()
	cmd := exec.CommandContext(s.tb.Context(), os.Args[0], args...)
	cmd.Env = append(append([]string{}, s.environ...), asCommand+"=1")
	var errs strings.Builder
	var out counter
	cmd.Stdout, cmd.Stderr = &out, &errs
	s.client.ConfigResetStat(s.tb.Context())
	s.client.SlowLogReset(s.tb.Context())
	s.client.ConfigSet(s.tb.Context(), "slowlog-log-slower-than", "1000")
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	var longest time.Duration
	var what string
	slow, _ := s.client.SlowLogGet(s.tb.Context(), 1000).Result()
	for _, call := range slow {
		if call.Duration > longest {
			longest, what = call.Duration, call.Args[0]
		}
	}
	peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss / 1024
	s.tb.Logf("%-28s %6.2f s, peak RSS %d MiB, %d KiB of output, longest call of Redis %v (%s); %v %s",
		strings.Join(args, " "), took.Seconds(), peak, out/1024, longest, what, err, lastLine(errs.String()))
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
