package wiring_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

var measure = flag.Bool("measure", false, "let TestMeasure measure")

// TestMeasure measures the daemon as a process of its own, with its default policy:
//
//	go test ./wiring -run TestMeasure -measure -v
//
// It judges nothing: figures depend on the machine. Beside the latency of a delete
// stands the floor: the same delete, followed by an UNLINK of our own.
func TestMeasure(t *testing.T) {
	if !*measure {
		return
	}
	w := newWorld(t, sandbox.Options{})
	const bulk = 100_000
	victims, living := w.rows(1000), w.rows(bulk)
	w.results(victims...)
	d := w.run("ORPHANWATCH_POLICY_GRACE=5s")
	w.firstPass()

	t.Logf("floor (DELETE, then UNLINK):        %s", measureDeletes(w, victims[:500], func(id string) {
		require.NoError(t, w.redis.Unlink(t.Context(), resultKey(id)).Err())
	}))
	t.Logf("single deletes, commit to key gone: %s", measureDeletes(w, victims[500:], func(id string) {
		for w.redis.Exists(t.Context(), resultKey(id)).Val() > 0 {
		}
	}))

	cpu := d.cpu(t)
	idle := time.NewTimer(20 * time.Second) // what is measured is that nothing happens
	<-idle.C
	t.Logf("idle: %.2f %% of a core, RSS %d MiB", (d.cpu(t)-cpu).Seconds()/20*100, d.rss(t))

	w.results(living...)
	sandbox.AwaitTB(t, recovery, "the events of the results to be judged", func() error {
		if s, err := w.status(); err != nil || s.Queue.Pending > 0 {
			return fmt.Errorf("%d pending (%w)", s.Queue.Pending, err)
		}
		return nil
	})
	start := time.Now()
	w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", living)
	committed := time.Since(start)
	w.gone(time.Minute, living...)
	t.Logf("%d rows deleted at once: the DELETE took %v, all keys gone %v after its commit; peak RSS %d MiB, now %d MiB",
		bulk, committed.Round(time.Millisecond), (time.Since(start) - committed).Round(time.Millisecond), d.proc("VmHWM")/1024, d.rss(t))
}

func measureDeletes(w *world, ids []string, then func(id string)) string {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.dbURL)
	require.NoError(w.t, err)
	defer func() { _ = conn.Close(w.t.Context()) }()
	var lags []time.Duration
	for _, id := range ids {
		_, err := conn.Exec(w.t.Context(), "DELETE FROM scan_tasks WHERE id = $1", id)
		require.NoError(w.t, err)
		start := time.Now()
		then(id)
		lags = append(lags, time.Since(start))
	}
	slices.Sort(lags)
	return fmt.Sprintf("p50 %v, p99 %v, max %v of %d", lags[len(lags)/2], lags[len(lags)*99/100], lags[len(lags)-1], len(lags))
}

// cpu is the time that the daemon has used so far.
func (d *daemon) cpu(t *testing.T) time.Duration {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.cmd.Process.Pid), "stat"))
	require.NoError(t, err)
	fields := strings.Fields(string(body[strings.LastIndexByte(string(body), ')')+2:]))
	ticks := 0
	for _, f := range fields[11:13] { // utime, stime, in ticks of 10 ms
		n, err := strconv.Atoi(f)
		require.NoError(t, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func (d *daemon) rss(t *testing.T) int {
	t.Helper()
	return d.proc("VmRSS") / 1024
}
