package wiring_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// Rows are deleted while their tasks are queued, held for their ETA, prefetched or
// waiting for their retry: none of them runs after its delete, and all others run as
// often as they should.
func TestNoTaskOfADeletedRowRuns(t *testing.T) {
	t.Parallel()
	for _, v := range []variant{
		{name: "default"},
		{name: "acks_late", config: map[string]any{"task_acks_late": true}},
		{name: "gzip", config: map[string]any{"task_compression": "gzip"}},
		{name: "priorities", priorities: []int{0, 3, 6, 9}},
		{name: "global_keyprefix", prefix: "pre:"},
		{name: "separate result backend", separate: true},
		{name: "celery_id", match: byID},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			a := newApplication(t, v)
			rows := a.rows(60 + 65)
			doomed, living := rows[:60:60], rows[60:]
			deleted := slices.Clone(doomed)
			a.run()
			a.work(2, nil)

			const seconds = 5 // for all that follows up to the delete
			eta := map[string]any{"countdown": seconds}
			a.send(never, a.scans(cut(&doomed, 18), nil, eta)...)
			a.send(1, a.scans(cut(&living, 15), nil, eta)...)
			a.send(1, others(5, nil, eta)...)
			retry := map[string]any{"retry": seconds}
			retrying := a.send(never, a.scans(cut(&doomed, 18), retry, nil)...)
			a.send(2, a.scans(cut(&living, 15), retry, nil)...)
			a.awaitRuns(recovery, 1, retrying)
			const waiting = 18 + 15 + 5 + 18 + 15
			a.awaitPlaces(0, waiting)

			// Both processes are busy, and what they take next gives the daemon a moment.
			a.block(2)
			slots := 8 // 2 processes x worker_prefetch_multiplier 4
			if v.config["task_acks_late"] == true {
				slots -= 2 // taken by those that run
			}
			a.send(1, a.scans(cut(&living, 4), map[string]any{"sleep": 0.2}, nil)...)
			a.send(never, a.scans(cut(&doomed, slots-4), nil, nil)...)
			a.awaitPlaces(0, waiting+8)

			behind := a.queued(slices.Concat(a.scans(doomed, nil, nil), a.scans(living, nil, nil), others(20, nil, nil)))
			rand.Shuffle(len(behind), func(i, j int) { behind[i], behind[j] = behind[j], behind[i] })
			a.sendMixed(deleted, behind)
			a.awaitPlaces(len(behind), waiting+8)
			require.Len(t, a.ran(), len(retrying)+15+2, "the time for setting up was too short")

			commits := a.delete(3, deleted)
			a.release(2)
			a.awaitLiving(recovery)
			a.check(recovery, "nothing of the deleted rows to be left", func() error { return a.left(a.idsOf(deleted)) })
			a.judge(commits)
			require.NotContains(t, a.daemon.log.String(), "NOPERM")
		})
	}
}

// sendMixed sends tasks of which those of the deleted rows are not to run.
func (a *application) sendMixed(deleted []string, tasks []sandbox.Task) []string {
	a.t.Helper()
	ids, err := a.producer.Send(a.t.Context(), tasks...)
	require.NoError(a.t, err)
	of := set(deleted)
	for i, id := range ids {
		times := 1
		if tasks[i].Name == sandbox.ScanTask && of[tasks[i].Args[0].(string)] {
			times = never
		}
		a.expect(id, times, tasks[i])
	}
	return ids
}

