package reconciler

import (
	"context"
	"fmt"
	"time"
)

// remove takes away the keys of tasks and rows.
func (r *Reconciler) remove(ctx context.Context, term Term, all []*unit, verdicts []Verdict, spans []*workSpan) error {
	var units []*unit
	var removals []Removal
	for _, u := range all {
		if u.decision.Outcome == OutcomeRemoved && !u.work.Subject.Kind.OfMessages() {
			units = append(units, u)
			removals = append(removals, Removal{Subject: u.look.Subject, Artifacts: u.decision.Remove, Record: r.record(u, spans[u.of], r.Now()), Looked: u.looked})
		}
	}
	if len(units) == 0 {
		return nil
	}
	began := r.Now()
	results, err := r.Artifacts.Remove(ctx, term.Epoch, removals)
	r.telemetry.step(spansOf(units, spans), r.telemetry.steps.remove, began, err)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	at := r.Now()
	for j, u := range units {
		res := results[j]
		v := Verdict{Decision: u.decision, Removed: res.Count}
		if total(res.Count) > 0 {
			v.At = at
		}
		if res.Status == Removed && total(res.Count) == 0 {
			v.Outcome, v.Reason = OutcomeNoop, "it has gone by itself"
		}
		if !v.refused(res.Status) {
			err = ErrStale
			continue
		}
		u.done = true
		verdicts[u.of].merge(v)
	}
	return err
}

// pausedRetry is how often what a pause holds is tried: a resume hurries it anyway.
const pausedRetry = time.Minute

// refused puts into a verdict why a script did not do as it was told. It is false
// where another leader has taken over: then there is no verdict.
func (v *Verdict) refused(status RemoveStatus) bool {
	switch status {
	case Changed:
		v.Outcome, v.HeldBy, v.After = OutcomeDeferred, HeldByChange, 0
		v.Reason = "it was written again meanwhile"
	case Late:
		v.Outcome, v.HeldBy, v.After = OutcomeDeferred, HeldByChange, lookAgain
		v.Reason = "its row was read too long ago"
	case Paused:
		v.Outcome, v.HeldBy, v.After = OutcomeDeferred, HeldByPause, pausedRetry
		v.Reason = "removals are paused"
	case Held:
		v.Outcome, v.HeldBy = OutcomeReported, HeldByRestore
		v.Reason = "restored by an operator"
	case Stale:
		return false
	}
	return true
}

func spansOf(units []*unit, spans []*workSpan) []*workSpan {
	out := make([]*workSpan, len(units))
	for i, u := range units {
		out[i] = spans[u.of]
	}
	return out
}

func total(counts map[ArtifactKind]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func (r *Reconciler) record(u *unit, span *workSpan, now time.Time) Record {
	w := u.work
	rec := Record{Evidence: u.decision.Evidence, Trigger: w.Trigger, Removed: now, TraceID: span.traceID()}
	for _, a := range u.decision.Remove {
		rec.Ended = rec.Ended || a.Ended
	}
	switch n := len(w.Deletions); {
	case n > 0:
		del := w.Deletions[n-1]
		rec.Table, rec.Key = r.Bindings[del.Binding].Name(), del.Key
		rec.LSN, rec.XID, rec.CommitTime = del.Commit.LSN.String(), del.Commit.XID, del.Commit.Time
	case u.look.Subject.Kind == Row:
		rec.Table, rec.Key = r.Bindings[u.look.Subject.Binding].Name(), u.look.Subject.ID
	case len(u.look.Refs) > 0:
		rec.Table, rec.Key = r.Bindings[u.look.Refs[0].Binding].Name(), u.look.Refs[0].Key
	}
	return rec
}
