package reconciler

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// CheckQuestion asks about the row of a task.
type CheckQuestion struct {
	TaskID string
	Row    RowQuery
}

// Check looks at the rows of tasks now: by their ids, by the rows that the questions
// name, by what messages of them told, and by the records of removals. It reads a
// committed state: a row whose insert has not been committed is absent, and Pending
// as long as that may be so. What R6 and R7 leave in doubt is answered with null.
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
	var absent []*CheckReport
	for i, row := range answer.States {
		if !named[i] {
			reports[i].Reason = "no binding goes by arguments, or none is of the table that was named"
			continue
		}
		r.conclude(&reports[i], questions[i].Row.Name, looks[i], found[i], row)
		if reports[i].Evidence == Absent {
			absent = append(absent, &reports[i])
		}
	}
	return reports, r.pendingChecks(ctx, absent)
}

func (r *Reconciler) conclude(report *CheckReport, name string, look Look, found Found, row RowState) {
	if report.Table == "" && row.Candidates != 0 {
		report.Table = r.ownerName(row.Candidates)
	}
	exists := row.Exists
	if exists {
		report.Exists, report.Reason = &exists, "the row exists"
		return
	}
	// The task is what a message of it would be, or a result where no name is given.
	task := Artifact{Kind: ResultKey, Name: namesOf(found)}
	if name != "" {
		task = Artifact{Kind: QueuedMessage, Name: name, Message: &Message{}}
	} else if seen, ok := r.seen.Task(look.Subject.ID); ok && task.Name == "" {
		task.Name = seen.Name
	}
	s := r.attribution(look.Subject, Found{Artifacts: []Artifact{task}, Deleted: found.Deleted}, row)
	s.Remembered = r.remembers(look)
	ours, unknown := attributable(s)
	switch {
	case len(ours) > 0 && (s.Remembered || found.Deleted):
		report.Exists, report.Evidence, report.Reason = &exists, Deleted, "the row was deleted"
	case len(ours) > 0:
		report.Exists, report.Evidence, report.Reason = &exists, Absent, "no such row"
	case r.byArgument && row.Argued == 0:
		report.Reason = "its arguments lead to its row, and nothing tells them: give the row's key"
	case unknown > 0:
		report.Reason = "no row, but nothing tells that this is a task of a bound table (names, exclusive)"
	default:
		report.Reason = "nothing tells which row is this task's"
	}
}

const (
	// maxPending is how many rows are remembered that were not there, and for how long.
	maxPending = 10_000
	pendingAge = time.Hour
)

// pendings are rows that were asked for and not there, with a fence around the moment
// of the first question.
type pendings struct {
	mu   sync.Mutex
	rows map[string]*Fence
}

// pendingChecks tells which absent rows may be on their way.
func (r *Reconciler) pendingChecks(ctx context.Context, absent []*CheckReport) error {
	if len(absent) == 0 {
		return nil
	}
	running, err := r.Rows.Running(ctx)
	if err != nil {
		return fmt.Errorf("list running transactions: %w", err)
	}
	now := r.Now()
	p := &r.pendings
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, report := range absent {
		of := report.TaskID + "\x00" + report.Table + "\x00" + report.Key
		fence, ok := p.rows[of]
		if ok {
			fence.Observe(running)
		} else {
			p.makeRoom(now)
			fence = NewFence(now, running)
			p.rows[of] = fence
		}
		age := now.Sub(fence.Taken)
		open := !fence.Ended() && (r.Policy.InflightLimit == 0 || age < r.Policy.InflightLimit)
		if report.Pending = age < r.Policy.Grace || open; report.Pending {
			report.Reason = "no such row, but its insert may not be committed yet"
		}
	}
	return nil
}

// makeRoom forgets what was first asked for long ago, or all where that is not enough:
// then those wait once more.
func (p *pendings) makeRoom(now time.Time) {
	if p.rows == nil {
		p.rows = map[string]*Fence{}
	}
	if len(p.rows) < maxPending {
		return
	}
	for of, fence := range p.rows {
		if now.Sub(fence.Taken) > pendingAge {
			delete(p.rows, of)
		}
	}
	if len(p.rows) >= maxPending {
		clear(p.rows)
	}
}
