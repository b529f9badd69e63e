package wiring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// A daemon that starts after the tasks have ended knows of their rows only by what
// their results tell: an extended one tells all, any other tells nothing, and stays.
func TestResultsAreFoundByTheirArguments(t *testing.T) {
	t.Parallel()
	for name, extended := range map[string]bool{"extended": true, "default": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApplication(t, variant{match: "kwargs:task_id", config: map[string]any{"result_extended": extended}})
			rows := a.rows(20)
			tasks := make([]sandbox.Task, len(rows))
			for i, row := range rows {
				tasks[i] = sandbox.Task{Name: sandbox.ScanTask, Kwargs: map[string]any{"task_id": row, "target_domain": "example.org"}}
			}
			results, err := a.producer.Send(t.Context(), tasks...)
			require.NoError(t, err)
			a.work(2, nil)
			sandbox.AwaitTB(t, recovery, "all results", sandbox.Until(func() bool { return a.have(results...) == len(results) }))

			a.run("ORPHANWATCH_POLICY_RESYNC_INTERVAL=1s")
			a.firstPass()
			a.delete(2, rows[:10])
			if extended {
				a.gone(recovery, results[:10]...)
				a.stays(2*grace, results[10:]...)
				return
			}
			a.awaitStatus(recovery, "all of them to be reported", func(s wiring.DaemonStatus) bool {
				return s.Held["public.scan_tasks unknown"] == int64(len(results))
			})
			a.awaitPass(recovery)
			a.stays(2*grace, results...)
			require.Zero(t, a.daemon.metric("orphanwatch_removed_total", `kind="results"`))
		})
	}
}

// An idle worker takes a task before anybody has seen its message: then the event of
// its extended result tells the row, without a pass.
func TestResultsOfTasksThatNeverWaited(t *testing.T) {
	t.Parallel()
	a := newApplication(t, variant{config: map[string]any{"result_extended": true}})
	rows := a.rows(20)
	a.run()
	a.firstPass()
	a.work(2, nil)
	var results []string
	for _, row := range rows {
		id := a.send(1, a.scan(row, nil, nil))
		sandbox.AwaitTB(t, recovery, "the result", sandbox.Until(func() bool { return a.have(id...) == 1 }))
		results = append(results, id...)
	}
	a.delete(2, rows[:10])
	a.gone(recovery, results[:10]...)
	a.stays(2*grace, results[10:]...)
}

// With celery.terminate a task that runs is ended, so that the only process of the
// worker is free for the next one.
func TestARunningTaskIsTerminated(t *testing.T) {
	t.Parallel()
	for _, match := range []string{byArgument, byID} {
		t.Run(match, func(t *testing.T) {
			t.Parallel()
			a := newApplication(t, variant{match: match, daemonEnv: []string{"ORPHANWATCH_CELERY_TERMINATE=SIGKILL"}})
			rows := a.rows(3)
			running := a.send(unjudged, a.scans(rows[:1], map[string]any{"sleep": 120}, nil)...)
			a.run("ORPHANWATCH_POLICY_RESYNC_INTERVAL=1s")
			a.awaitPass(recovery) // which sees whose task it is
			a.work(1, nil)
			sandbox.AwaitTB(t, recovery, "the task to be past its first statement", sandbox.Until(func() bool {
				return one[int](a.world, "SELECT count(*) FROM task_logs") > 0
			}))
			a.delete(1, rows[:1])
			a.send(1, a.scans(rows[1:], nil, nil)...)
			a.awaitLiving(recovery)
			a.check(recovery, "nothing of the deleted row to be left", func() error { return a.left(running) })
		})
	}
}
