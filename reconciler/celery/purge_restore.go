package celery

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Purged is what a purge has taken out of one list, or out of workers' hands.
type Purged struct {
	Queue string `json:"queue"`
	// List is the key to which it is restored.
	List string `json:"list"`
	// Kind is messages or unacked.
	Kind    string    `json:"kind"`
	At      time.Time `json:"purged_at"`
	Trigger string    `json:"trigger"`
	// Messages are kept, before anything is restored.
	Messages int64 `json:"messages"`
	// Restored were pushed back. Incomplete are no messages that a worker survives:
	// they stay kept until the quarantine ends, and so does all if the list's key
	// holds another type by now (Unplaced). Gone have expired meanwhile, or another
	// call has restored them.
	Restored   int64 `json:"restored"`
	Incomplete int64 `json:"incomplete"`
	Unplaced   int64 `json:"unplaced"`
	Gone       int64 `json:"gone"`

	purging
}

// Purged are the purges of a queue ("" for all) that are kept, and began within that
// time (0 for any), the newest first.
func (b *Broker) Purged(ctx context.Context, queue string, since time.Duration) ([]Purged, error) {
	by := redis.ZRangeArgs{Key: purgesKey, ByScore: true, Rev: true, Start: "+inf", Stop: "-inf", Count: restorePage}
	if since > 0 {
		now, err := b.client.Time(ctx).Result()
		if err != nil {
			return nil, failed("list purges", err)
		}
		by.Stop = strconv.FormatInt(now.Add(-since).UnixMilli(), 10)
	}
	var out []Purged
	var expired []call
	seen := map[string]bool{} // a purge that begins meanwhile shifts the pages
	for more := true; more; {
		ids, err := b.client.ZRangeArgs(ctx, by).Result()
		if err != nil {
			return nil, failed("list purges", err)
		}
		more = len(ids) == restorePage
		by.Offset += int64(len(ids))
		ids = slices.DeleteFunc(ids, func(id string) bool { return seen[id] })
		page, err := b.purges(ctx, ids)
		if err != nil {
			return nil, failed("read purges", err)
		}
		for _, p := range page {
			seen[p.id] = true
			switch {
			case p.List == "":
				expired = append(expired, p.settled(""))
			case queue == "" || p.Queue == queue:
				out = append(out, p)
			}
		}
	}
	for page := range slices.Chunk(expired, restorePage) {
		if _, err := settleScript.run(ctx, b.client, page); err != nil {
			return nil, failed("forget purges", err)
		}
	}
	return out, nil
}

// purges reads what is known of these, in order; of one that has expired, nothing.
func (b *Broker) purges(ctx context.Context, ids []string) ([]Purged, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	cmds := make([]*redis.MapStringStringCmd, len(ids))
	_, err := b.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, id := range ids {
			cmds[i] = p.HGetAll(ctx, purgedPrefix+id)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]Purged, len(ids))
	for i, id := range ids {
		f := cmds[i].Val()
		out[i] = Purged{
			Queue: f["queue"], List: f["list"], Kind: f["kind"], Trigger: f["trigger"], purging: purging{id: id},
		}
		out[i].At = millis(f["at"])
		out[i].Messages, _ = strconv.ParseInt(f["messages"], 10, 64)
		out[i].pieces, _ = strconv.Atoi(f["pieces"])
	}
	return out, nil
}

