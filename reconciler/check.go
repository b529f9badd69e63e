package reconciler

import (
	"context"
	"fmt"
)

// CheckQuestion asks about the row of a task.
type CheckQuestion struct {
	TaskID string
	Row    RowQuery
}

// Check looks at the rows of tasks now: by their ids, by the rows that the questions
// name, by what messages of them told, and by the records of removals. It reads a
// committed state: a row whose insert has not been committed does not exist yet.
func (r *Reconciler) Check(ctx context.Context, questions []CheckQuestion) ([]CheckReport, error) {
	reports := make([]CheckReport, len(questions))
	looks := make([]Look, len(questions))
	named := make([]bool, len(questions)) // no row that is named in vain
	for i, q := range questions {
		looks[i] = LookFor(TaskSubject(q.TaskID), q.TaskID)
		reports[i] = CheckReport{TaskID: q.TaskID, Key: q.Row.Key}
		named[i] = q.Row.Key == ""
		if named[i] {
			continue
		}
		for b, binding := range r.Bindings {
			if q.Row.Table == "" && binding.ByArgument() || q.Row.Table == binding.Name() {
				looks[i].Refs = append(looks[i].Refs, NewRowRef(b, q.Row.Key))
				reports[i].Table, named[i] = binding.Name(), true
			}
		}
	}
	found, err := r.Artifacts.Look(ctx, looks)
	if err != nil {
		return nil, fmt.Errorf("read artifacts: %w", err)
	}
	for i := range looks {
		looks[i].Refs = r.refsOf(&unit{work: &Work{}, look: looks[i], found: found[i]})
	}
	answer, err := r.Rows.Look(ctx, looks)
	if err != nil {
		return nil, fmt.Errorf("read rows: %w", err)
	}
	for i, row := range answer.States {
		r.conclude(&reports[i], looks[i], row, named[i], r.remembers(looks[i]) || found[i].Deleted)
	}
	return reports, nil
}

func (r *Reconciler) conclude(report *CheckReport, look Look, row RowState, named, deleted bool) {
	if report.Table == "" && row.Candidates != 0 {
		report.Table = r.ownerName(row.Candidates)
	}
	exists := row.Exists
	switch {
	case !named:
		report.Reason = "no binding goes by arguments, or none is of the table that was named"
	case row.Exists:
		report.Exists, report.Reason = &exists, "the row exists"
	case deleted:
		report.Exists, report.Evidence, report.Reason = &exists, Deleted, "the row was deleted"
	case len(look.Refs) == 0 && r.byArgument:
		report.Reason = "its arguments lead to its row, and nothing tells them: give the row's key"
	case row.Candidates == 0:
		report.Reason = "nothing tells which row is this task's"
	default:
		report.Exists, report.Evidence, report.Reason = &exists, Absent, "no such row"
	}
}
