package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// question is one statement of a lookup: which of ids does a column hold.
type question struct {
	column column
	ids    []string
	// of are the subjects that an id stands for.
	of map[string][]int
}

// Look reads which subjects have a row. All statements go in one batch, after the
// one that takes the answer's snapshot. A column is asked only for ids that its
// type can hold.
func (s *Store) Look(ctx context.Context, looks []reconciler.Look) (reconciler.RowLook, error) {
	answer, err := s.look(ctx, looks)
	if err != nil {
		s.doubt()
		if changed(err) {
			answer, err = s.look(ctx, looks)
		}
	}
	return answer, failed("look up rows", err)
}

func (s *Store) look(ctx context.Context, looks []reconciler.Look) (reconciler.RowLook, error) {
	known, err := s.known(ctx)
	if err != nil {
		return reconciler.RowLook{}, err
	}
	states := make([]reconciler.RowState, len(looks))
	questions, err := known.questions(looks, states)
	if err != nil {
		return reconciler.RowLook{}, err
	}
	b := &pgx.Batch{}
	for _, q := range questions {
		b.Queue(q.column.sql, q.column.values(q.ids)).Query(func(rows pgx.Rows) error { return q.answer(rows, states) })
	}
	snapshot, err := s.batch(ctx, b)
	if err != nil {
		return reconciler.RowLook{}, err
	}
	return reconciler.RowLook{Snapshot: snapshot, States: states}, nil
}

// questions cuts looks by the columns that can hold their ids, and notes in states
// which bindings those are.
func (c *catalog) questions(looks []reconciler.Look, states []reconciler.RowState) ([]question, error) {
	var all []question
	for b, t := range c.tables {
		key := question{column: t.key}
		for i, l := range looks {
			s := l.Subject
			if s.Kind == reconciler.Task && t.binding.CeleryID || s.Kind == reconciler.Row && s.Binding == b {
				if key.ask(i, l) {
					states[i].Candidates = states[i].Candidates.With(b)
					states[i].Keyed = states[i].Keyed.With(b)
				}
			}
			for _, ref := range l.Refs {
				if ref.Binding == b && key.ask(i, ref.Look()) {
					states[i].Candidates = states[i].Candidates.With(b)
					states[i].Keyed = states[i].Keyed.With(b)
					states[i].Argued = states[i].Argued.With(b)
				}
			}
		}
		all = append(all, key)
		for _, col := range t.columns {
			q := question{column: col}
			for i, l := range looks {
				if l.Subject.Kind == reconciler.Task && q.ask(i, l) {
					states[i].Candidates = states[i].Candidates.With(b)
				}
			}
			all = append(all, q)
		}
	}
	for _, l := range looks {
		if l.Subject.Kind == reconciler.Row && (l.Subject.Binding < 0 || l.Subject.Binding >= len(c.tables)) {
			return nil, fmt.Errorf("no binding %d", l.Subject.Binding)
		}
	}
	asked := all[:0]
	for _, q := range all {
		if len(q.ids) > 0 {
			asked = append(asked, q)
		}
	}
	return asked, nil
}

// ask adds the spellings of a subject, if the column can hold any.
func (q *question) ask(subject int, l reconciler.Look) bool {
	ids := q.column.spellings(l)
	for _, id := range ids {
		if q.of == nil {
			q.of = map[string][]int{}
		}
		subjects, known := q.of[id]
		if !known {
			q.ids = append(q.ids, id)
		}
		q.of[id] = append(subjects, subject)
	}
	return len(ids) > 0
}

func (q *question) answer(rows pgx.Rows, states []reconciler.RowState) error {
	defer rows.Close()
	for rows.Next() {
		value := rows.RawValues()[0]
		subjects, ok := q.of[string(value)]
		if !ok {
			// The server takes as equal what we do not: nothing of this is certain.
			return fmt.Errorf("column %s gave %q, which was not asked for", q.column.name, value)
		}
		for _, i := range subjects {
			states[i].Exists = true
		}
	}
	return rows.Err()
}

// EmptyTables are the bindings whose table has no row.
func (s *Store) EmptyTables(ctx context.Context) (reconciler.BindingSet, error) {
	var empty reconciler.BindingSet
	b := &pgx.Batch{}
	for i, binding := range s.options.Bindings {
		b.Queue("SELECT NOT EXISTS (SELECT 1 FROM " + qualified(binding) + ")").QueryRow(func(row pgx.Row) error {
			var none bool
			err := row.Scan(&none)
			if none {
				empty = empty.With(i)
			}
			return err
		})
	}
	if _, err := s.batch(ctx, b); err != nil {
		s.doubt()
		return 0, failed("look for empty tables", err)
	}
	return empty, nil
}

// parseSnapshot reads pg_snapshot's text: xmin:xmax:xip,xip,…
func parseSnapshot(text string) (snapshot reconciler.Snapshot, err error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return snapshot, fmt.Errorf("snapshot %q", text)
	}
	if snapshot.Xmin, err = strconv.ParseUint(parts[0], 10, 64); err != nil {
		return snapshot, fmt.Errorf("snapshot %q: %w", text, err)
	}
	if snapshot.Xmax, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return snapshot, fmt.Errorf("snapshot %q: %w", text, err)
	}
	if parts[2] == "" {
		return snapshot, nil
	}
	for _, id := range strings.Split(parts[2], ",") {
		xid, err := strconv.ParseUint(id, 10, 64)
		if err != nil {
			return reconciler.Snapshot{}, fmt.Errorf("snapshot %q: %w", text, err)
		}
		snapshot.Running = append(snapshot.Running, xid)
	}
	return snapshot, nil
}
