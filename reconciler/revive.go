package reconciler

import (
	"context"
	"fmt"
)

// revives tells whether a record says what the row's existence ends.
func (u *unit) revives() bool {
	return u.row.Exists && u.sees && (u.found.Deleted || !u.found.HoldUntil.IsZero())
}

// revive forgets the deletions of rows that exist again.
func (r *Reconciler) revive(ctx context.Context, term Term, units []*unit) error {
	var revived, held []*unit
	for _, u := range units {
		if !u.row.Exists || !u.sees {
			continue
		}
		r.Memory.Forget(u.look.Subject)
		if len(u.look.Refs) == 1 && !r.byID { // else the row that exists may be another
			r.Memory.Forget(u.look.Refs[0].Subject())
		}
		if u.revives() {
			revived = append(revived, u)
		}
		if !u.found.HoldUntil.IsZero() && u.look.Subject.Kind == Task {
			held = append(held, u)
		}
	}
	if r.Messages != nil {
		if err := endHolds(ctx, term, held, r.Messages.Release); err != nil {
			return fmt.Errorf("release messages: %w", err)
		}
	}
	return endHolds(ctx, term, revived, r.Artifacts.Revive)
}

// endHolds tells a store that the rows of units exist; those that it knows better of are late.
func endHolds(ctx context.Context, term Term, units []*unit, tell func(context.Context, uint64, []Revival) ([]bool, error)) error {
	if len(units) == 0 {
		return nil
	}
	revivals := make([]Revival, len(units))
	for i, u := range units {
		revivals[i] = Revival{u.look.Subject, u.looked}
	}
	late, err := tell(ctx, term.Epoch, revivals)
	for i := range late {
		units[i].late = units[i].late || late[i]
	}
	return err
}
