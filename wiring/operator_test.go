package wiring_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// ended writes a result of a task that ended so long ago.
func (w *world) ended(id string, ago time.Duration) {
	w.t.Helper()
	value := `{"status": "SUCCESS", "result": null, "date_done": "` + time.Now().Add(-ago).UTC().Format("2006-01-02T15:04:05.000000") + `"}`
	require.NoError(w.t, w.redis.Set(w.t.Context(), resultKey(id), value, time.Hour).Err())
}

// The leader makes a full cleanup by itself, within what policy.remove allows.
func TestTheDailyFullCleanup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandbox.Options{})
	w.setup("children=public.task_logs")
	rows := w.rows(3)
	w.sql("SET session_replication_role = replica; INSERT INTO task_logs (task_id, line) VALUES (gen_random_uuid(), 'x')")
	d := w.run("ORPHANWATCH_POLICY_FULL_CLEANUP_INTERVAL=2s", "ORPHANWATCH_POLICY_REMOVE=none")
	w.firstPass()
	w.ended(rows[0], 48*time.Hour)
	d.awaitLog(recovery, "full cleanup")
	w.stays(grace, rows[0])
	d.stop()

	w.run("ORPHANWATCH_POLICY_FULL_CLEANUP_INTERVAL=2s")
	w.ended(rows[1], time.Minute)
	w.gone(recovery, rows[0])
	sandbox.AwaitTB(t, recovery, "the child row to be removed", func() error {
		if n := one[int](w, "SELECT count(*)::int FROM task_logs"); n > 0 {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
	w.stays(grace, rows[1])
}

// A second full cleanup is refused while one is under way.
func TestOneFullCleanupAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandbox.Options{})
	token := w.withTokens("cleanup")
	rows := w.rows(1)
	d := w.run("ORPHANWATCH_POLICY_REMOVE=deleted")
	w.firstPass()
	const orphan = "7b8f3c52-6b3c-4c1e-8f0a-2f6f5a3d9e01"
	w.ended(orphan, time.Minute)
	w.ended(rows[0], time.Minute)
	_, end := w.begin() // may be inserting the row
	const full = "/api/v1/cache/cleanup/full"
	first := make(chan int, 1)
	var report reconciler.FullReport
	go func() { first <- d.call(http.MethodPost, full, token, &report) }()
	w.awaitStatus(recovery, "the first one's pass", func(s wiring.DaemonStatus) bool { return s.Pass.Reason == "api" })
	require.Equal(t, http.StatusConflict, d.call(http.MethodPost, full, token, nil))
	w.stays(grace, orphan)
	end()
	require.Equal(t, http.StatusOK, <-first)
	require.EqualValues(t, 1, report.Orphaned.Cleaned)
	w.gone(recovery, orphan)
	w.stays(grace, rows[0])
}