// RestorePurged pushes what purges of a queue have taken (see Purged) back to the
// lists, each message once, at the tail: it ends in the order that it was in, the
// oldest to be popped first. A worker that pops while it runs meets it newest first.
// Unlike a restored task, nothing is held: if a message's row is gone, it is removed.
// After an error, asking again goes on where it ended.
func (b *Broker) RestorePurged(ctx context.Context, queue string, since time.Duration, progress func(done, total int64)) ([]Purged, error) {
	purges, err := b.Purged(ctx, queue, since)
	if err != nil {
		return nil, err
	}
	var done, total int64
	for _, p := range purges {
		total += p.Messages
	}
	pace := b.pace()
	for i := range purges {
		p := &purges[i]
		for n := p.pieces - 1; n >= 0 && p.Unplaced == 0; n-- {
			if err := b.refill(ctx, pace, p, n); err != nil {
				return purges, failed("restore "+p.Queue, err)
			}
			if progress != nil {
				progress(done+p.Restored, total)
			}
		}
		done += p.Messages
		if err := b.settle(ctx, p); err != nil {
			return purges, failed("restore "+p.Queue, err)
		}
	}
	return purges, nil
}

// settle forgets a purge of which nothing is kept any more.
func (b *Broker) settle(ctx context.Context, p *Purged) error {
	rest := p.Messages - p.Restored - p.Incomplete
	if p.Unplaced > 0 {
		p.Unplaced = max(1, rest)
		return nil
	}
	if p.Gone = max(0, rest); p.Incomplete > 0 {
		return nil
	}
	_, err := settleScript.run(ctx, b.client, []call{p.settled(strconv.Itoa(p.pieces))})
	return err
}

// settled is a call of settle.lua; pieces is "" where nothing is known of the purge.
func (p *Purged) settled(pieces string) call {
	return call{[]string{purgedPrefix + p.id, purgesKey}, []any{p.id, pieces}}
}

// refill pushes one piece back: what is a whole message of it.
func (b *Broker) refill(ctx context.Context, pace *pacer, p *Purged, n int) error {
	for {
		var elements []string
		err := bounded(pace, func() (atMost time.Duration, err error) {
			elements, err = b.client.LRange(ctx, p.piece(n), 0, -1).Result()
			return readCost(0, elements), err
		})
		if err != nil || len(elements) == 0 {
			return err
		}
		args, whole := []any{len(elements)}, 0
		for i, e := range elements {
			first, last := b.span(p.Kind, e)
			if first != 1 || last != len(e) {
				args = append(args, i+1, first, last)
			}
			if first > 0 {
				whole++
			}
		}
		status, pushed := "restored", int64(0)
		if whole > 0 {
			if status, pushed, err = b.push(ctx, pace, p, n, args); err != nil {
				return err
			}
		}
		switch status {
		case "changed": // another call was faster
			continue
		case "unplaced":
			p.Unplaced = 1
			return nil
		}
		p.Restored += pushed
		p.Incomplete += int64(len(elements) - whole)
		return pace.pay(ctx)
	}
}

func (b *Broker) push(ctx context.Context, pace *pacer, p *Purged, n int, args []any) (status string, pushed int64, err error) {
	if err := ctx.Err(); err != nil {
		return "", 0, err
	}
	var reply any
	err = bounded(pace, func() (atMost time.Duration, err error) {
		reply, err = refillScript.one(context.WithoutCancel(ctx), b.client, []string{p.piece(n), p.List, purgedPrefix + p.id}, args...)
		return drainCost, err
	})
	if err != nil {
		return "", 0, err
	}
	answer, _ := reply.([]any)
	if len(answer) != 2 {
		return "", 0, fmt.Errorf("refill.lua: unexpected reply %v", reply)
	}
	status, _ = answer[0].(string)
	pushed, _ = answer[1].(int64)
	return status, pushed, nil
}

// span is the first and the last byte, from 1, of the message in what was taken out;
// 0, 0 where there is none that a worker survives (design, R10).
func (b *Broker) span(kind, element string) (first, last int) {
	envelope := element
	if kind == purgedUnacked {
		m, _, _, err := nameReader.ReadUnacked(element)
		if err != nil {
			return 0, 0
		}
		envelope = m.Place.Envelope
	}
	if !complete(envelope) {
		return 0, 0
	}
	first = 1 + strings.Index(element, envelope)
	return first, first + len(envelope) - 1
}
