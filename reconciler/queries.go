package reconciler

// TaskPage is one page of what Redis holds.
type TaskPage struct {
	Tasks []TaskInfo `json:"tasks"`
	// Count of the tasks on this page.
	Count int `json:"count"`
	// OrphanedOnly: tasks whose row exists, or of which nothing is known, were left out.
	OrphanedOnly bool `json:"orphaned_only"`
	// NextCursor leads to the next page; "" on the last one. A page may be empty and not
	// the last.
	NextCursor string `json:"next_cursor"`
}

// RowQuery is what a caller knows of a task's row, where the task's id alone does
// not lead to it. All of it is optional.
type RowQuery struct {
	// Table is schema.table of a binding.
	Table string
	// Key is the row's key, as text.
	Key string
	// Name is the task's name, where the answer decides whether a task of any name runs:
	// absence is then no evidence without the binding's names (R6, R7).
	Name string
}

// CheckReport answers whether the row of a task exists: may the task run?
type CheckReport struct {
	TaskID string `json:"task_id"`
	// Exists is nil where it cannot be told (no binding fits, or a store is in doubt).
	Exists *bool `json:"exists"`
	// Evidence is why the row is believed gone; "" where it is not.
	Evidence Evidence `json:"evidence,omitempty"`
	// Pending: it is not there, and its insert may be under way: since it was first asked
	// for, the grace has not passed, or a transaction of then is still open (R4).
	Pending bool `json:"pending,omitempty"`
	// Table and Key are the row, where they are known.
	Table string `json:"table,omitempty"`
	Key   string `json:"key,omitempty"`
	// Reason is for people.
	Reason string `json:"reason"`
}

// InputError says that what was asked for cannot be: the name of the parameter, and
// what is wrong with it.
type InputError struct{ Parameter, Reason string }

func (e *InputError) Error() string { return e.Parameter + ": " + e.Reason }

// InitializeReport tells of a pass that was asked for.
type InitializeReport struct {
	// Resynced: it was done in time.
	Resynced bool `json:"resynced"`
}
