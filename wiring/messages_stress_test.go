package wiring_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

var (
	stressRuns  = flag.Int("stress.runs", 1, "how often TestStress stresses")
	stressCheck = flag.Bool("stress.check", false, "the workers of TestStress check each task before it runs")
)

// While 4,000 messages are produced and consumed, 800 rows are deleted whose tasks
// have not started: they never run, and the others run once. More often by
//
//	go test ./wiring -run TestStress -stress.runs 5 -v
//
// What a worker is just starting as the delete commits only the worker itself can stop:
// with -stress.check.
func TestStress(t *testing.T) {
	for i := range *stressRuns {
		t.Run(fmt.Sprint(i+1), stress) // alone on the machine: what it judges is a matter of time
	}
}

const (
	stressMessages = 4000
	stressDeletes  = 800
	stressBacklog  = 1000 // what the producer lets the queue grow to
	stressPace     = 6    // messages that are sent or consumed from one delete to the next
)

func stress(t *testing.T) {
	a := newApplication(t, variant{})
	rows := a.rows(stressMessages)

	// The producer is as far ahead of the workers as an application at its busiest.
	batches := make(chan []string, stressMessages)
	produced := make(chan error, 1)
	var deletes atomic.Int64
	go func() { produced <- a.produce(rows, batches, &deletes) }()
	// Nothing tells the row of a task that an idle worker takes unseen: there is a backlog
	// before there are workers.
	sandbox.AwaitTB(t, recovery, "a backlog", sandbox.Until(func() bool {
		return a.broker.LLen(t.Context(), "celery").Val() >= stressBacklog/2
	}))
	token := a.withTokens("read")
	d := a.run()
	a.firstPass()
	if *stressCheck {
		a.checking(d.addr, token, map[string]any{"startup_timeout": 0})
	}
	a.work(2, nil)
	a.work(2, nil)
	begin := time.Now()

	sent := 0
	var waiting []string // rows whose message is sent, and whose task may not have started
	receive := func() {
		for len(batches) > 0 {
			for _, id := range <-batches {
				a.rowOf[id], a.want[id] = rows[sent], 1
				waiting = append(waiting, rows[sent])
				sent++
			}
		}
	}

	deleted, started, runs := map[string]time.Time{}, map[string]bool{}, 0
	look := func() {
		receive()
		all := a.ran()
		for _, run := range all[runs:] {
			started[run.Row] = true
		}
		runs = len(all)
	}
	for len(deleted) < stressDeletes {
		var due int // more than one where the deletes are late
		sandbox.AwaitTB(t, recovery, "production and consumption to go on", func() error {
			look()
			due = min((sent+len(started))/stressPace, stressDeletes) - len(deleted)
			if due <= 0 || len(waiting) == 0 {
				return fmt.Errorf("%d sent, %d started, %d deleted", sent, len(started), len(deleted))
			}
			return nil
		})
		var rows []string
		for ; due > 0 && len(waiting) > 0; due-- {
			last, pick := len(waiting)-1, rand.IntN(len(waiting))
			if row := waiting[pick]; !started[row] {
				rows = append(rows, row)
			}
			waiting[pick], waiting = waiting[last], waiting[:last]
		}
		maps.Copy(deleted, a.delete(1, rows))
		deletes.Store(int64(len(deleted)))
	}
	t.Logf("%d deletes in %v; by then %d messages were sent, and %d tasks had started",
		len(deleted), time.Since(begin).Round(time.Millisecond), sent, len(started))
	require.NoError(t, <-produced)
	receive()
	require.Equal(t, stressMessages, sent)
	for id, row := range a.rowOf {
		if _, ok := deleted[row]; ok {
			delete(a.want, id)
		}
	}
	require.Len(t, a.want, stressMessages-stressDeletes)
	a.awaitLiving(2 * recovery)
	a.check(recovery, "nothing of the deleted rows to be left", func() error {
		return a.left(a.idsOf(slices.Collect(maps.Keys(deleted))))
	})
	t.Logf("%d messages in %v", sent, time.Since(begin).Round(time.Millisecond))
	a.histogram(deleted)
	a.judge(deleted)
}

// produce sends a task for each row and reports the ids in the order of the rows. On a
// slow machine it waits for the deletes, which need messages that nobody has consumed.
func (a *application) produce(rows []string, sent chan<- []string, deletes *atomic.Int64) error {
	const batch = 100
	for from := 0; from < len(rows); from += batch {
		err := sandbox.Await(a.t.Context(), "the queue to shrink", func() error {
			n, err := a.broker.LLen(a.t.Context(), "celery").Result()
			ahead := int64(from)-stressBacklog > deletes.Load()*stressMessages/stressDeletes
			if err == nil && (n > stressBacklog || (ahead && n > batch)) {
				err = fmt.Errorf("%d messages", n)
			}
			return err
		})
		if err != nil {
			return err
		}
		ids, err := a.producer.Send(a.t.Context(), a.scans(rows[from:from+batch], map[string]any{"sleep": 0.01}, nil)...)
		if err != nil {
			return err
		}
		sent <- ids
	}
	return nil
}

// histogram prints when tasks of deleted rows started, from the delete's commit.
func (a *application) histogram(deleted map[string]time.Time) {
	edges := []time.Duration{0, 10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond, tolerance, time.Hour}
	counts, ran := make([]int, len(edges)), 0
	for _, run := range a.ran() {
		at, ok := deleted[run.Row]
		if !ok {
			continue
		}
		ran++
		for i, edge := range edges {
			if run.At.Sub(at) <= edge {
				counts[i]++
				break
			}
		}
	}
	a.t.Logf("tasks of deleted rows: %d never started; %d before the commit, %d within 10 ms, %d within 30 ms, %d within 100 ms, %d within %v, %d later",
		len(deleted)-ran, counts[0], counts[1], counts[2], counts[3], counts[4], tolerance, counts[5])
}
