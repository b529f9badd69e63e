package reconciler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ChildTable is a table whose rows reference those of a bound table.
type ChildTable struct {
	// Binding is the one whose table is the parent.
	Binding       int
	Schema, Table string
	Columns       []ChildColumn
	// Skipped says why its rows are not to be cleaned, "" where they are.
	Skipped string
	// Err is what an operator has to mend before they can be.
	Err error
}

// Name is the table's qualified name.
func (t ChildTable) Name() string { return t.Schema + "." + t.Table }

// ChildColumn holds a value of a column of the parent.
type ChildColumn struct {
	Name, Parent string
	// Operator compares parent and child; Collation is that of the parent where the
	// child's is another, "" for none. Both as SQL writes them.
	Operator, Collation string
}

// Mark is a moment of one server's life, from which on rows are not touched.
type Mark struct {
	// Identity is that of the database; Started is when the server did: on any other,
	// or after a failover, transaction ids of before mean nothing.
	Identity, Started string
	// Before: every transaction with a lower id had ended.
	Before uint64
}

// ChildRemoval is how child rows without a parent are removed.
type ChildRemoval struct {
	// Mark: rows written since are left.
	Mark Mark
	// Limit is how many may be removed: what has been judged. 0 for any.
	Limit int64
	// AllowEmpty: the parent table may have no row.
	AllowEmpty bool
	// MayGoOn is asked before each batch, at most once a second; its error ends it. nil:
	// it always may.
	MayGoOn func(ctx context.Context) error
	// Progress is told how many have been removed, after each batch.
	Progress func(removed int64)
}

// Children are the child rows of the bound tables.
type Children interface {
	// ChildTables lists them, of all bindings.
	ChildTables(ctx context.Context) ([]ChildTable, error)
	// CountOrphans counts the rows that reference something, and those of them whose
	// parent does not exist.
	CountOrphans(ctx context.Context, t ChildTable) (rows, orphans int64, err error)
	// Mark notes this moment.
	Mark(ctx context.Context) (Mark, error)
	// RemoveOrphans removes rows whose parent does not exist. What was removed counts,
	// whatever the error. Where ctx ends, the batch under way is finished.
	RemoveOrphans(ctx context.Context, t ChildTable, how ChildRemoval) (removed int64, err error)
}

// foundChildren is a child table, and what was counted in it.
type foundChildren struct {
	ChildTable
	rows, orphans int64
}

// CleanupDatabase removes child rows whose parent row is gone. The guard judges
// before the first removal; its refusal is a *GuardedError. An error of one table is
// in the report, and the others go on. What is in the report was done, whatever the
// error. The caller asks whether removals are paused.
func (r *Reconciler) CleanupDatabase(ctx context.Context, c Cleanup) (DatabaseReport, error) {
	if !r.begin() {
		return DatabaseReport{Tables: map[string]int64{}, DryRun: c.DryRun}, ErrBusy
	}
	defer r.finish()
	return r.cleanDatabase(ctx, c)
}

func (r *Reconciler) cleanDatabase(ctx context.Context, c Cleanup) (DatabaseReport, error) {
	report := DatabaseReport{
		Tables: map[string]int64{}, Left: map[string]int64{},
		Skipped: map[string]string{}, Errors: map[string]string{}, DryRun: c.DryRun,
	}
	mark, identity, err := r.markChildren(ctx)
	if err != nil {
		return report, fmt.Errorf("clean up the database: %w", err)
	}
	if identity != "" && !c.DryRun {
		return report, &GuardedError{identity} // whatever c.Force says
	}
	found, err := r.countChildren(ctx, c, &report)
	if err != nil {
		return report, fmt.Errorf("clean up the database: %w", err)
	}
	doubt, err := r.doubtChildren(ctx, found)
	if err != nil {
		return report, fmt.Errorf("clean up the database: %w", err)
	}
	if identity != "" {
		doubt = identity
	}
	if c.DryRun {
		report.Guard = doubt
		for _, t := range found {
			report.Tables[t.Name()] += t.orphans
			report.Total += t.orphans
		}
		return report, nil
	}
	if doubt != "" && !c.Force {
		return report, &GuardedError{doubt}
	}
	if err := r.removeChildren(ctx, c, mark, found, &report); err != nil {
		return report, fmt.Errorf("clean up the database: %w", err)
	}
	return report, nil
}

// markChildren notes the moment, and tells what is wrong with the identity of the
// database of then.
func (r *Reconciler) markChildren(ctx context.Context) (mark Mark, doubt string, err error) {
	if mark, err = r.Children.Mark(ctx); err != nil {
		return mark, "", err
	}
	kept, err := r.RecordIdentity(ctx, mark.Identity)
	if err != nil {
		return mark, "", fmt.Errorf("record the database's identity: %w", err)
	}
	return mark, otherDatabase(mark.Identity, kept), nil
}

// countChildren counts in each child table. Those without orphans are left out.
func (r *Reconciler) countChildren(ctx context.Context, c Cleanup, report *DatabaseReport) (found []foundChildren, err error) {
	c.tell(Progress{Stage: "looking for child tables"})
	tables, err := r.Children.ChildTables(ctx)
	if err != nil {
		return nil, fmt.Errorf("find child tables: %w", err)
	}
	for _, t := range tables {
		if t.Skipped != "" {
			report.Skipped[t.Name()] = t.Skipped
			continue
		}
		f, err := foundChildren{ChildTable: t}, t.Err
		if err == nil {
			c.tell(Progress{Stage: "counting " + t.Name()})
			f.rows, f.orphans, err = r.Children.CountOrphans(ctx, t)
		}
		switch {
		case ends(ctx, err):
			return nil, fmt.Errorf("count orphans of %s: %w", t.Name(), err)
		case err != nil:
			report.failed(t, err)
		default:
			report.Tables[t.Name()] += 0
			if f.orphans > 0 {
				found = append(found, f)
			}
		}
	}
	return found, nil
}

