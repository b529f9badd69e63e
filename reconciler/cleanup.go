package reconciler

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// CleanupOrphaned makes one pass now, looks again at what it suspects after the
// grace, and removes what has no row, whatever policy.remove says: each by the same
// judgement as any event's. What a rule holds is told by the rule. A dry run tells
// what the pass suspects, and waits for nothing.
//
// The error is a *GuardedError where the guard held all weak evidence, ErrPaused where
// an operator has paused removals, ErrBusy while another cleanup runs here, ErrStale
// where a new leader took over, or a store's; the report tells what was done until then.
func (r *Reconciler) CleanupOrphaned(ctx context.Context, term Term, c Cleanup) (OrphanReport, error) {
	report := newOrphanReport(c)
	if !r.begin() {
		return report, ErrBusy
	}
	defer r.finish()
	err := r.cleanOrphaned(ctx, term, c, &report)
	return report, err
}

func newOrphanReport(c Cleanup) OrphanReport {
	return OrphanReport{Tasks: []TaskInfo{}, Removed: map[ArtifactKind]int64{}, Held: map[HeldBy]int64{}, DryRun: c.DryRun}
}

// begin takes the right to clean; only one at a time has it.
func (r *Reconciler) begin() bool {
	select {
	case r.cleaning <- struct{}{}:
		return true
	default:
		return false
	}
}

func (r *Reconciler) finish() { <-r.cleaning }

func (r *Reconciler) cleanOrphaned(ctx context.Context, term Term, c Cleanup, report *OrphanReport) error {
	for {
		var works []*Work
		before := report.Cleaned
		stop := r.tellPass(ctx, c)
		out, err := r.resync(ctx, term, passOptions{reason: c.reason(), dry: c.DryRun, force: c.Force, submit: func(_ context.Context, suspects []Suspect) error {
			for _, s := range suspects {
				report.suspect(s, c.DryRun)
				if !c.DryRun {
					works = append(works, s.work(c, r.Now()))
				}
			}
			return nil
		}})
		stop()
		if err != nil {
			return err
		}
		if err := r.settle(ctx, term, c, works, report); err != nil {
			return err
		}
		if out.guarded > 0 {
			report.Held[HeldByGuard] += out.guarded
			report.Guard = out.guard
		}
		if report.Guard == "" && report.Held[HeldByGuard] > 0 { // it has tripped since the pass
			if t := r.Guard.Tripped(); t != nil {
				report.Guard = t.Reason
			}
		}
		if report.Held[HeldByGuard] > 0 {
			return &GuardedError{Reason: report.Guard}
		}
		// What is held fills a pass again and again; then the rest waits for the rules.
		if !out.more || c.DryRun || report.Cleaned == before {
			report.Truncated = report.Truncated || out.more
			return nil
		}
	}
}

func (s Suspect) work(c Cleanup, now time.Time) *Work {
	w := &Work{Subject: s.Subject, Spelling: s.Spelling, Trigger: c.Trigger, Seen: now, Accepted: s.Accepted, Explicit: !c.Scheduled, Cause: s.Cause}
	if s.Message != nil {
		w.See(s.Message)
	}
	return w
}

// suspect lists what a pass has found, as far as there is room; counted makes it one
// of those that would be removed.
func (o *OrphanReport) suspect(s Suspect, counted bool) {
	if counted {
		o.Cleaned++
	}
	if len(o.Tasks) == MaxListed {
		o.Truncated = true
		return
	}
	info := TaskInfo{ID: s.Subject.ID, Kind: ResultKey, Table: s.Table, Orphaned: true, Verdict: VerdictOrphaned, Evidence: Absent, Reason: "no such row"}
	switch {
	case s.Subject.Kind.OfMessages():
		info.Kind = QueuedMessage
		if s.Message != nil {
			info.Kind, info.Name = s.Message.Place.Kind, s.Message.Name
		}
	case s.Subject.Kind == Row:
		info.Kind = CompanionKey
	}
	if s.Deleted {
		info.Evidence, info.Reason = Deleted, "the row was deleted"
	}
	o.Tasks = append(o.Tasks, info)
}

