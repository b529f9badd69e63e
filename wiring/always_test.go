package wiring_test

import (
	"flag"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

var (
	redisAway    = flag.Duration("redis.away", 20*time.Second, "for how long Redis is away in TestRedisIsAwayForLong; from 90 s on OldestPending fires")
	unrelatedWAL = flag.Int("unrelated.wal", 24, "how many MB other tables write in TestUnrelatedWALIsNotHeld")
)

// Redis is away while rows are deleted: the age of what waits rises with the clock, the
// readiness says why, and all is made up for by itself.
//
//	go test ./wiring -run TestRedisIsAwayForLong -redis.away 90s -v
func TestRedisIsAwayForLong(t *testing.T) {
	t.Parallel()
	w, rows := watched(t, 1000)
	d, doomed, living := w.daemon, rows[:900], rows[900:]
	require.NoError(t, w.sb.Redis.Kill(t.Context()))
	var ages []float64
	began := time.Now()
	for tick := began; time.Since(began) < *redisAway; {
		if part := min(5, len(doomed)-5*len(ages)); part > 0 {
			w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", doomed[5*len(ages):][:part])
		}
		tick = tick.Add(time.Second)
		waitFor(t, time.Until(tick))
		ages = append(ages, d.metric("orphanwatch_pending_oldest_seconds"))
	}
	if n := 5 * len(ages); n < len(doomed) {
		w.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", doomed[n:])
	}
	away := time.Since(began)
	assert.InDelta(t, away.Seconds(), ages[len(ages)-1], 3, "the age of the oldest delete")
	for i := 3; i < len(ages); i++ {
		assert.Greater(t, ages[i], ages[i-1], "the age has not risen: %v", ages)
	}
	code, why, err := d.get("/readyz")
	require.NoError(t, err)
	assert.Equal(t, http.StatusServiceUnavailable, code)
	for _, source := range []string{"redis", "broker"} {
		assert.Contains(t, why, source+" is not subscribed")
	}
	code, _, err = d.get("/livez")
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, code)

	require.NoError(t, w.sb.Redis.Start(t.Context()))
	back := time.Now()
	w.gone(recovery, doomed...)
	d.ready(recovery)
	t.Logf("Redis was away for %v; all made up for %v after it was back; readiness said: %s", away.Round(time.Second), time.Since(back).Round(time.Millisecond), why)
	sandbox.AwaitTB(t, recovery, "nothing to wait", sandbox.Until(func() bool { return d.metric("orphanwatch_pending_oldest_seconds") < 1 }))
	require.Equal(t, len(living), w.have(living...))
	if fires := *redisAway >= 90*time.Second; fires {
		require.True(t, firing(t, "OldestPending", map[string][]float64{"orphanwatch_pending_oldest_seconds": ages}, time.Second, away-time.Second),
			"OldestPending does not fire over %v", ages)
	}
}

// The flags of events are taken away: the probe finds it within 15 s, says so, puts them
// back, and a pass finds what was missed.
func TestLostEventsAreFound(t *testing.T) {
	t.Parallel()
	w, _ := watched(t, 10)
	gaps := func(source string) float64 { return w.daemon.metric("orphanwatch_gaps_total", `source="`+source+`"`) }
	redis, broker := gaps("redis"), gaps("broker")
	began := time.Now()
	require.NoError(t, w.redis.ConfigSet(t.Context(), "notify-keyspace-events", "").Err())
	missed := w.rows(1)
	w.sql("DELETE FROM scan_tasks WHERE id = $1", missed[0])
	w.results(missed...)
	sandbox.AwaitTB(t, 15*time.Second, "both gaps", sandbox.Until(func() bool { return gaps("redis") > redis && gaps("broker") > broker }))
	t.Logf("found after %v", time.Since(began).Round(time.Millisecond))
	w.daemon.awaitLog(time.Second, "canary: its event did not come")
	w.awaitStatus(recovery, "a pass for the gap", func(s wiring.DaemonStatus) bool {
		return s.Pass.Started.After(began) && !s.Pass.Ended.IsZero() && strings.Contains(s.Pass.Reason, "canary")
	})
	w.gone(recovery, missed...)
	flags := w.redis.ConfigGet(t.Context(), "notify-keyspace-events").Val()["notify-keyspace-events"]
	for _, flag := range "K$Els" {
		require.Contains(t, flags, string(flag))
	}
}

// What other tables write is not held back for an idle daemon.
func TestUnrelatedWALIsNotHeld(t *testing.T) {
	t.Parallel()
	w, _ := watched(t, 1)
	w.sql("CREATE TABLE unrelated (filler text)")
	behind := func() (confirmed, retained int64) {
		return one[int64](w, "SELECT (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint FROM pg_replication_slots WHERE slot_name = 'orphanwatch'"),
			one[int64](w, "SELECT (pg_current_wal_lsn() - restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = 'orphanwatch'")
	}
	start := one[string](w, "SELECT pg_current_wal_lsn()::text")
	worst := int64(0)
	for range *unrelatedWAL {
		w.sql("INSERT INTO unrelated SELECT repeat(md5(random()::text), 30) FROM generate_series(1, 900)")
		_, retained := behind()
		worst = max(worst, retained)
	}
	written := one[int64](w, "SELECT (pg_current_wal_lsn() - $1::pg_lsn)::bigint", start)
	require.Greater(t, written, int64(*unrelatedWAL)<<19)
	began := time.Now()
	sandbox.AwaitTB(t, recovery, "the slot to follow", func() error {
		confirmed, retained := behind()
		if confirmed > 1<<20 || retained > 16<<20 {
			return fmt.Errorf("%d bytes are not confirmed, %d are retained", confirmed, retained)
		}
		return nil
	})
	_, retained := behind()
	t.Logf("%d MB written by others: at worst %d MB were retained, %.1f MB after %v", written>>20, worst>>20, float64(retained)/(1<<20), time.Since(began).Round(time.Millisecond))
}
