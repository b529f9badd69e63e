package wiring_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// restore is the command "restore --since": it gives how many keys and messages it
// says it has put back.
func (w *world) restore(since time.Duration) (restored int) {
	w.t.Helper()
	config, err := wiring.Load(wiring.LoadOptions{Environ: w.environ()})
	require.NoError(w.t, err)
	stores, err := wiring.OpenStores(config, nil)
	require.NoError(w.t, err)
	defer func() { require.NoError(w.t, stores.Close()) }()
	require.NoError(w.t, stores.Celery.RestoreSince(w.t.Context(), since, time.Hour, func(page []wiring.Restored) error {
		for _, r := range page {
			for _, key := range r.Keys {
				if key.Status == "restored" {
					restored++
				}
			}
		}
		return nil
	}))
	return restored
}

// values are the results of tasks.
func (w *world) values(ids []string) map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, id := range ids {
		if text, err := w.redis.Get(w.t.Context(), resultKey(id)).Result(); err == nil {
			out[id] = text
		}
	}
	return out
}

// places are how often each task has a message.
func (a *application) places() map[string]int {
	a.t.Helper()
	letters, err := a.letters()
	require.NoError(a.t, err)
	out := map[string]int{}
	for _, l := range letters {
		out[l.id]++
	}
	return out
}

// Rows are deleted by mistake and inserted again: restore brings everything back, and
// nobody takes it away a second time.
func TestRestoreBringsMessagesBack(t *testing.T) {
	t.Parallel()
	for _, v := range []variant{
		{name: "args", config: map[string]any{"result_extended": true}},
		{name: "celery_id", match: byID},
		{name: "separate result backend", separate: true, config: map[string]any{"result_extended": true}},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			v.daemonEnv = []string{"ORPHANWATCH_POLICY_RESYNC_INTERVAL=1s"}
			a := newApplication(t, v)
			rows := a.rows(80)
			mistaken, living := rows[:60], rows[60:]
			a.run()

			// Some have a result; some were held by a worker that is no more; some are queued.
			worker := a.work(2, nil)
			done := a.send(1, a.scans(mistaken[:20], nil, nil)...)
			awaitResults := func(ids []string) {
				t.Helper()
				sandbox.AwaitTB(t, recovery, "results", sandbox.Until(func() bool { return a.have(ids...) == len(ids) }))
			}
			awaitResults(done)
			later := a.send(1, a.scans(mistaken[20:40], nil, map[string]any{"countdown": 4})...)
			a.awaitPlaces(0, 20)
			require.NoError(t, worker.Kill(t.Context()))
			others := a.send(1, a.scans(living[:10], nil, nil)...)
			queued := a.send(1, a.scans(mistaken[40:], nil, nil)...)
			others = append(others, a.send(1, a.scans(living[10:], nil, nil)...)...)
			a.awaitPlaces(40, 20)
			results, places := a.values(done), a.places()

			a.delete(2, mistaken)
			sandbox.AwaitTB(t, recovery, "nothing of the deleted rows to be left", func() error { return a.left(slices.Concat(done, later, queued)) })
			require.Len(t, a.places(), len(others))

			a.sql("INSERT INTO scan_tasks (id) SELECT unnest($1::uuid[])", mistaken)
			restored := a.restore(10 * time.Minute)
			same := func() {
				t.Helper()
				require.Equal(t, results, a.values(done))
				require.Equal(t, places, a.places())
			}
			same()
			require.Equal(t, 60, restored)
			for range 3 {
				a.awaitPass(recovery)
				same()
			}
			again, err := a.letters()
			require.NoError(t, err)
			require.Zero(t, a.restore(10*time.Minute), "a second restore")
			a.remain(grace, again)

			a.work(2, nil)
			a.awaitLiving(recovery)
			a.judge(nil)
			all := slices.Sorted(maps.Keys(a.want))
			awaitResults(all)
			for range 2 {
				a.awaitPass(recovery)
				require.Equal(t, len(all), a.have(all...), "results of living rows")
			}
		})
	}
}
