package reconciler

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// place is the rest of both stores, as small as they can be.
type place struct {
	looks    []Look
	scanErr  error
	passes   int
	identity string
	// removed child rows.
	removed int64
}

func (p *place) Scan(_ context.Context, yield func([]Look) error) error {
	if p.passes++; p.scanErr != nil {
		return p.scanErr
	}
	return yield(p.looks)
}
func (p *place) Scanned() (done, total int64)                               { return 0, 0 }
func (p *place) Estimate(context.Context, int) (int64, error)               { return 1 << 40, nil }
func (p *place) EachID(context.Context, int, func(string) error) error      { return nil }
func (p *place) Identity(context.Context) (string, error)                   { return p.identity, nil }
func (p *place) RecordIdentity(_ context.Context, _ string) (string, error) { return "first", nil }
func (p *place) ChildTables(context.Context) ([]ChildTable, error) {
	return []ChildTable{{Schema: "public", Table: "task_logs"}}, nil
}

func (p *place) CountOrphans(context.Context, ChildTable) (rows, orphans int64, err error) {
	return 10, 3, nil
}
func (p *place) Mark(context.Context) (Mark, error) { return Mark{Identity: p.identity}, nil }
func (p *place) RemoveOrphans(ctx context.Context, _ ChildTable, how ChildRemoval) (int64, error) {
	if how.MayGoOn != nil {
		if err := how.MayGoOn(ctx); err != nil {
			return 0, err
		}
	}
	p.removed += 3
	return 3, nil
}

// orphans is a world with results of n rows that are not there.
func orphans(t *testing.T, n int) (*world, *place) {
	w := newWorld(t, scans)
	p := &place{identity: "first"}
	w.Tables, w.Scanner, w.Children, w.RecordIdentity, w.Messages = p, p, p, p.RecordIdentity, nil
	w.Results = &agedResults{clock: w.clock}
	for i := range n {
		look := LookFor(TaskSubject(fmt.Sprint("k", i)), fmt.Sprint("k", i))
		p.looks = append(p.looks, look)
		w.results[look.Subject] = Artifact{Kind: ResultKey, Key: look.Subject.ID, Stamp: Stamp{Len: 1, Head: "a"}}
	}
	return w, p
}

// quick lets the clock run whenever a cleanup tells that it removes or waits: what it
// tells of its pass comes from beside it.
func (w *world) quick(c Cleanup) Cleanup {
	c.Progress = func(p Progress) {
		if p.Stage == "removing" || strings.HasPrefix(p.Stage, "waiting (") {
			w.clock = w.clock.Add(10 * time.Second)
		}
	}
	return c
}

var farTerm = Term{Epoch: 1, Position: func() LSN { return 1 << 40 }}

// What a rule holds fills every pass: the cleanup must end all the same.
func TestCleanupEndsWithMoreHeldThanAPassHolds(t *testing.T) {
	w, p := orphans(t, maxSuspects+10)
	w.Policy.Remove, w.Policy.MaxAbsentRatio = RemoveNone, 1
	w.Guard = NewGuard(w.Policy, nil, w.Now)
	report, err := w.CleanupOrphaned(t.Context(), farTerm, w.quick(Cleanup{Trigger: ByResync, Scheduled: true}))
	require.NoError(t, err)
	require.Equal(t, 1, p.passes)
	require.True(t, report.Truncated)
	require.EqualValues(t, maxSuspects, report.Held[HeldByPolicy])
}

// The guard's word on a cleanup's own pass counts, whatever pass the daemon has begun
// since.
func TestCleanupIsGuardedByItsOwnPass(t *testing.T) {
	w, _ := orphans(t, 100)
	w.records[TaskSubject("k0")] = &worldRecord{evidence: Deleted}
	c := w.quick(Cleanup{Trigger: ByAPI})
	quick := c.Progress
	c.Progress = func(p Progress) {
		quick(p)
		if p.Stage == "removing" {
			w.update(func(p *Pass) { *p = Pass{Reason: "asked for", Stage: stageScan} })
		}
	}
	report, err := w.CleanupOrphaned(t.Context(), farTerm, c)
	var guarded *GuardedError
	require.ErrorAs(t, err, &guarded)
	require.EqualValues(t, 99, report.Held[HeldByGuard])
	require.EqualValues(t, 1, report.Cleaned, "what was deleted goes")

	// Forced, it goes; but never what another database does not know.
	w, p := orphans(t, 100)
	p.identity = "another"
	_, err = w.CleanupOrphaned(t.Context(), farTerm, w.quick(Cleanup{Trigger: ByCLI, Force: true}))
	require.ErrorAs(t, err, &guarded)
	require.Zero(t, w.removed[ResultKey])
	w, _ = orphans(t, 100)
	report, err = w.CleanupOrphaned(t.Context(), farTerm, w.quick(Cleanup{Trigger: ByCLI, Force: true}))
	require.NoError(t, err)
	require.EqualValues(t, 100, report.Cleaned)
	require.Nil(t, w.Guard.Tripped())
}

