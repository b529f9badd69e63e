package reconciler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"
)

// Revokes are limited: each costs every worker a moment of its loop, since Celery
// 5.6.2 also a write, and a worker remembers 50,000.
const (
	// lookAgain is when a message is looked for again that was not where it had been.
	lookAgain = 20 * time.Millisecond
	// lookWithin is how old a look at the rows may be when messages are taken.
	lookWithin = 100 * time.Millisecond
	// revokePage is how many ids one message revokes.
	revokePage = 500
	// heldRate and heldBurst are of ids that workers have for sure: these wait.
	heldRate, heldBurst = 500, 2000
	// unseenRate and unseenBurst are of ids of which nothing was found, most of which
	// ended long ago: what is over it is not revoked.
	unseenRate, unseenBurst = 100, 2000
)

// revokes is what is under way of revokes.
type revokes struct {
	held, unseen *rate.Limiter
	mu           sync.Mutex
	// unsent have been granted by their records, and not published yet: the broker
	// was away.
	unsent []revoke
	// heard is what is still to be noted of those that were published.
	heard []Burial
}

// revoke is an id, as a worker knows it, and the task.
type revoke struct {
	id   string
	look Look
	// looked is when its row was read.
	looked time.Time
}

func newRevokes() *revokes {
	return &revokes{held: rate.NewLimiter(heldRate, heldBurst), unseen: rate.NewLimiter(unseenRate, unseenBurst)}
}

// takeMessages removes messages and revokes what may run: record first, then revoke,
// then the messages, a page at a time. Pages that had to wait for the limit of revokes,
// or for those before them, are judged by rows that are read again.
func (r *Reconciler) takeMessages(ctx context.Context, term Term, works []*Work, all []*unit, verdicts []Verdict, spans []*workSpan) error {
	var units []*unit
	for _, u := range all {
		if u.work.Subject.Kind.OfMessages() && u.acts() {
			units = append(units, u)
		}
	}
	if err := r.publishLate(ctx, term); err != nil || len(units) == 0 {
		return err
	}
	for looked, page := r.Now(), []*unit(nil); len(units) > 0; {
		page, units = units[:min(revokePage, len(units))], units[min(revokePage, len(units)):]
		revokes, err := r.mayRevoke(ctx, page)
		if err != nil {
			return err
		}
		if r.Now().Sub(looked) > lookWithin {
			looked = r.Now()
			if err := r.lookRows(ctx, works, page, spans); err != nil {
				return err
			}
			if err := r.decide(ctx, term, works, page, spans); err != nil {
				return err
			}
		}
		if err := r.takePage(ctx, term, page, revokes, verdicts, spans); err != nil {
			return err
		}
	}
	return nil
}

// acts tells whether something is to be done about a unit's messages.
func (u *unit) acts() bool { return u.decision.Outcome == OutcomeRemoved || u.decision.Revoke }