// A worker that is killed leaves what it held to whoever restores it: a worker that
// starts, or any client that waits for replies. What was removed is not restored.
func TestRemovedMessagesDoNotComeBack(t *testing.T) {
	t.Parallel()
	for _, killedFirst := range []bool{false, true} {
		t.Run(map[bool]string{false: "deleted, then killed", true: "killed, then deleted"}[killedFirst], func(t *testing.T) {
			t.Parallel()
			a := newApplication(t, variant{})
			rows := a.rows(40)
			doomed, living := rows[:20:20], rows[20:]
			deleted := slices.Clone(doomed)
			a.run()
			worker := a.work(2, nil)
			eta := map[string]any{"countdown": 4}
			a.send(never, a.scans(cut(&doomed, 12), nil, eta)...)
			a.send(1, a.scans(cut(&living, 12), nil, eta)...)
			a.awaitPlaces(0, 24)
			a.block(2)
			a.send(1, a.scans(cut(&living, 4), nil, nil)...)
			a.send(never, a.scans(cut(&doomed, 4), nil, nil)...)
			a.awaitPlaces(0, 32)
			a.send(never, a.scans(doomed, nil, nil)...)
			a.send(1, a.scans(living, nil, nil)...)
			a.awaitPlaces(8, 32)

			if killedFirst {
				require.NoError(t, worker.Kill(t.Context()))
			}
			commits := a.delete(2, deleted)
			a.check(recovery, "nothing of the deleted rows to be left", func() error { return a.left(a.idsOf(deleted)) })
			require.NoError(t, worker.Kill(t.Context()))

			// The living ones become visible again, by the new worker's timeout.
			const timeout = 2
			sandbox.AwaitTB(t, recovery, "all to be past the visibility timeout", func() error {
				edge := fmt.Sprintf("(%f", float64(time.Now().UnixMicro())/1e6-timeout)
				young, err := a.broker.ZCount(t.Context(), "unacked_index", edge, "+inf").Result()
				if err == nil && young > 0 {
					err = fmt.Errorf("%d are not", young)
				}
				return err
			})
			a.work(2, map[string]any{"broker_transport_options": map[string]any{"visibility_timeout": timeout}})
			a.awaitLiving(recovery)
			nodes, err := a.producer.PingWorkers(t.Context())
			require.NoError(t, err)
			require.NotEmpty(t, nodes)
			a.awaitLiving(recovery)
			a.check(recovery, "nothing of the deleted rows to be left", func() error { return a.left(a.idsOf(deleted)) })
			a.judge(commits)
		})
	}
}

// The common order of an application: the task is sent before its row is committed.
func TestATaskSentBeforeItsRowCommits(t *testing.T) {
	t.Parallel()
	a := newApplication(t, variant{daemonEnv: []string{"ORPHANWATCH_POLICY_GRACE=1s"}})
	a.rows(10) // an empty table would be the guard's
	a.run()
	a.firstPass()
	committing, closeCommitting := a.begin()
	defer closeCommitting()
	failing, closeFailing := a.begin()
	defer closeFailing()
	early, lost := uuid.NewString(), uuid.NewString()
	earlyID, lostID := a.send(1, a.scan(early, nil, nil)), a.send(never, a.scan(lost, nil, nil))
	_, err := committing.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", early)
	require.NoError(t, err)
	_, err = failing.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", lost)
	require.NoError(t, err)

	sent, err := a.letters()
	require.NoError(t, err)
	require.Len(t, sent, 2)
	a.remain(5*time.Second, sent) // that is how long the application takes
	require.NoError(t, committing.Commit(t.Context()))
	require.NoError(t, failing.Rollback(t.Context()))

	// What never got its row goes, which shows that both were looked at.
	at := time.Now()
	a.check(recovery, "the message without a row to be gone", func() error { return a.left(lostID) })
	require.Error(t, a.left(earlyID), "the message of a row that was committed late")
	a.work(2, nil)
	a.awaitLiving(recovery)
	a.judge(map[string]time.Time{lost: at})
}

// remain watches for a while that the messages are the same, byte for byte.
func (a *application) remain(d time.Duration, want []letter) {
	a.t.Helper()
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		got, err := a.letters()
		require.NoError(a.t, err)
		require.Equal(a.t, want, got, "messages that must stay as they are")
		select {
		case <-end.C:
			return
		case <-tick.C:
		}
	}
}

// Tasks of others are nobody's orphans, and an empty table makes none.
func TestUnrelatedQueueAndEmptyTable(t *testing.T) {
	t.Parallel()
	for _, match := range []string{byArgument, byID} {
		t.Run(match, func(t *testing.T) {
			t.Parallel()
			a := newApplication(t, variant{match: match, daemonEnv: []string{"ORPHANWATCH_POLICY_RESYNC_INTERVAL=1s"}})
			var foreign []sandbox.Task
			for range 300 { // their first argument looks like a row's key
				foreign = append(foreign, sandbox.Task{Name: sandbox.OtherTask, ID: uuid.NewString(), Args: []any{uuid.NewString()}})
			}
			a.send(1, foreign...)
			unrelated, err := a.letters()
			require.NoError(t, err)
			ours := a.send(never, a.scans(ids(5), nil, nil)...)
			all, err := a.letters()
			require.NoError(t, err)

			a.run()
			a.awaitStatus(recovery, "the guard to trip", func(s wiring.DaemonStatus) bool { return s.Guard != nil })
			for range 3 {
				a.awaitPass(recovery)
				a.remain(grace, all)
			}
			// Told to believe the empty table, it knows which ones are meant.
			require.NoError(t, a.store.AcceptAbsent(t.Context()))
			a.check(recovery, "those without a row to be gone", func() error { return a.left(ours) })
			a.awaitPass(recovery)
			a.remain(grace, unrelated)
		})
	}
}