// A dry run neither trips the guard nor uses up what an operator accepts.
func TestADryRunLeavesTheGuard(t *testing.T) {
	w, _ := orphans(t, 100)
	var guarded *GuardedError
	dry := Cleanup{Trigger: ByAPI, DryRun: true}
	_, err := w.CleanupOrphaned(t.Context(), farTerm, dry)
	require.ErrorAs(t, err, &guarded)
	require.Nil(t, w.Guard.Tripped())

	_, err = w.CleanupOrphaned(t.Context(), farTerm, Cleanup{Trigger: ByAPI})
	require.ErrorAs(t, err, &guarded)
	require.NotNil(t, w.Guard.Tripped())
	w.Guard.Accept()
	report, err := w.CleanupOrphaned(t.Context(), farTerm, dry)
	require.NoError(t, err)
	require.EqualValues(t, 100, report.Cleaned)
	report, err = w.CleanupOrphaned(t.Context(), farTerm, w.quick(Cleanup{Trigger: ByAPI}))
	require.NoError(t, err)
	require.EqualValues(t, 100, report.Cleaned)
}

// A pause ends a full cleanup before what cannot be undone, and in the midst of it.
func TestAPauseEndsAFullCleanup(t *testing.T) {
	w, p := orphans(t, 0)
	w.Policy.Grace = time.Millisecond
	p.scanErr = ErrPaused
	report, err := w.FullCleanup(t.Context(), farTerm, 24*time.Hour, Cleanup{Trigger: ByCLI})
	require.ErrorIs(t, err, ErrPaused)
	require.Contains(t, report.Errors, PartOrphaned)
	require.Zero(t, p.removed)

	p.scanErr = nil
	c := Cleanup{Trigger: ByCLI, MayGoOn: func(context.Context) error { return ErrPaused }} // since it began
	_, err = w.FullCleanup(t.Context(), farTerm, 24*time.Hour, c)
	require.ErrorIs(t, err, ErrPaused)
	require.Zero(t, p.removed)
	report, err = w.FullCleanup(t.Context(), farTerm, 24*time.Hour, Cleanup{Trigger: ByCLI})
	require.NoError(t, err)
	require.NoError(t, report.Failed())
	require.EqualValues(t, 3, p.removed)
}

func TestOneCleanupAtATime(t *testing.T) {
	w, _ := orphans(t, 0)
	require.True(t, w.begin())
	_, err := w.CleanupOrphaned(t.Context(), farTerm, Cleanup{})
	require.ErrorIs(t, err, ErrBusy)
	_, err = w.CleanupExpired(t.Context(), farTerm, 24*time.Hour, Cleanup{})
	require.ErrorIs(t, err, ErrBusy)
	_, err = w.CleanupDatabase(t.Context(), Cleanup{})
	require.ErrorIs(t, err, ErrBusy)
	_, err = w.FullCleanup(t.Context(), farTerm, 24*time.Hour, Cleanup{})
	require.ErrorIs(t, err, ErrBusy)
	w.finish()
	_, err = w.CleanupExpired(t.Context(), farTerm, 24*time.Hour, Cleanup{})
	require.NoError(t, err)
}

// A worker asks with the task's name: absence says nothing of a task that no binding
// names, and of a row whose insert may be under way (R4, R6, R7).
func TestCheckOfAnyTask(t *testing.T) {
	named := Binding{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true, Names: []string{"app.scan"}}
	w := newWorld(t, named)
	ask := func(id, name string) CheckReport {
		t.Helper()
		reports, err := w.Check(t.Context(), []CheckQuestion{{TaskID: id, Row: RowQuery{Name: name}}})
		require.NoError(t, err)
		return reports[0]
	}
	require.Nil(t, ask("a", "app.send_email").Exists)
	w.running = []Transaction{{ID: "3/1"}}
	report := ask("a", "app.scan")
	require.False(t, *report.Exists)
	require.True(t, report.Pending, "the grace")
	w.clock = w.clock.Add(time.Minute)
	require.True(t, ask("a", "app.scan").Pending, "a transaction is open that was when it was first asked for")
	w.running = nil
	ask("a", "app.scan") // prepared transactions are told from the next look on
	report = ask("a", "app.scan")
	require.False(t, report.Pending)
	require.Equal(t, Absent, report.Evidence)

	w.Memory.Add(TaskSubject("b"))
	report = ask("b", "app.scan")
	require.Equal(t, Deleted, report.Evidence)
	require.False(t, report.Pending)
	require.Nil(t, ask("b", "app.send_email").Exists)

	w = newWorld(t, scans) // any name
	require.Nil(t, ask("a", "app.scan").Exists, "R7")
	require.False(t, *ask("a", "").Exists)
	w.Memory.Add(TaskSubject("b"))
	require.Equal(t, Deleted, ask("b", "app.scan").Evidence)
}