// ends tells whether an error is not of one table alone.
func ends(ctx context.Context, err error) bool {
	var guarded *GuardedError
	return err != nil && (ctx.Err() != nil || errors.Is(err, ErrUnreachable) || errors.Is(err, ErrPaused) ||
		errors.Is(err, ErrStale) || errors.As(err, &guarded))
}

func (d *DatabaseReport) failed(t ChildTable, err error) {
	if before := d.Errors[t.Name()]; before != "" {
		err = fmt.Errorf("%s; %w", before, err)
	}
	d.Errors[t.Name()] = err.Error()
}

// doubtChildren is why the guard holds the removal, "" where it does not (R5). Each
// child table is judged by itself: one that is wrongly configured must not hide
// behind a large one.
func (r *Reconciler) doubtChildren(ctx context.Context, found []foundChildren) (string, error) {
	if t := r.Guard.Tripped(); t != nil {
		return "it has tripped: " + t.Reason, nil
	}
	if len(found) == 0 {
		return "", nil
	}
	empty, err := r.Rows.EmptyTables(ctx)
	if err != nil {
		return "", fmt.Errorf("see whether tables are empty: %w", err)
	}
	var doubts []string
	for _, t := range found {
		if none := "table " + r.Bindings[t.Binding].Name() + " is empty"; empty.Has(t.Binding) {
			if !slices.Contains(doubts, none) {
				doubts = append(doubts, none)
			}
			continue
		}
		if t.rows >= int64(r.Policy.MinSample) && float64(t.orphans) > r.Policy.MaxAbsentRatio*float64(t.rows) {
			doubts = append(doubts, fmt.Sprintf("%d of %d rows of %s have no parent in %s, more than %.0f %%",
				t.orphans, t.rows, t.Name(), r.Bindings[t.Binding].Name(), 100*r.Policy.MaxAbsentRatio))
		}
	}
	return strings.Join(doubts, "; "), nil
}

func (r *Reconciler) removeChildren(ctx context.Context, c Cleanup, mark Mark, found []foundChildren, report *DatabaseReport) error {
	if len(found) == 0 {
		return nil
	}
	if err := r.settleChildren(ctx, c); err != nil {
		return err
	}
	for _, t := range found {
		name := t.Name()
		how := ChildRemoval{Mark: mark, Limit: withSlack(t.orphans), AllowEmpty: c.Force, MayGoOn: c.MayGoOn, Progress: func(removed int64) {
			c.tell(Progress{Stage: "removing from " + name, Done: removed, Total: t.orphans})
		}}
		if c.Force {
			how.Limit = 0
		}
		removed, err := r.Children.RemoveOrphans(ctx, t.ChildTable, how)
		report.Tables[name] += removed
		report.Total += removed
		if err == nil {
			c.tell(Progress{Stage: "counting what is left of " + name})
			var left int64
			if _, left, err = r.Children.CountOrphans(ctx, t.ChildTable); left > 0 {
				report.Left[name] += left
			}
		}
		if ends(ctx, err) {
			return fmt.Errorf("remove orphans of %s: %w", name, err)
		}
		if err != nil {
			report.failed(t.ChildTable, err)
		}
	}
	return nil
}

// settleChildren waits, for the sake of applications that write a child before its
// parent, in another transaction: first the grace, in which the second may begin,
// then until all that runs has ended (R4).
func (r *Reconciler) settleChildren(ctx context.Context, c Cleanup) error {
	c.tell(Progress{Stage: fmt.Sprintf("waiting for the grace of %s", r.Policy.Grace)})
	if err := pause(ctx, r.Policy.Grace); err != nil {
		return err
	}
	running, err := r.Rows.Running(ctx)
	if err != nil {
		return fmt.Errorf("list running transactions: %w", err)
	}
	f := NewFence(r.Now(), running)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		if running, err = r.Rows.Running(ctx); err != nil {
			return fmt.Errorf("list running transactions: %w", err)
		}
		if f.Observe(running); f.Ended() {
			return nil
		}
		open := fmt.Sprint(f.Waiting()[0])
		if n := len(f.Waiting()) - 1; n > 0 {
			open += fmt.Sprintf(" and %d more", n)
		}
		if c.MayGoOn != nil {
			if err := c.MayGoOn(ctx); err != nil {
				return err
			}
		}
		if c.Patience > 0 && r.Now().Sub(f.Taken) > c.Patience {
			return fmt.Errorf("still open after %s: %s, which may be writing a parent; tried again the next time", c.Patience, open)
		}
		// R4 lets removals pass that can be undone. This one cannot be.
		if limit := r.Policy.InflightLimit; limit > 0 && r.Now().Sub(f.Taken) > limit {
			return Hint(fmt.Errorf("still open after %s: %s, which may be writing a parent", limit, open),
				"end it (SELECT pg_terminate_backend(PID), ROLLBACK PREPARED), or try again when it has ended")
		}
		c.tell(Progress{Stage: "waiting for " + open})
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	defer Rest(ctx)()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