func (r *Reconciler) takePage(ctx context.Context, term Term, units []*unit, revokes []bool, verdicts []Verdict, spans []*workSpan) error {
	burials := make([]Burial, 0, len(units))
	var taken []*unit
	for i, u := range units {
		if !u.acts() { // any more
			continue
		}
		may := revokes[i] && u.decision.Revoke
		if len(u.decision.Remove) == 0 && !may {
			u.done = true
			verdicts[u.of].merge(Verdict{Decision: u.decision})
			continue
		}
		taken = append(taken, u)
		burials = append(burials, Burial{Task: u.look.Subject, Record: r.record(u, spans[u.of], r.Now()), Revoke: may, Looked: u.looked})
	}
	if len(taken) == 0 {
		return nil
	}
	began := r.Now()
	buried, err := r.Artifacts.Bury(ctx, term.Epoch, burials)
	r.telemetry.step(spansOf(taken, spans), r.telemetry.steps.record, began, err)
	if err != nil {
		return fmt.Errorf("write records: %w", err)
	}
	var granted []revoke
	var revoked []*unit
	stale := false
	var pulled []*unit
	for i, u := range taken {
		v := Verdict{Decision: u.decision}
		switch b := buried[i]; {
		case b.Status == Stale:
			stale = true
			continue
		case b.Status != Removed:
			v.refused(b.Status)
		default:
			if b.Revoke {
				revoked = append(revoked, u)
				for _, id := range spellings(u) {
					granted = append(granted, revoke{strings.Clone(id), Look{u.look.Subject, u.look.Spelling, u.look.Refs, nil}, u.looked})
				}
			}
			if len(u.decision.Remove) > 0 {
				pulled = append(pulled, u)
				continue
			}
		}
		u.done = true
		verdicts[u.of].merge(v)
	}
	began = r.Now()
	telling := ctx
	if len(revoked) > 0 && spans[revoked[0].of] != nil {
		telling = spans[revoked[0].of].ctx // what is logged of it leads to one of its traces
	}
	err = r.publish(telling, term, granted)
	r.telemetry.step(spansOf(revoked, spans), r.telemetry.steps.revoke, began, err)
	if err != nil {
		return err
	}
	if err := r.pull(ctx, term, pulled, verdicts, spans); err != nil {
		return err
	}
	if err := r.noteHeard(ctx, term); err != nil {
		return err
	}
	if stale {
		return ErrStale
	}
	return nil
}

// spellings are the ids under which workers know a task: as its messages write it.
// What cannot be a task's id (the key of a row may be empty) is none.
func spellings(u *unit) (ids []string) {
	seen := map[string]bool{}
	for _, a := range u.found.Artifacts {
		if id := a.Message.ID; !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		ids = append(ids, u.look.Subject.ID)
	}
	return slices.DeleteFunc(ids, func(id string) bool { return id == "" || !utf8.ValidString(id) })
}

// mayRevoke asks the limits for each: certain ones wait, the others are given up.
func (r *Reconciler) mayRevoke(ctx context.Context, units []*unit) ([]bool, error) {
	may := make([]bool, len(units))
	for i, u := range units {
		switch d := u.decision; {
		case !d.Revoke:
		case d.Held:
			if err := r.revokes.held.Wait(ctx); err != nil {
				return nil, fmt.Errorf("wait to revoke: %w", err)
			}
			may[i] = true
		case r.revokes.unseen.Allow():
			may[i] = true
		default:
			r.telemetry.revoked(ctx, revokeSkipped, 1)
		}
	}
	return may, nil
}

// publishLate publishes what could not be published before, but of rows that are
// there again.
func (r *Reconciler) publishLate(ctx context.Context, term Term) error {
	r.revokes.mu.Lock()
	unsent := r.revokes.unsent
	r.revokes.mu.Unlock()
	if len(unsent) == 0 {
		return nil
	}
	looks := make([]Look, len(unsent))
	for i, u := range unsent {
		looks[i] = u.look
	}
	looked := r.Now()
	answer, err := r.Rows.Look(ctx, looks)
	if err != nil {
		return fmt.Errorf("read rows: %w", err)
	}
	var late []revoke
	for i, u := range unsent {
		if u.looked = looked; !answer.States[i].Exists {
			late = append(late, u)
		}
	}
	r.revokes.mu.Lock()
	r.revokes.unsent = nil
	r.revokes.mu.Unlock()
	return r.publish(ctx, term, late)
}

// publish revokes tasks; those that could not be published stay.
func (r *Reconciler) publish(ctx context.Context, term Term, granted []revoke) error {
	r.revokes.mu.Lock()
	defer r.revokes.mu.Unlock()
	r.revokes.unsent = append(r.revokes.unsent, granted...)
	for len(r.revokes.unsent) > 0 {
		n := min(revokePage, len(r.revokes.unsent))
		page, looked := make([]string, n), r.revokes.unsent[0].looked
		for i, u := range r.revokes.unsent[:n] {
			page[i] = u.id
			if u.looked.Before(looked) {
				looked = u.looked
			}
		}
		heard, workers, err := r.Messages.Revoke(ctx, term.Epoch, looked, page)
		if err != nil {
			return fmt.Errorf("revoke: %w", err)
		}
		for _, u := range r.revokes.unsent[:n] {
			r.revokes.heard = append(r.revokes.heard, Burial{Task: u.look.Subject, Heard: &heard})
		}
		r.revokes.unsent = append([]revoke(nil), r.revokes.unsent[n:]...)
		outcome := revokeHeard
		if heard == 0 {
			outcome = revokeUnheard
		}
		r.telemetry.revoked(ctx, outcome, len(page))
		if heard == 0 && workers > 0 {
			r.Log.WarnContext(ctx, "a revoke reached no worker, though the bindings name some: tasks of deleted rows that they hold will run",
				"workers", workers, "ids", len(page),
				"fix", "compare celery.control_exchange, celery.global_keyprefix and the database in redis.broker_url with the workers' settings; or the workers have been killed")
		}
	}
	return nil
}

