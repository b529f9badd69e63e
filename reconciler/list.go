package reconciler

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// The verdicts of a TaskInfo.
const (
	VerdictLiving   = "living"
	VerdictOrphaned = "orphaned"
	VerdictUnknown  = "unknown"
	VerdictForeign  = "foreign"
)

// Pages lists results a page at a time.
type Pages interface {
	// ScanPage gives about count results from cursor on, 0 for the beginning, and the
	// next cursor, 0 at the end. What is there all the time is met at least once,
	// whatever comes and goes meanwhile; some of it may be met twice (SCAN).
	ScanPage(ctx context.Context, cursor uint64, count int) (found []Look, next uint64, err error)
}

const (
	// pageScan bounds how many results are looked at for a page of orphans alone, and
	// pageTime for how long; such a page may be empty and still not be the last.
	pageScan = 50_000
	pageTime = 2 * time.Second
)

// TaskPage lists about limit results from a cursor on, "" for the beginning, with what
// is thought of each now: a listing does not wait for the grace. It may be a few over
// the limit, and tell one twice where keys change meanwhile, but misses none that
// stays. The error is an *InputError where the cursor cannot be read.
func (r *Reconciler) TaskPage(ctx context.Context, orphanedOnly bool, limit int, cursor string) (TaskPage, error) {
	page := TaskPage{Tasks: []TaskInfo{}, OrphanedOnly: orphanedOnly}
	var at uint64
	if cursor != "" {
		var err error
		if at, err = strconv.ParseUint(cursor, 36, 64); err != nil {
			return page, &InputError{Parameter: "cursor", Reason: "is not the next_cursor of an earlier answer"}
		}
	}
	began := r.Now()
	for scanned := 0; ; {
		count := limit - len(page.Tasks)
		if orphanedOnly {
			count = max(count, min(limit, lookBatch))
		}
		looks, next, err := r.Pages.ScanPage(ctx, at, count)
		if err != nil {
			return page, fmt.Errorf("list results: %w", err)
		}
		scanned += len(looks)
		infos, err := r.think(ctx, looks)
		if err != nil {
			return page, err
		}
		for _, t := range infos {
			if t.Orphaned || !orphanedOnly {
				page.Tasks = append(page.Tasks, t)
			}
		}
		page.Count = len(page.Tasks)
		if at = next; at == 0 {
			return page, nil
		}
		if page.Count >= limit || scanned >= pageScan || r.Now().Sub(began) > pageTime {
			page.NextCursor = strconv.FormatUint(at, 36)
			return page, nil
		}
	}
}

// Tasks yields everything of tasks that Redis holds, messages first (they tell
// which names are met here), with what is thought of each now.
func (r *Reconciler) Tasks(ctx context.Context, orphanedOnly bool, yield func([]TaskInfo) error) error {
	pass := func(infos []TaskInfo) error {
		kept := infos[:0]
		for _, t := range infos {
			if t.Orphaned || !orphanedOnly {
				kept = append(kept, t)
			}
		}
		if len(kept) == 0 {
			return nil
		}
		return yield(kept)
	}
	if r.Messages != nil {
		if err := r.FindQueues(ctx); err != nil {
			return fmt.Errorf("find the queues: %w", err)
		}
		err := r.Messages.Sweep(ctx, func(batch []Message) error {
			infos, err := r.thinkOfMessages(ctx, batch)
			if err != nil {
				return err
			}
			return pass(infos)
		})
		if err != nil {
			return fmt.Errorf("list messages: %w", err)
		}
	}
	err := r.Scanner.Scan(ctx, func(looks []Look) error {
		for len(looks) > 0 {
			n := min(lookBatch, len(looks))
			infos, err := r.think(ctx, looks[:n])
			if err != nil {
				return err
			}
			if err := pass(infos); err != nil {
				return err
			}
			looks = looks[n:]
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list results: %w", err)
	}
	return nil
}

// think judges keys as if everything that is waited for were over.
func (r *Reconciler) think(ctx context.Context, looks []Look) ([]TaskInfo, error) {
	units, err := r.lookAll(ctx, looks)
	if err != nil {
		return nil, err
	}
	infos := make([]TaskInfo, 0, len(units))
	for _, u := range units {
		for _, a := range u.found.Artifacts {
			one := *u
			one.found.Artifacts = []Artifact{a}
			infos = append(infos, r.info(&one))
		}
	}
	return infos, nil
}

func (r *Reconciler) thinkOfMessages(ctx context.Context, batch []Message) ([]TaskInfo, error) {
	units := make([]*unit, len(batch))
	works := make([]*Work, len(batch))
	for i := range batch {
		m := &batch[i]
		r.noteName(m.Name)
		r.seen.Add(m)
		look := m.look()
		works[i] = &Work{Subject: look.Subject.Messages()}
		units[i] = &unit{of: i, work: works[i], look: look, found: Found{Artifacts: []Artifact{messageArtifact(m)}}}
	}
	if err := r.lookTasks(ctx, works, units, make([]*workSpan, len(works))); err != nil {
		return nil, err
	}
	infos := make([]TaskInfo, len(units))
	for i, u := range units {
		infos[i] = r.info(u)
	}
	return infos, nil
}

// info is the decision on one artifact, were there nothing to wait for.
func (r *Reconciler) info(u *unit) TaskInfo {
	a := u.found.Artifacts[0]
	s := r.situation(Term{Position: func() LSN { return 0 }}, u, r.Now())
	s.FirstPass, s.Fence, s.Behind, s.Age = true, FencePassed, false, r.Policy.Grace
	d := Decide(s)
	t := TaskInfo{ID: u.look.Subject.ID, Kind: a.Kind, Key: a.Key, Name: a.Name, Status: a.State, Evidence: d.Evidence, HeldBy: d.HeldBy, Reason: d.Reason}
	if a.Message != nil {
		t.ID, t.Key = a.Message.ID, a.Message.Place.List
	}
	switch {
	case u.row.Exists:
		t.Verdict = VerdictLiving
	case d.HeldBy == HeldByUnknown:
		t.Verdict = VerdictUnknown
	case d.Outcome == OutcomeKept || d.Outcome == OutcomeNoop:
		t.Verdict = VerdictForeign
	default:
		t.Verdict, t.Orphaned = VerdictOrphaned, true
	}
	if t.Orphaned && u.found.HoldUntil.After(r.Now()) {
		t.HeldBy, t.Reason = HeldByRestore, "restored, and held until "+u.found.HoldUntil.UTC().Format(time.RFC3339)
	}
	if t.Verdict != VerdictForeign {
		t.Table = r.ownerName(u.row.Candidates)
	}
	return t
}
