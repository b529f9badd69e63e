package wiring_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// tolerance is for how long after a delete's commit its task may still start: a
// process of the pool may be starting it as the delete commits, and by then neither a
// removal nor a revoke stops it. How many do is printed.
const tolerance = 300 * time.Millisecond

// check is an Await that lets the test go on, so that all that is wrong is told.
func (a *application) check(timeout time.Duration, what string, cond func() error) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), timeout)
	defer cancel()
	if err := sandbox.Await(ctx, what, cond); err != nil {
		a.t.Errorf("%v", err)
	}
}

// awaitLiving waits until every task of a living row has run as often as it should,
// and until nothing is queued or held any more.
func (a *application) awaitLiving(timeout time.Duration) {
	a.t.Helper()
	a.check(timeout, "all living tasks to run", func() error {
		ran, short := a.times(), 0
		for id, times := range a.want {
			if ran[id] < times {
				short++
			}
		}
		if short > 0 {
			return fmt.Errorf("%d of %d have not", short, len(a.want))
		}
		return nil
	})
	a.check(recovery, "the broker to be empty", func() error {
		letters, err := a.letters()
		if err == nil && len(letters) > 0 {
			err = fmt.Errorf("%d messages are there", len(letters))
		}
		return err
	})
}

// judge tells whether the tasks of deleted rows (with the time of the commit) have not
// started since, and whether the others ran as often as they should.
func (a *application) judge(deleted map[string]time.Time) {
	a.t.Helper()
	var late, within []time.Duration
	before := 0
	for _, run := range a.ran() {
		at, ok := deleted[run.Row]
		switch after := run.At.Sub(at); {
		case !ok:
		case after <= 0:
			before++
		case after <= tolerance:
			within = append(within, after.Round(time.Millisecond))
		default:
			late = append(late, after.Round(time.Millisecond))
			a.t.Logf("late: %+v, committed %v, its record: %v", run, at, a.redis.HGetAll(a.t.Context(), "orphanwatch:record:task:"+run.ID).Val())
		}
	}
	slices.Sort(late)
	a.t.Logf("%d rows deleted; their tasks started %d times before the commit, %d times within the tolerance of %v (the last after %v), %d times later",
		len(deleted), before, len(within), tolerance, latest(within), len(late))
	assert.Empty(a.t, late, "tasks of deleted rows that started so long after the delete's commit")

	ran, wrong := a.times(), map[int]int{}
	for id, times := range a.want {
		if ran[id] != times {
			wrong[ran[id]-times]++
		}
	}
	assert.Empty(a.t, wrong, "living tasks that ran more or less often than they should: difference -> tasks, of %d", len(a.want))
	a.noForeignKeyErrors(deleted)
}

func latest(list []time.Duration) time.Duration {
	if len(list) == 0 {
		return 0
	}
	return slices.Max(list)
}

var (
	logTime         = regexp.MustCompile(`^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}): `)
	foreignKeyError = regexp.MustCompile(`Key \(task_id\)=\(([0-9a-f-]{36})\) is not present`)
)

// noForeignKeyErrors reads the workers' logs: a child row of a deleted row cannot be
// written, but it must not even be tried.
func (a *application) noForeignKeyErrors(deleted map[string]time.Time) {
	a.t.Helper()
	late := map[string]bool{}
	for _, w := range a.workers {
		log, err := os.ReadFile(w.LogPath())
		require.NoError(a.t, err)
		var at time.Time // of the entry to which a line belongs
		for line := range strings.Lines(string(log)) {
			if m := logTime.FindStringSubmatch(line); m != nil {
				at, err = time.Parse("2006-01-02 15:04:05.000", m[1]+"."+m[2])
				require.NoError(a.t, err)
			} else if m := foreignKeyError.FindStringSubmatch(line); m != nil {
				if commit, ok := deleted[m[1]]; ok && at.Sub(commit) > tolerance {
					late[m[1]] = true
				}
			}
		}
	}
	assert.Empty(a.t, slices.Collect(maps.Keys(late)), "deleted rows with foreign key errors in the workers' logs")
}