// noteHeard keeps in the records of tasks how many workers heard of their revoke.
func (r *Reconciler) noteHeard(ctx context.Context, term Term) error {
	r.revokes.mu.Lock()
	heard := r.revokes.heard
	r.revokes.heard = nil
	r.revokes.mu.Unlock()
	if len(heard) == 0 {
		return nil
	}
	if _, err := r.Artifacts.Bury(ctx, term.Epoch, heard); err != nil {
		return fmt.Errorf("note who heard of a revoke: %w", err)
	}
	return nil
}

// pull takes messages out of the broker. One that is not there any more has been
// taken by a worker, or was given back: it is looked for again.
func (r *Reconciler) pull(ctx context.Context, term Term, units []*unit, verdicts []Verdict, spans []*workSpan) error {
	// Entries of one row lead to the same task: its message is pulled once, and is
	// the first one's.
	type key struct {
		kind      ArtifactKind
		task, tag string
	}
	var pulls []Pull
	known := map[key]int{}
	var at []int // of each artifact, in pulls; ^at where it is another unit's
	for _, u := range units {
		for _, a := range u.decision.Remove {
			k := key{a.Kind, u.look.Subject.ID, a.Message.Place.Tag}
			if i, ok := known[k]; ok {
				at = append(at, ^i)
				continue
			}
			known[k] = len(pulls)
			at = append(at, len(pulls))
			pulls = append(pulls, Pull{Subject: u.look.Subject, Message: *a.Message, Looked: u.looked})
		}
	}
	if len(pulls) == 0 {
		return nil
	}
	began := r.Now()
	statuses, err := r.Messages.Pull(ctx, term.Epoch, pulls)
	r.telemetry.step(spansOf(units, spans), r.telemetry.steps.pull, began, err)
	if err != nil {
		return fmt.Errorf("pull messages: %w", err)
	}
	pulledAt := r.Now()
	var removed []Burial
	for _, u := range units {
		v := Verdict{Decision: u.decision}
		stale := false
		for _, a := range u.decision.Remove {
			i := at[0]
			at = at[1:]
			status := statuses[max(i, ^i)]
			if status == Changed {
				u.work.miss(u.look.Subject)
			}
			if status == Removed && i < 0 {
				continue
			}
			if status == Removed {
				if v.Removed == nil {
					v.Removed = map[ArtifactKind]int{}
				}
				v.Removed[a.Kind]++
				v.At = pulledAt
				spans[u.of].linkParent(a.Message.TraceParent, linkMessage)
				continue
			}
			stale = stale || !v.refused(status)
		}
		if len(v.Removed) > 0 {
			removed = append(removed, Burial{Task: u.look.Subject, Record: r.record(u, nil, r.Now()), Count: v.Removed})
		}
		if stale {
			err = ErrStale
			continue
		}
		if v.HeldBy == HeldByChange || len(u.more) > 0 {
			v.Outcome, v.HeldBy, v.After = OutcomeDeferred, HeldByChange, retry(lookAgain, maxRetry, u.work.Attempts)
		}
		u.done = true
		verdicts[u.of].merge(v)
	}
	if len(removed) > 0 {
		_, counted := r.Artifacts.Bury(ctx, term.Epoch, removed)
		err = errors.Join(err, counted)
	}
	return err
}
