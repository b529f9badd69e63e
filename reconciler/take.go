package reconciler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Revokes are limited: each costs every worker a moment of its loop, since Celery
// 5.6.2 also a write, and a worker remembers 50,000.
const (
	// lookAgain is when a message is looked for again that was not where it had been.
	lookAgain = 20 * time.Millisecond
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
	unsent []string
}

func newRevokes() *revokes {
	return &revokes{held: rate.NewLimiter(heldRate, heldBurst), unseen: rate.NewLimiter(unseenRate, unseenBurst)}
}

// takeMessages removes messages and revokes what may run: record first, then revoke,
// then the messages, a page at a time.
func (r *Reconciler) takeMessages(ctx context.Context, term Term, all []*unit, verdicts []Verdict, spans []*workSpan) error {
	var units []*unit
	for _, u := range all {
		if u.work.Subject.Kind.OfMessages() && (u.decision.Outcome == OutcomeRemoved || u.decision.Revoke) {
			units = append(units, u)
		}
	}
	if err := r.publish(ctx, nil); err != nil || len(units) == 0 {
		return err
	}
	began := r.Now()
	for page := range slices.Chunk(units, revokePage) {
		if err := r.takePage(ctx, term, page, verdicts, spans); err != nil {
			return err
		}
	}
	r.telemetry.step(ctx, spansOf(units, spans), stepPull, began, r.Now())
	return nil
}

func (r *Reconciler) takePage(ctx context.Context, term Term, units []*unit, verdicts []Verdict, spans []*workSpan) error {
	burials := make([]Burial, 0, len(units))
	var taken []*unit
	for _, u := range units {
		revoke, err := r.mayRevoke(ctx, u.decision)
		if err != nil {
			return err
		}
		if len(u.decision.Remove) == 0 && !revoke {
			u.done = true
			verdicts[u.of].merge(Verdict{Decision: u.decision})
			continue
		}
		taken = append(taken, u)
		burials = append(burials, Burial{Task: u.look.Subject, Record: r.record(u, spans[u.of], r.Now()), Revoke: revoke})
	}
	if len(taken) == 0 {
		return nil
	}
	buried, err := r.Artifacts.Bury(ctx, term.Epoch, burials)
	if err != nil {
		return fmt.Errorf("write records: %w", err)
	}
	var ids []string
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
				ids = append(ids, spellings(u)...)
			}
			if len(u.decision.Remove) > 0 {
				pulled = append(pulled, u)
				continue
			}
		}
		u.done = true
		verdicts[u.of].merge(v)
	}
	if err := r.publish(ctx, ids); err != nil {
		return err
	}
	if err := r.pull(ctx, term, pulled, verdicts); err != nil {
		return err
	}
	if stale {
		return ErrStale
	}
	return nil
}

// spellings are the ids under which workers know a task: as its messages write it.
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
	return ids
}

// mayRevoke asks the limits: certain ones wait, the others are given up.
func (r *Reconciler) mayRevoke(ctx context.Context, d Decision) (bool, error) {
	switch {
	case !d.Revoke:
		return false, nil
	case d.Held:
		if err := r.revokes.held.Wait(ctx); err != nil {
			return false, fmt.Errorf("wait to revoke: %w", err)
		}
		return true, nil
	case r.revokes.unseen.Allow():
		return true, nil
	}
	r.telemetry.revoked(ctx, revokeSkipped, 1)
	return false, nil
}

// publish revokes ids, and those that could not be published before.
func (r *Reconciler) publish(ctx context.Context, ids []string) error {
	r.revokes.mu.Lock()
	defer r.revokes.mu.Unlock()
	r.revokes.unsent = append(r.revokes.unsent, ids...)
	for len(r.revokes.unsent) > 0 {
		page := r.revokes.unsent[:min(revokePage, len(r.revokes.unsent))]
		heard, workers, err := r.Messages.Revoke(ctx, page)
		if err != nil {
			return fmt.Errorf("revoke: %w", err)
		}
		r.revokes.unsent = append([]string(nil), r.revokes.unsent[len(page):]...)
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

// pull takes messages out of the broker. One that is not there any more has been
// taken by a worker, or was given back: it is looked for again.
func (r *Reconciler) pull(ctx context.Context, term Term, units []*unit, verdicts []Verdict) error {
	var pulls []Pull
	for _, u := range units {
		for _, a := range u.decision.Remove {
			pulls = append(pulls, Pull{Subject: u.look.Subject, Message: *a.Message})
		}
	}
	if len(pulls) == 0 {
		return nil
	}
	statuses, err := r.Messages.Pull(ctx, term.Epoch, pulls)
	if err != nil {
		return fmt.Errorf("pull messages: %w", err)
	}
	var removed []Burial
	at := 0
	for _, u := range units {
		v := Verdict{Decision: u.decision}
		stale := false
		for _, a := range u.decision.Remove {
			status := statuses[at]
			at++
			if status == Removed {
				if v.Removed == nil {
					v.Removed = map[ArtifactKind]int{}
				}
				v.Removed[a.Kind]++
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
		if v.HeldBy == HeldByChange || u.more {
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
