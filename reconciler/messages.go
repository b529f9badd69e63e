package reconciler

import (
	"context"
	"fmt"
	"strings"
)

// maxFound bounds, in bytes, the messages that one sweep holds; what is over it
// is found by the next. One is held however large it is.
const maxFound = 64 << 20

// findMessages looks for the messages of works. Those that would not be removed by
// what is known of them, or wait for transactions still, are judged on that; one sweep
// over the broker serves the rest.
func (r *Reconciler) findMessages(ctx context.Context, term Term, works []*Work, spans []*workSpan) ([]*unit, error) {
	var known, rest []*unit
	for i, w := range works {
		u := &unit{of: i, work: w, look: Look{Subject: w.Subject.Owner(), Spelling: w.Spelling}}
		if !w.waits() && (len(w.Deletions) > 0 || len(w.Messages) == 0) {
			rest = append(rest, u)
			continue
		}
		for _, m := range w.Messages {
			u.found.Artifacts = append(u.found.Artifacts, messageArtifact(m))
		}
		known = append(known, u)
	}
	if err := r.lookTasks(ctx, works, known, spans); err != nil {
		return nil, err
	}
	units := known[:0]
	for _, u := range known {
		u.work.noticeMessages(u.found.Artifacts, r.Now())
		d := Decide(r.situation(term, u, r.Now()))
		if d.Outcome == OutcomeRemoved || len(u.work.Deletions) > 0 && d.HeldBy != HeldByTransactions {
			rest = append(rest, &unit{of: u.of, work: u.work, look: Look{Subject: u.look.Subject, Spelling: u.look.Spelling}})
			continue
		}
		units = append(units, u)
	}
	if len(rest) == 0 {
		return units, nil
	}
	swept, err := r.sweepFor(ctx, rest, spans)
	if err != nil {
		return nil, err
	}
	if err := r.lookTasks(ctx, works, swept, spans); err != nil {
		return nil, err
	}
	return append(units, swept...), nil
}

// sweepFor finds the messages of these tasks and rows, and gives a unit for each
// task: also where nothing was found of it, since it may run.
func (r *Reconciler) sweepFor(ctx context.Context, wanted []*unit, spans []*workSpan) ([]*unit, error) {
	s := search{r: r, tasks: map[string]*unit{}, rows: map[Subject]*unit{}, ofRow: map[rowTask]*unit{}}
	for _, u := range wanted {
		if u.look.Subject.Kind == Row {
			s.row(u)
		} else {
			s.tasks[u.look.Subject.ID] = u
			s.units = append(s.units, u)
		}
	}
	began := r.Now()
	err := r.Messages.Sweep(ctx, s.take)
	r.telemetry.step(spansOf(wanted, spans), r.telemetry.steps.sweep, began, err)
	if err != nil {
		return nil, fmt.Errorf("sweep over messages: %w", err)
	}
	for _, u := range wanted {
		u.work.Messages = u.work.Messages[:0]
	}
	for _, u := range s.units {
		for _, a := range u.found.Artifacts {
			u.work.See(a.Message.Bare())
		}
	}
	return s.units, nil
}

// search collects what a sweep yields of wanted tasks and rows.
type search struct {
	r     *Reconciler
	tasks map[string]*unit
	rows  map[Subject]*unit
	ofRow map[rowTask]*unit
	units []*unit
	bytes int
}

// rowTask is a task of a wanted row.
type rowTask struct {
	row  Subject
	task string
}

// row wants the messages of all tasks of a row; those that were seen earlier may be
// in a worker's hands now.
func (s *search) row(u *unit) {
	ref := RowRef{u.look.Subject.Binding, u.look.Subject.ID}
	s.rows[u.look.Subject] = u
	for _, id := range s.r.seen.TasksOf(ref) {
		s.unitOf(ref, u, id)
	}
}

func (s *search) unitOf(ref RowRef, of *unit, id string) *unit {
	key := rowTask{ref.Subject(), id}
	u, ok := s.ofRow[key]
	if !ok {
		u = &unit{of: of.of, work: of.work, look: Look{Subject: TaskSubject(id), Refs: []RowRef{ref}}}
		s.ofRow[key] = u
		s.units = append(s.units, u)
	}
	return u
}

func (s *search) take(batch []Message) error {
	for i := range batch {
		m := &batch[i]
		s.r.noteName(m.Name)
		s.r.seen.Add(m)
		id := CanonicalID(m.ID)
		if u, ok := s.tasks[id]; ok {
			u.spell(m)
			s.keep(u, m)
		}
		for _, ref := range m.Refs {
			if row, ok := s.rows[ref.Subject()]; ok {
				u := s.unitOf(ref, row, id)
				u.spell(m)
				s.keep(u, m)
			}
		}
	}
	return nil
}

// spell notes how a message writes its id, where that is not as usual.
func (u *unit) spell(m *Message) {
	if u.look.Spelling == "" {
		u.look.Spelling = m.look().Spelling
	}
}

// keep adds a message to what was found, once: a sweep may meet it again.
func (s *search) keep(u *unit, of *Message) {
	m := new(*of) // not the others of its batch
	for i := range u.found.Artifacts {
		if had := u.found.Artifacts[i].Message; had.Place.Tag == m.Place.Tag && had.Place.Kind == m.Place.Kind {
			u.found.Artifacts[i] = messageArtifact(m) // the newer place
			return
		}
	}
	size := len(m.Place.Envelope) + len(m.Place.Held)
	if s.bytes > 0 && s.bytes+size > maxFound {
		u.more = append(u.more, messageArtifact(&Message{Place: Place{Tag: strings.Clone(m.Place.Tag)}}))
		return
	}
	s.bytes += size
	u.found.Artifacts = append(u.found.Artifacts, messageArtifact(m))
}

// lookTasks reads what is known of tasks whose messages were found, and their rows.
func (r *Reconciler) lookTasks(ctx context.Context, works []*Work, units []*unit, spans []*workSpan) error {
	if len(units) == 0 {
		return nil
	}
	began := r.Now()
	found, err := r.Artifacts.Look(ctx, looksOf(units))
	r.telemetry.step(spansOf(units, spans), r.telemetry.steps.artifacts, began, err)
	if err != nil {
		return fmt.Errorf("read artifacts: %w", err)
	}
	for i, u := range units {
		messages, ended := u.found.Artifacts, found[i].Ended
		for _, a := range found[i].Artifacts {
			ended = ended || a.Ended
		}
		u.found = found[i]
		u.found.Artifacts = append(messages, found[i].Artifacts...)
		u.look.Refs = r.refsOf(u)
		u.found.Artifacts = messages // the keys are another work's
		// R9: not one that was taken out of a queue, unless another message of it was missed.
		_, missed := u.work.missed[u.look.Subject]
		u.mayRun = !ended && !found[i].Revoked && (len(messages) > 0 || missed || !found[i].Taken)
	}
	return r.lookRows(ctx, works, units, spans)
}
