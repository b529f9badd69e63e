package reconciler

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// unit is what is judged as one: a task, or the companion keys of a row. A work has
// one, but for the messages of a row, which are of any number of tasks.
type unit struct {
	// of is the index of its work.
	of   int
	work *Work
	// look is of the task or the row; its Refs are all that are known.
	look  Look
	found Found
	row   RowState
	// looked is when the row was read.
	looked time.Time
	// sees: every deletion is visible to the rows; prompt: all were committed just now.
	sees, prompt bool
	// mayRun is of a task whose messages are looked at.
	mayRun bool
	// more are those of its messages, by their tags alone, that a sweep had no room for.
	more []Artifact

	situation Situation
	decision  Decision
	// late: its record tells what came after this look.
	late bool
	// done: what was decided has been carried out.
	done bool
}

// look reads the artifacts of the batch, then the rows of those that have any.
func (r *Reconciler) look(ctx context.Context, works []*Work, spans []*workSpan) ([]*unit, error) {
	units := make([]*unit, len(works))
	for i, w := range works {
		units[i] = &unit{of: i, work: w, look: Look{Subject: w.Subject, Spelling: w.Spelling}}
	}
	began := r.Now()
	found, err := r.Artifacts.Look(ctx, looksOf(units))
	r.telemetry.step(spans, r.telemetry.steps.artifacts, began, err)
	if err != nil {
		return nil, fmt.Errorf("read artifacts: %w", err)
	}
	there := make([]*unit, 0, len(units))
	for i, u := range units {
		u.found = found[i]
		r.noteForeign(u.found)
		if len(u.found.Artifacts) > 0 {
			u.look.Refs = r.refsOf(u)
			r.exchangeSeen(u)
			there = append(there, u)
		}
	}
	return units, r.lookRows(ctx, works, there, spans)
}

func looksOf(units []*unit) []Look {
	looks := make([]Look, len(units))
	for i, u := range units {
		looks[i] = u.look
	}
	return looks
}

// lookRows reads the rows of units, and of the chords that they are in.
func (r *Reconciler) lookRows(ctx context.Context, works []*Work, units []*unit, spans []*workSpan) error {
	if len(units) == 0 {
		return nil
	}
	looks := looksOf(units)
	bodies := r.chordBodies(units)
	for _, b := range bodies {
		looks = append(looks, b.look)
	}
	began := r.Now()
	answer, err := r.Rows.Look(ctx, looks)
	r.telemetry.step(spansOf(units, spans), r.telemetry.steps.rows, began, err)
	if err != nil {
		return fmt.Errorf("read rows: %w", err)
	}
	for i, u := range units {
		u.row, u.looked = answer.States[i], began
		deletions := works[u.of].Deletions
		u.sees, u.prompt = true, len(deletions) > 0
		for _, d := range deletions {
			u.sees = u.sees && answer.Snapshot.Sees(d.Commit.XID)
			u.prompt = u.prompt && answer.Snapshot.At.Sub(d.Commit.Time) < min(promptWindow, r.Policy.Grace)
		}
	}
	for i, b := range bodies {
		b.artifact.Left = answer.States[len(units)+i].Exists || !b.deleted
	}
	return nil
}

// chordBody is what decides whether a chord's member may be removed: a chord whose
// body is of a deleted row too is not waited for by anybody.
type chordBody struct {
	look     Look
	artifact *Artifact
	deleted  bool
}

func (r *Reconciler) chordBodies(units []*unit) []chordBody {
	var bodies []chordBody
	if r.Policy.RemoveChords {
		return nil
	}
	for _, u := range units {
		for i := range u.found.Artifacts {
			a := &u.found.Artifacts[i]
			if a.Message == nil || !a.Message.InChord {
				continue
			}
			a.Left = true
			if b := a.Message.Body; b != nil {
				look := LookFor(TaskSubject(b.ID), b.ID)
				look.Refs = b.Refs
				bodies = append(bodies, chordBody{look, a, r.remembers(look) || r.deletes(u.work, look)})
			}
		}
	}
	return bodies
}

// deletes tells whether the deletions of a work are of the row of a task.
func (r *Reconciler) deletes(w *Work, l Look) bool {
	return slices.ContainsFunc(w.Deletions, func(d Deletion) bool {
		row := RowSubject(d.Binding, d.Key)
		return r.Bindings[d.Binding].CeleryID && row.ID == l.Subject.ID ||
			slices.ContainsFunc(l.Refs, func(ref RowRef) bool { return ref.Subject() == row })
	})
}

// remembers tells whether the deletion of a task, or of a row that it names, was seen.
func (r *Reconciler) remembers(l Look) bool {
	return r.Memory.Has(l.Subject) || slices.ContainsFunc(l.Refs, func(ref RowRef) bool { return r.Memory.Has(ref.Subject()) })
}

// refsOf gathers every row that a task is known to name: by its artifacts, by
// messages seen earlier, by what was deleted, and by the record of a removal.
func (r *Reconciler) refsOf(u *unit) []RowRef {
	if !r.byArgument || u.look.Subject.Kind != Task {
		return nil
	}
	refs := u.look.Refs
	add := func(more ...RowRef) {
		for _, ref := range more {
			if !slices.Contains(refs, ref) {
				refs = append(refs[:len(refs):len(refs)], ref)
			}
		}
	}
	for _, a := range u.found.Artifacts {
		add(a.Refs...)
	}
	if seen, ok := r.seen.Task(u.look.Subject.ID); ok {
		add(seen.Refs...)
	}
	for _, d := range u.work.Deletions {
		if r.Bindings[d.Binding].ByArgument() {
			add(NewRowRef(d.Binding, d.Key))
		}
	}
	for i, b := range r.Bindings {
		if b.ByArgument() && b.Name() == u.found.Table {
			key := u.found.Key
			if key == "" {
				key = u.look.Subject.ID
			}
			add(NewRowRef(i, key))
		}
	}
	return refs
}

// exchangeSeen remembers the rows that artifacts tell of, and gives those that do
// not tell their task's name the one that was seen.
func (r *Reconciler) exchangeSeen(u *unit) {
	if !r.byArgument || u.look.Subject.Kind != Task {
		return
	}
	seen, ok := r.seen.Task(u.look.Subject.ID)
	for i := range u.found.Artifacts {
		a := &u.found.Artifacts[i]
		if len(a.Refs) > 0 {
			r.seen.Note(u.look.Subject.ID, a.Name, a.Refs)
		}
		if ok && a.Name == "" {
			a.Name = seen.Name
		}
	}
}

func (r *Reconciler) noteForeign(f Found) {
	for _, a := range f.Artifacts {
		r.noteName(a.Name)
	}
}

// noteName takes a task's name for a sign of other tasks, where no binding has it.
func (r *Reconciler) noteName(name string) {
	if !r.foreign.Load() && ForeignName(r.Bindings, name) && !r.foreign.Swap(true) {
		r.Log.Info("other tasks share this place in Redis: results without a task name are only reported from now on",
			"name", name, "fix", "set exclusive: true for the binding if that is wrong")
	}
}

// attribution is a Situation of which only attributable is asked.
func (r *Reconciler) attribution(s Subject, f Found, row RowState) Situation {
	return Situation{Bindings: r.Bindings, Subject: s, Row: row, Found: f, Foreign: r.foreign.Load()}
}

func (r *Reconciler) names(set BindingSet) (names []string) {
	for i, b := range r.Bindings {
		if set.Has(i) {
			names = append(names, b.Name())
		}
	}
	return names
}
