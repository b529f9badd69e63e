package wiring_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

var (
	handoverRounds = flag.Int("handover.rounds", 2, "how often TestHandover takes the leader away: by turns kill -9 and SIGSTOP")
	handoverStop   = flag.Duration("handover.stop", 14*time.Second, "for how long SIGSTOP stops it; the slot is free after 10 s")
)

const (
	handoverLimit = 15 * time.Second // from the fault to the standby's leading
	handRows      = 400              // are deleted right before the fault: work in hand
)

// TestHandover takes the leader away at random moments while an application inserts,
// deletes, sends and stores results: the standby leads within 15 s, every orphan goes,
// and nothing of a living row does, though a stopped leader goes on where it stood. As
// the issue has it, about 10 min:
//
//	go test ./wiring -run 'TestHandover$' -handover.rounds 20 -handover.stop 40s -v -timeout 30m
func TestHandover(t *testing.T) {
	t.Parallel()
	a := newApplication(t, variant{match: byID})
	load := a.load()
	leader := a.run()
	standby := a.standby()

	var leading, working []time.Duration
	for round := range *handoverRounds {
		kill := round%2 == 0
		waitFor(t, rand.N(2*time.Second))
		hand, messages := load.birth(handRows)
		removed := standby.metric(removedResults)
		terms := standby.terms()
		load.delete(hand)
		waitFor(t, rand.N(60*time.Millisecond)) // the leader is somewhere in the middle of it
		fault := time.Now()
		if kill {
			leader.kill()
		} else {
			leader.signal(syscall.SIGSTOP)
			// Half of what it had in hand is there again, with new results and messages.
			load.again(hand[:handRows/2], messages)
		}
		standby.awaitTerm(terms)
		leading = append(leading, time.Since(fault))
		sandbox.AwaitTB(t, recovery, "a removal by the new leader", sandbox.Until(func() bool { return standby.metric(removedResults) > removed }))
		working = append(working, time.Since(fault))
		if kill {
			leader, standby = standby, a.standby()
		} else {
			waitFor(t, time.Until(fault.Add(*handoverStop)))
			leader.signal(syscall.SIGCONT)
			leader.awaitStandby()
			leader, standby = standby, leader
		}
		load.awaitNoOrphans()
		load.check()
	}
	load.stop()
	load.awaitNoOrphans()
	load.check()
	require.True(t, leader.alive() && standby.alive())
	t.Logf("%d hand-overs: to leading %s; to the first removal %s; %s", len(leading), spread(leading), spread(working), load)
	require.LessOrEqual(t, quantile(leading, 99), handoverLimit)
}

// A rolling update: each copy is replaced by a new one, which is ready first. All that
// serve are ready and answer reads at any moment, also a standby and one that takes over;
// deletes are followed all the while.
func TestRollingUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rows := w.rows(1000)
	w.results(rows...)
	serving := []*daemon{w.run(), w.standby()}

	doomed, living, deleted := rows[:900], rows[900:], 0
	look := func(until func() bool) {
		t.Helper()
		for began := time.Now(); !until(); time.Sleep(10 * time.Millisecond) {
			require.Less(t, time.Since(began), recovery)
			if deleted < len(doomed) {
				w.sql("DELETE FROM scan_tasks WHERE id = $1", doomed[deleted])
				deleted++
			}
			for _, d := range serving {
				for path, want := range map[string]string{
					"/readyz": "", "/api/v1/tasks/" + living[0]: `"exists":true`, "/api/v1/tasks/" + doomed[0]: `"exists":false`,
				} {
					code, body, err := d.get(path)
					require.NoError(t, err)
					require.Equal(t, http.StatusOK, code, "%s: %s", path, body)
					require.Contains(t, strings.ReplaceAll(body, " ", ""), want, path)
				}
			}
		}
	}
	steps := func(n int) func() bool { return func() bool { n--; return n < 0 } }
	leads := func(d *daemon) bool { return d.metric("orphanwatch_leader") == 1 }
	look(steps(10))
	for range 2 {
		fresh, at := w.standby(), slices.IndexFunc(serving, leads)
		old := serving[at]
		serving = append(slices.Delete(serving, at, at+1), fresh)
		began := time.Now()
		require.NoError(t, old.cmd.Process.Signal(syscall.SIGTERM))
		look(func() bool { return slices.ContainsFunc(serving, leads) })
		t.Logf("the next one leads %v after SIGTERM", time.Since(began).Round(time.Millisecond))
		<-old.done
		require.NoError(t, old.err)
		look(steps(30))
	}
	w.gone(recovery, doomed[:deleted]...)
	require.Equal(t, len(living), w.have(living...))
}

const removedResults = "orphanwatch_removed_total"

// standby starts a copy and awaits that it waits.
func (w *world) standby(env ...string) *daemon {
	w.t.Helper()
	d := w.start(env...)
	d.awaitLog(recovery, "standing by")
	d.ready(recovery)
	return d
}

const nowLeads, standsBy = "msg=leading", "standing by"

// terms is how often it has led.
func (d *daemon) terms() int { return strings.Count(d.log.String(), nowLeads) }

// awaitTerm waits until it has led more often than so.
func (d *daemon) awaitTerm(terms int) {
	d.t.Helper()
	sandbox.AwaitTB(d.t, 2*recovery, "the standby to lead", sandbox.Until(func() bool { return d.terms() > terms }))
}

// awaitStandby waits until the last that it says of its role is that it stands by.
func (d *daemon) awaitStandby() {
	d.t.Helper()
	sandbox.AwaitTB(d.t, recovery, "the old leader to stand by", sandbox.Until(func() bool {
		log := d.log.String()
		return strings.LastIndex(log, standsBy) > strings.LastIndex(log, nowLeads)
	}))
}

func (d *daemon) signal(s syscall.Signal) {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Signal(s))
}

func quantile(all []time.Duration, percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)*percent/100]
}

func spread(all []time.Duration) string {
	return fmt.Sprintf("p50 %v, p99 %v, max %v", quantile(all, 50).Round(time.Millisecond),
		quantile(all, 99).Round(time.Millisecond), slices.Max(all).Round(time.Millisecond))
}
