package reconciler

import (
	"context"
	"encoding/hex"
	"fmt"
)

// comparison is the set difference: ids in Redis without a row.
type comparison struct {
	r *Reconciler
	// uuids and others hold the chunk under way; uuids compactly, by their bytes.
	uuids    map[[16]byte]string
	others   map[Subject]string
	living   int64
	suspects []Look
	// dropped is how many suspects there were beyond those that one pass holds;
	// unknown counts, by binding, what nothing tells the owner of.
	dropped int
	unknown map[string]int64
}

func newComparison(r *Reconciler) *comparison {
	return &comparison{r: r, uuids: map[[16]byte]string{}, others: map[Subject]string{}, unknown: map[string]int64{}}
}

// add takes scanned keys. Row subjects are few: they are looked up right away
// with the rest of the chunk.
func (c *comparison) add(ctx context.Context, ls []Look) error {
	for _, l := range ls {
		if u, ok := uuidBytes(l.Subject); ok {
			c.uuids[u] = l.Spelling
		} else {
			c.others[l.Subject] = l.Spelling
		}
	}
	c.r.update(func(p *Pass) { p.Scanned += int64(len(ls)) })
	if len(c.uuids)+len(c.others) >= chunk {
		return c.flush(ctx)
	}
	return nil
}

func uuidBytes(s Subject) (u [16]byte, ok bool) {
	if s.Kind != Task {
		return u, false
	}
	digits, ok := uuidHex(s.ID)
	if !ok {
		return u, false
	}
	_, err := hex.Decode(u[:], digits[:])
	return u, err == nil
}

// flush compares the chunk with the tables.
func (c *comparison) flush(ctx context.Context) error {
	n := int64(len(c.uuids) + len(c.others))
	if n == 0 {
		return nil
	}
	c.r.update(func(p *Pass) { p.Stage = stageCompare })
	defer c.r.update(func(p *Pass) { p.Stage = stageScan })
	rows := int64(0)
	for i := range c.r.Bindings {
		e, err := c.r.Tables.Estimate(ctx, i)
		if err != nil {
			return fmt.Errorf("estimate the rows of %s: %w", c.r.Bindings[i].Name(), err)
		}
		rows += e
	}
	if n > lookBatch && n*wholeTable > rows {
		if err := c.subtractTables(ctx); err != nil {
			return err
		}
	}
	return c.lookUpRest(ctx)
}

// subtractTables strikes out every id that a table holds.
func (c *comparison) subtractTables(ctx context.Context) error {
	for i, b := range c.r.Bindings {
		err := c.r.Tables.EachID(ctx, i, func(id string) error {
			s := TaskSubject(id)
			before := len(c.uuids) + len(c.others)
			if u, ok := uuidBytes(s); ok {
				delete(c.uuids, u)
			} else {
				delete(c.others, s)
			}
			c.living += int64(before - len(c.uuids) - len(c.others))
			return nil
		})
		if err != nil {
			return fmt.Errorf("read the ids of %s: %w", b.Name(), err)
		}
	}
	return nil
}

// lookUpRest asks for what is left, which makes suspects of what has no row and
// could have one.
func (c *comparison) lookUpRest(ctx context.Context) error {
	batch := make([]Look, 0, lookBatch)
	ask := func() error {
		if len(batch) == 0 {
			return nil
		}
		if c.r.byArgument { // only what they hold tells of which row they are
			if err := c.addRefs(ctx, batch); err != nil {
				return err
			}
		}
		answer, err := c.r.Rows.Look(ctx, batch)
		if err != nil {
			return fmt.Errorf("read rows: %w", err)
		}
		var absent []Look
		var states []RowState
		for i, s := range answer.States {
			switch {
			case s.Exists:
				c.living++
			case s.Candidates != 0 || c.r.byArgument:
				absent, states = append(absent, batch[i]), append(states, s)
			}
		}
		batch = batch[:0]
		return c.suspect(ctx, absent, states)
	}
	push := func(l Look) error {
		if batch = append(batch, l); len(batch) == lookBatch {
			return ask()
		}
		return nil
	}
	for u, spelling := range c.uuids {
		if err := push(Look{Subject: TaskSubject(hex.EncodeToString(u[:])), Spelling: spelling}); err != nil {
			return err
		}
	}
	for s, spelling := range c.others {
		if err := push(Look{Subject: s, Spelling: spelling}); err != nil {
			return err
		}
	}
	clear(c.uuids)
	clear(c.others)
	return ask()
}

// addRefs adds the rows that the results of tasks name.
func (c *comparison) addRefs(ctx context.Context, batch []Look) error {
	found, err := c.r.Artifacts.Look(ctx, batch)
	if err != nil {
		return fmt.Errorf("read artifacts: %w", err)
	}
	for i, f := range found {
		u := &unit{work: &Work{}, look: batch[i], found: f}
		batch[i].Refs = c.r.refsOf(u)
		c.r.exchangeSeen(u)
	}
	return nil
}

// suspect keeps what may be a bound task's. Other tasks' results, of which there may
// be any number, are told by their names, and let go here.
func (c *comparison) suspect(ctx context.Context, absent []Look, states []RowState) error {
	if len(absent) == 0 {
		return nil
	}
	found, err := c.r.Artifacts.Look(ctx, absent)
	if err != nil {
		return fmt.Errorf("read artifacts: %w", err)
	}
	for i, f := range found {
		c.r.noteForeign(f)
		if len(f.Artifacts) == 0 {
			continue
		}
		c.r.exchangeSeen(&unit{look: absent[i], found: f})
		ours, unknown := attributable(c.r.attribution(absent[i].Subject, f, states[i]))
		switch {
		case len(ours) == 0 && !f.Deleted && !c.r.remembers(absent[i]):
			if unknown > 0 {
				c.unknown[c.r.ownerName(states[i].Candidates)]++
			}
			continue
		case len(c.suspects) < maxSuspects:
			c.suspects = append(c.suspects, absent[i])
		default:
			c.dropped++
		}
		c.r.update(func(p *Pass) { p.Suspect++ })
	}
	return nil
}
