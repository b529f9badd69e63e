package celery

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

const (
	// purgedPrefix stands before the id of a purge, and of it and a number, which is a
	// piece; purgesKey is their index (quarantine.lua).
	purgedPrefix = Own + "purged:"
	purgesKey    = Own + "purges"

	// drainMost is how many elements one call takes out, up to about windowBytes;
	// heldMost, how many unacked messages. drainCost is what it takes at most.
	drainMost = 500
	heldMost  = 100
	drainCost = 2 * time.Millisecond
)

// The kinds of a purge: what was in the list, or in workers' hands.
const (
	purgedMessages = "messages"
	purgedUnacked  = "unacked"
)

// DrainQueues takes as many messages out of each list of these queues as were in it
// when it began, from the tail, where workers pop: where they go on popping
// meanwhile, some of those that have been pushed since go as well; where they do
// not, exactly what was there. It keeps them for the quarantine, in windows, each in
// one step of Redis: whatever ends it, each message is in its place or kept. Bindings
// stay.
//
// It takes unacked messages first, so that what a worker gives back meanwhile is met
// in its list. A worker still runs what it has fetched: it is not told.
//
// What was done until an error is in the answer: reconciler.ErrPaused and ErrStale
// among them.
func (b *Broker) DrainQueues(ctx context.Context, d reconciler.QueueDrain) ([]reconciler.QueueReport, error) {
	w, err := b.queueWork(ctx, d.Names, d.Progress)
	if err != nil {
		return nil, err
	}
	if _, err := b.Purged(ctx, "", 0); err != nil { // which forgets those that have expired
		return nil, err
	}
	now, err := b.client.Time(ctx).Result()
	if err != nil {
		return nil, failed("purge queues", err)
	}
	for list, n := range w.lengths {
		if r := w.reports[w.queue[list]]; r != nil {
			r.Messages += n
		}
	}
	p := &draining{queueWork: w, drain: d, at: now.UnixMilli(), run: fmt.Sprintf("%014x-%s", now.UnixMicro(), strings.ToLower(rand.Text()[:6]))}
	if err := p.unacked(ctx); err != nil {
		return w.report(), failed("purge unacked", err)
	}
	for _, queue := range w.names {
		for _, list := range w.listsOf[queue] {
			if err := p.list(ctx, queue, list); err != nil {
				return w.report(), failed("purge "+queue, err)
			}
		}
	}
	return w.report(), nil
}

// draining is one run of DrainQueues.
type draining struct {
	*queueWork
	drain reconciler.QueueDrain
	// at is when it began, ms; run and seq make the ids of its purges, which sort by
	// time: they are restored from the last to the first.
	at  int64
	run string
	seq int
}

// purging is the purge of one place and list.
type purging struct {
	kind, queue, list string
	id                string
	pieces            int
}

func (p *draining) purge(kind, queue, list string) *purging {
	p.seq++
	return &purging{kind: kind, queue: queue, list: list, id: fmt.Sprintf("%s-%05d", p.run, p.seq)}
}

// list takes out what is in a list.
func (p *draining) list(ctx context.Context, queue, list string) error {
	g := p.purge(purgedMessages, queue, list)
	for left := p.lengths[list]; left > 0; {
		taken, messages, err := p.call(ctx, drainScript, g, list, nil, min(left, drainMost), windowBytes, tombstone)
		if err != nil {
			return err
		}
		if taken == 0 {
			return nil
		}
		left -= taken
		p.reports[queue].Cleaned += messages
		p.advance(int(taken))
		if err := p.pace.pay(ctx); err != nil {
			return err
		}
	}
	return nil
}

// unacked counts what workers hold of the queues, and takes it out if that is asked for.
func (p *draining) unacked(ctx context.Context) error {
	type batch struct {
		*purging
		args  []any
		bytes int
	}
	batches := map[string]*batch{}
	flush := func(b *batch) error {
		taken, _, err := p.call(ctx, drainUnackedScript, b.purging, p.unackedKey(), []string{p.unackedIndexKey()}, b.args...)
		p.reports[b.queue].Cleaned += taken
		p.reports[b.queue].Unacked += taken
		p.advance(int(taken))
		if b.args, b.bytes = nil, 0; err != nil {
			return err
		}
		return p.pace.pay(ctx)
	}
	err := p.eachHeld(ctx, func(h held) error {
		if !p.drain.IncludeUnacked {
			p.reports[h.queue].Unacked++
			return nil
		}
		b := batches[h.list]
		if b == nil {
			b = &batch{purging: p.purge(purgedUnacked, h.queue, h.list)}
			batches[h.list] = b
		}
		b.args = append(b.args, h.tag, h.value)
		if b.bytes += len(h.value); b.bytes >= windowBytes || len(b.args) >= 2*heldMost {
			return flush(b)
		}
		return nil
	})
	for _, b := range batches {
		if err == nil && len(b.args) > 0 {
			err = flush(b)
		}
	}
	return err
}

// call runs one of the scripts that take out; messages is 0 for unacked ones. One that
// has begun is waited for, so that the report tells all that was done.
func (p *draining) call(ctx context.Context, sc *script, g *purging, place string, keys []string, more ...any) (taken, messages int64, err error) {
	keys = append([]string{controlKey, place, purgedPrefix + g.id, purgesKey, g.piece(g.pieces)}, keys...)
	args := append([]any{p.drain.Epoch, p.options.Quarantine.Milliseconds(), g.id, g.pieces, p.at, g.kind, g.queue, g.list, string(p.drain.Trigger)}, more...)
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	var reply any
	err = bounded(p.pace, func() (atMost time.Duration, err error) {
		reply, err = sc.one(context.WithoutCancel(ctx), p.client, keys, args...)
		return drainCost, err
	})
	if err != nil {
		return 0, 0, full(err)
	}
	answer, _ := reply.([]any)
	if len(answer) < 2 {
		return 0, 0, fmt.Errorf("drain.lua: unexpected reply %v", reply)
	}
	switch answer[0] {
	case "stale":
		return 0, 0, reconciler.ErrStale
	case "paused":
		return 0, 0, reconciler.ErrPaused
	}
	g.pieces++
	taken, _ = answer[1].(int64)
	if len(answer) > 2 {
		messages, _ = answer[2].(int64)
	}
	return taken, messages, nil
}

// full says what helps where Redis has no memory to keep anything in.
func full(err error) error {
	if !strings.Contains(err.Error(), "OOM command") {
		return err
	}
	return reconciler.Hint(err, "give Redis more memory, or keep nothing of what is purged: ORPHANWATCH_POLICY_QUARANTINE=0s")
}

func (g *purging) piece(n int) string { return purgedPrefix + g.id + ":" + strconv.Itoa(n) }
