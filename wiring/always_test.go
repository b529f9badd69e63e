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
	"github.com/orphanwatch/orphanwatch/watcher"
	"github.com/orphanwatch/orphanwatch/wiring"
)

var (
	redisAway    = flag.Duration("redis.away", 20*time.Second, "for how long Redis is away in TestRedisIsAwayForLong; from 90 s on OldestPending fires")
	unrelatedWAL = flag.Int("unrelated.wal", 24, "how many MB other tables write in TestUnrelatedWALIsNotHeld")
	unrelatedMB  = flag.Duration("unrelated.every", 0, "the time for each of them; 0: as fast as it goes. From 2 s on, never more than 16 MB may be retained")
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
// back, or goes on in another way where it may not, and a pass finds what was missed.
func TestLostEventsAreFound(t *testing.T) {
	t.Parallel()
	for _, configure := range []string{"auto", "never"} {
		t.Run("configure "+configure, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			flags := func(set string) {
				require.NoError(t, w.redis.ConfigSet(t.Context(), "notify-keyspace-events", set).Err())
			}
			flags("KEls$")
			d := w.run("ORPHANWATCH_REDIS_CONFIGURE=" + configure)
			w.firstPass()
			metric := func(name, source string, labels ...string) float64 {
				return d.metric(name, append(labels, `source="`+source+`"`)...)
			}
			const gaps, mode, byEvents = "orphanwatch_gaps_total", "orphanwatch_source_mode", `mode="keyspace events"`
			redis, broker := metric(gaps, "redis"), metric(gaps, "broker")
			began := time.Now()
			flags("")
			missed := w.rows(1)
			w.sql("DELETE FROM scan_tasks WHERE id = $1", missed[0])
			w.results(missed...)
			sandbox.AwaitTB(t, 15*time.Second, "both gaps", sandbox.Until(func() bool {
				return metric(gaps, "redis") > redis && metric(gaps, "broker") > broker
			}))
			t.Logf("found after %v", time.Since(began).Round(time.Millisecond))
			d.awaitLog(time.Second, "canary: its event did not come")
			w.awaitStatus(recovery, "a pass for the gap", func(s wiring.DaemonStatus) bool {
				return s.Pass.Started.After(began) && !s.Pass.Ended.IsZero() && strings.Contains(s.Pass.Reason, "canary")
			})
			w.gone(recovery, missed...)
			d.ready(recovery)
			found := w.redis.ConfigGet(t.Context(), "notify-keyspace-events").Val()["notify-keyspace-events"]
			if configure == "never" {
				require.Empty(t, found)
				for _, source := range []string{"redis", "broker"} {
					require.Zero(t, metric(mode, source, byEvents))
					require.Equal(t, 1.0, metric(mode, source), "another way")
					h := w.health(source)
					require.Contains(t, h.Err, "CONFIG SET notify-keyspace-events", "what mends it")
				}
				return
			}
			for _, flag := range "K$Els" {
				require.Contains(t, found, string(flag))
			}
			require.Equal(t, 2.0, d.metric(mode, byEvents))
		})
	}
}

// health is of a source, as the leader publishes it.
func (w *world) health(source string) watcher.Health {
	w.t.Helper()
	s, err := w.status()
	require.NoError(w.t, err)
	return s.Sources[source]
}

// What other tables write is not held back for an idle daemon. The server looks where the
// slot may move to every 15 s only, so a burst is retained until then; an idle hour, 17
// times as fast:
//
//	go test ./wiring -run TestUnrelatedWAL -unrelated.wal 110 -unrelated.every 2s -v
func TestUnrelatedWALIsNotHeld(t *testing.T) {
	t.Parallel()
	w, _ := watched(t, 1)
	w.sql("CREATE TABLE unrelated (filler text)")
	behind := func() (confirmed, retained int64) {
		return one[int64](w, "SELECT (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint FROM pg_replication_slots WHERE slot_name = 'orphanwatch'"),
			one[int64](w, "SELECT (pg_current_wal_lsn() - restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = 'orphanwatch'")
	}
	start := one[string](w, "SELECT pg_current_wal_lsn()::text")
	worst, tick := int64(0), time.Now()
	for range *unrelatedWAL {
		w.sql("INSERT INTO unrelated SELECT repeat(md5(random()::text), 30) FROM generate_series(1, 900)")
		_, retained := behind()
		worst = max(worst, retained)
		tick = tick.Add(*unrelatedMB)
		waitFor(t, time.Until(tick))
	}
	if *unrelatedMB >= 2*time.Second {
		require.Less(t, worst, int64(16<<20))
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
