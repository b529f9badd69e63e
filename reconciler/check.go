package reconciler

import (
	"context"
	"fmt"
)

// RowQuery names the row of a task where its id does not lead there (args:N,
// kwargs:K): by its key, and by the table where there are several bindings.
type RowQuery struct{ Table, Key string }

// CheckReport answers whether the row of a task exists, which a worker asks before it
// runs the task.
type CheckReport struct {
	TaskID string `json:"task_id"`
	// Exists is null where that cannot be told.
	Exists *bool `json:"exists"`
	// Evidence that it does not: deleted or absent.
	Evidence Evidence `json:"evidence,omitempty"`
	Table    string   `json:"table,omitempty"`
	Key      string   `json:"key,omitempty"`
	Reason   string   `json:"reason"`
}

// Check looks at the row of a task now: by its id, by the row that q names, by what
// messages of it told, and by the record of a removal. It reads a committed state:
// a row whose insert has not been committed does not exist yet.
func (r *Reconciler) Check(ctx context.Context, id string, q RowQuery) (CheckReport, error) {
	look := LookFor(TaskSubject(id), id)
	report := CheckReport{TaskID: id, Key: q.Key}
	if q.Key != "" {
		found := false
		for i, b := range r.Bindings {
			if q.Table == "" && b.ByArgument() || q.Table == b.Name() {
				look.Refs, found = append(look.Refs, NewRowRef(i, q.Key)), true
				report.Table = b.Name()
			}
		}
		if !found {
			report.Reason = "no binding is of table " + q.Table + ", or none goes by arguments"
			return report, nil
		}
	}
	found, err := r.Artifacts.Look(ctx, []Look{look})
	if err != nil {
		return report, fmt.Errorf("read artifacts: %w", err)
	}
	u := &unit{work: &Work{}, look: look, found: found[0]}
	look.Refs = r.refsOf(u)
	answer, err := r.Rows.Look(ctx, []Look{look})
	if err != nil {
		return report, fmt.Errorf("read rows: %w", err)
	}
	row := answer.States[0]
	if report.Table == "" && row.Candidates != 0 {
		report.Table = r.ownerName(row.Candidates)
	}
	exists := row.Exists
	switch gone := r.remembers(look) || found[0].Deleted; {
	case row.Exists:
		report.Exists, report.Reason = &exists, "the row exists"
	case gone:
		report.Exists, report.Evidence, report.Reason = &exists, Deleted, "the row was deleted"
	case len(look.Refs) == 0 && r.byArgument:
		report.Reason = "its arguments lead to its row, and nothing tells them: give the row's key"
	case row.Candidates == 0:
		report.Reason = "nothing tells which row is this task's"
	default:
		report.Exists, report.Evidence, report.Reason = &exists, Absent, "no such row"
	}
	return report, nil
}
