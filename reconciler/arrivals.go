package reconciler

import (
	"context"
	"fmt"
)

// MessageScan yields messages: a sweep over all, or what is new in a queue.
type MessageScan func(ctx context.Context, yield func([]Message) error) error

// LookAtMessages compares messages with the rows, and submits those that may be of
// a deleted row: each is then looked at again, and gated, like any event. With
// onlyDeleted it looks for tasks whose deletion was seen, and asks no database.
// It tells how many of these there were.
func (r *Reconciler) LookAtMessages(ctx context.Context, scan MessageScan, onlyDeleted bool, submit func(context.Context, []Suspect) error) (deleted int, err error) {
	l := &messageLook{r: r, onlyDeleted: onlyDeleted, unknown: map[string]int64{}}
	l.full = func(ctx context.Context) error {
		suspects := make([]Suspect, len(l.suspects))
		for i, s := range l.suspects {
			suspects[i] = Suspect{Look: s.Look}
			if s.deleted {
				deleted++
			}
		}
		l.suspects = l.suspects[:0]
		r.Guard.ObserveEvents(l.living, 0)
		l.living = 0
		return submit(ctx, suspects)
	}
	if err := l.run(ctx, scan); err != nil {
		return deleted, fmt.Errorf("look at messages: %w", err)
	}
	return deleted, l.full(ctx)
}

// messageLook finds the messages that may be orphans.
type messageLook struct {
	r           *Reconciler
	onlyDeleted bool
	// full is called when there are lookBatch suspects; nil where they are kept.
	full func(ctx context.Context) error

	messages []Message
	living   int
	suspects []confirmedSuspect
	// dropped and unknown are as those of a comparison.
	dropped int
	unknown map[string]int64
}

func (l *messageLook) run(ctx context.Context, scan MessageScan) error {
	err := scan(ctx, func(batch []Message) error {
		for i := range batch {
			if m := &batch[i]; l.wanted(m) {
				l.messages = append(l.messages, *m)
			}
		}
		if len(l.messages) < lookBatch {
			return nil
		}
		return l.compare(ctx)
	})
	if err != nil {
		return err
	}
	return l.compare(ctx)
}

// wanted tells whether a message may be of a bound row, or of a deleted one.
func (l *messageLook) wanted(m *Message) bool {
	r := l.r
	r.noteName(m.Name)
	r.seen.Add(m)
	if !l.onlyDeleted && !ForeignName(r.Bindings, m.Name) {
		return true
	}
	// One that is left for its chord is no news.
	return r.remembers(Look{Subject: m.task(), Refs: m.Refs}) && (!l.onlyDeleted || !m.InChord || r.Policy.RemoveChords)
}

// compare looks up the rows of what has been read, and the records of what has none.
func (l *messageLook) compare(ctx context.Context) error {
	r := l.r
	if len(l.messages) == 0 {
		return nil
	}
	looks := make([]Look, len(l.messages))
	for i := range l.messages {
		looks[i] = Look{Subject: l.messages[i].task(), Refs: l.messages[i].Refs}
	}
	answer, err := r.Rows.Look(ctx, looks)
	if err != nil {
		return fmt.Errorf("read rows: %w", err)
	}
	var absent []Look
	var of []int
	for i, s := range answer.States {
		if s.Exists {
			l.living++
			continue
		}
		absent, of = append(absent, looks[i]), append(of, i)
	}
	if len(absent) > 0 {
		found, err := r.Artifacts.Look(ctx, absent)
		if err != nil {
			return fmt.Errorf("read records: %w", err)
		}
		for j, i := range of {
			l.suspect(&l.messages[i], absent[j], found[j], answer.States[i])
		}
	}
	clear(l.messages)
	l.messages = l.messages[:0]
	if l.full != nil && len(l.suspects) >= lookBatch {
		return l.full(ctx)
	}
	return nil
}

func (l *messageLook) suspect(m *Message, look Look, record Found, row RowState) {
	r := l.r
	record.Artifacts = []Artifact{messageArtifact(m)}
	s := r.attribution(look.Subject, record, row)
	s.Remembered = r.remembers(look)
	ours, unknown := attributable(s)
	switch {
	case len(ours) == 0 && unknown > 0:
		l.unknown[r.ownerName(row.Candidates)]++
	case len(ours) == 0:
	case l.full == nil && len(l.suspects) >= maxSuspects:
		l.dropped++
	default:
		look.Subject, look.Message = look.Subject.Messages(), m.Bare()
		look.Refs = look.Message.Refs
		l.suspects = append(l.suspects, confirmedSuspect{Look: look, deleted: s.Remembered || record.Deleted, in: row.Candidates})
	}
}

// again looks once more at the rows of all suspects, so that a pass judges by what
// is so after everything was read. It leaves those without a row.
func (l *messageLook) again(ctx context.Context) error {
	kept := l.suspects[:0]
	for from := 0; from < len(l.suspects); from += lookBatch {
		page := l.suspects[from:min(from+lookBatch, len(l.suspects))]
		looks := make([]Look, len(page))
		for i, s := range page {
			looks[i] = Look{Subject: s.Subject.Owner(), Refs: s.Refs}
		}
		answer, err := l.r.Rows.Look(ctx, looks)
		if err != nil {
			return fmt.Errorf("read rows: %w", err)
		}
		for i, s := range page {
			if answer.States[i].Exists {
				l.living++
				continue
			}
			s.deleted = s.deleted || l.r.remembers(looks[i])
			kept = append(kept, s)
		}
	}
	l.suspects = kept
	return nil
}
