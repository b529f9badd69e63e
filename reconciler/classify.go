package reconciler

import (
	"context"
	"fmt"
)

// tally is a Tally with what is held, for the metric.
type tally struct {
	Tally
	in   map[string]int64 // orphans by binding
	held map[OrphanCount]int64
}

func (t *tally) holdAll(by HeldBy) {
	for b, n := range t.in {
		t.held[OrphanCount{b, by}] = n
	}
}

// classify looks again at all suspects, their values included, so that the pass
// is judged as a whole before its first removal.
func (r *Reconciler) classify(ctx context.Context, c *comparison, m *messageLook) (tally, []confirmedSuspect, error) {
	t := tally{in: map[string]int64{}, held: map[OrphanCount]int64{}}
	for b, n := range c.unknown {
		t.held[OrphanCount{b, HeldByUnknown}] = n
	}
	unknown := func(in BindingSet) { t.held[OrphanCount{r.ownerName(in), HeldByUnknown}]++ }
	if err := m.again(ctx); err != nil {
		return t, nil, err
	}
	var out []confirmedSuspect
	var nameless, candidates []classified
	var weakIn BindingSet
	for from := 0; from < len(c.suspects); from += lookBatch {
		batch := c.suspects[from:min(from+lookBatch, len(c.suspects))]
		looks, err := r.lookAll(ctx, batch)
		if err != nil {
			return t, nil, err
		}
		for i, l := range looks {
			if len(l.found.Artifacts) == 0 || l.row.Exists {
				continue
			}
			if l.found.Deleted || r.remembers(l.look) {
				out = append(out, confirmedSuspect{Look: batch[i], deleted: true})
				continue
			}
			cl := classified{look: batch[i], row: l.row}
			cl.nameless = namesOf(l.found) == ""
			if ours, n := attributable(r.attribution(batch[i].Subject, l.found, l.row)); len(ours) == 0 {
				if n > 0 {
					unknown(l.row.Candidates)
				}
				continue
			}
			if cl.nameless {
				nameless = append(nameless, cl)
			} else {
				candidates = append(candidates, cl)
			}
		}
	}
	// Only now is it known whether other tasks share the place: R6 again for those without a name.
	for _, cl := range nameless {
		nothing := Found{Artifacts: []Artifact{{Kind: ResultKey}}}
		if ours, _ := attributable(r.attribution(cl.look.Subject, nothing, cl.row)); len(ours) > 0 {
			candidates = append(candidates, cl)
		} else {
			unknown(cl.row.Candidates)
		}
	}
	weak := make([]confirmedSuspect, 0, len(candidates))
	for _, cl := range candidates {
		weak = append(weak, confirmedSuspect{Look: cl.look, in: cl.row.Candidates})
	}
	for _, s := range m.suspects {
		if s.deleted {
			out = append(out, s)
		} else {
			weak = append(weak, s)
		}
	}
	deleted := len(out)
	for _, s := range weak {
		weakIn |= s.in
		t.in[r.ownerName(s.in)]++
	}
	out = append(out, weak...)
	t.Orphans = len(weak) + c.dropped + m.dropped
	t.Seen = int(c.living) + m.living + t.Orphans
	r.update(func(p *Pass) {
		p.Orphans, p.Deleted = int64(t.Orphans), int64(deleted)
		for _, n := range t.held {
			p.Unknown += n
		}
	})
	return t, out, r.doubts(ctx, &t.Tally, weakIn)
}

type classified struct {
	look     Look
	row      RowState
	nameless bool
}

func namesOf(f Found) string {
	for _, a := range f.Artifacts {
		if a.Name != "" {
			return a.Name
		}
	}
	return ""
}

// doubts adds to the tally what else speaks against it.
func (r *Reconciler) doubts(ctx context.Context, t *Tally, weakIn BindingSet) error {
	identity, err := r.Tables.Identity(ctx)
	if err != nil {
		return fmt.Errorf("read the database's identity: %w", err)
	}
	kept, err := r.RecordIdentity(ctx, identity)
	if err != nil {
		return fmt.Errorf("record the database's identity: %w", err)
	}
	t.Identity = otherDatabase(identity, kept)
	if t.Orphans == 0 {
		return nil
	}
	empty, err := r.Rows.EmptyTables(ctx)
	if err != nil {
		return fmt.Errorf("see whether tables are empty: %w", err)
	}
	t.EmptyTables = r.names(empty & weakIn)
	return nil
}

func otherDatabase(identity, kept string) string {
	if kept == identity {
		return ""
	}
	return fmt.Sprintf("this is not the database of the first start: it is %s, that was %s", identity, kept)
}