// tellPass tells how far the pass is, now and then, until it is stopped.
func (r *Reconciler) tellPass(ctx context.Context, c Cleanup) (stop func()) {
	if c.Progress == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				c.tell(r.passProgress())
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (r *Reconciler) passProgress() Progress {
	p := r.Progress()
	switch p.Stage {
	case stageScan:
		done, total := r.Scanner.Scanned()
		return Progress{Stage: p.Stage, Done: done, Total: total}
	case stageSweep:
		return Progress{Stage: p.Stage, Done: p.Messages}
	}
	return Progress{Stage: p.Stage}
}

// maxFailures in a row of one work end a cleanup with its error: some 10 s.
const maxFailures = 8

// job is one work of a cleanup, and when it is due.
type job struct {
	*Work
	due      time.Time
	failures int
	held     HeldBy
	// removed: something of it was, in this attempt or an earlier one.
	removed bool
}

// settle reconciles works until each is removed, or held by a rule that waiting does
// not end.
func (r *Reconciler) settle(ctx context.Context, term Term, c Cleanup, works []*Work, report *OrphanReport) error {
	jobs := make([]*job, len(works))
	for i, w := range works {
		jobs[i] = &job{Work: w}
	}
	began, total := r.Now(), int64(len(jobs))
	for len(jobs) > 0 {
		now := r.Now()
		next := now.Add(time.Hour)
		var late []*job
		for _, j := range jobs {
			if j.due.After(now) {
				late = append(late, j)
			}
		}
		for _, batch := range dueBatches(jobs, now) {
			again, err := r.attempt(ctx, term, batch, report)
			late = append(late, again...)
			if err != nil {
				return errors.Join(err, ctx.Err())
			}
			c.tell(Progress{Stage: "removing", Done: report.Cleaned, Total: total})
		}
		jobs = late
		if len(jobs) == 0 {
			break
		}
		if c.Patience > 0 && r.Now().Sub(began) > c.Patience+r.Policy.Grace {
			for _, j := range jobs {
				report.Held[j.held]++
			}
			return nil
		}
		for _, j := range jobs {
			if j.due.Before(next) {
				next = j.due
			}
		}
		c.tell(Progress{Stage: waitingFor(jobs), Done: total - int64(len(jobs)), Total: total})
		if err := pause(ctx, next.Sub(r.Now())); err != nil {
			return err
		}
	}
	return nil
}

// waitingFor says what most jobs wait for.
func waitingFor(jobs []*job) string {
	count := map[HeldBy]int{}
	most := jobs[0].held
	for _, j := range jobs {
		if count[j.held]++; count[j.held] > count[most] {
			most = j.held
		}
	}
	return "waiting (" + string(most) + ")"
}

// dueBatches are the due jobs, those of messages apart: they are judged by sweeps.
func dueBatches(jobs []*job, now time.Time) (batches [][]*job) {
	var keys, messages []*job
	for _, j := range jobs {
		switch {
		case j.due.After(now):
		case j.Subject.Kind.OfMessages():
			messages = append(messages, j)
		default:
			keys = append(keys, j)
		}
	}
	for _, all := range [][]*job{keys, messages} {
		for len(all) > 0 {
			n := min(lookBatch, len(all))
			batches = append(batches, all[:n])
			all = all[n:]
		}
	}
	return batches
}

// attempt reconciles a batch, and gives the jobs that have to come back.
func (r *Reconciler) attempt(ctx context.Context, term Term, batch []*job, report *OrphanReport) (again []*job, err error) {
	works := make([]*Work, len(batch))
	for i, j := range batch {
		works[i] = j.Work
	}
	verdicts, err := r.Reconcile(ctx, term, works)
	var ends error // the others of the batch count all the same
	for i, v := range verdicts {
		j := batch[i]
		for kind, n := range v.Removed {
			report.Removed[kind] += int64(n)
			j.removed = true
		}
		after, comes := v.Again()
		switch {
		case v.Outcome == "":
		case comes:
			if j.failures++; v.Outcome != OutcomeError {
				j.failures = 0
			}
			j.held, j.due = v.HeldBy, r.Now().Add(after)
			switch {
			case v.HeldBy == HeldByPause:
				ends = ErrPaused
			case j.failures >= maxFailures:
				ends = fmt.Errorf("reconcile: %w", v.Err)
			}
			again = append(again, j)
		case j.removed:
			report.Cleaned++
		case v.HeldBy != HeldByNothing:
			report.Held[v.HeldBy]++
		}
	}
	for _, err := range []error{err, ends, ctx.Err()} {
		if err != nil {
			return nil, err
		}
	}
	return again, nil
}
