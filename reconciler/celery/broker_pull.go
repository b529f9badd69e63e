package celery

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

const (
	// pullNear is how far from an end of its list an element is taken out: LREM
	// walks 0.2 ms per 1000. One that is farther in is replaced by a tombstone.
	pullNear = 5000
	// pullBelow and pullAbove are how far from its index an element is looked for:
	// pushes shift upwards, what we take out shifts downwards.
	pullBelow, pullAbove = 64, 200
	// pullReach is how far from either end it is looked for then.
	pullReach = 3000
	// pullCost is what the pulls of one pipeline may take together by estimate:
	// Redis runs them in a row.
	pullCost  = 2 * time.Millisecond
	pullCalls = 50
	// Estimates of one pull, and of each element that LREM walks over.
	pullBase, pullWalk = 30 * time.Microsecond, 250 * time.Nanosecond
	// pullSearches is how often a batch looks for one that is not near its index in
	// a list, pullWindows how many windows it reads for that in all, and
	// relocateWindows how many for one.
	pullSearches, pullWindows, relocateWindows = 400, 480, 80
	// pullAgain is after how many that are not there a second try ends.
	pullAgain = 8
	// relocateAbove and relocateBelow bound where those windows are.
	relocateAbove, relocateBelow = 20_000, 5_000
)

// Pull takes out each message only while it is what it was, one in each atomic
// step (pull.lua), and keeps it. After an error some may have been pulled: asking
// again is right. Changed may also mean that too much has been pushed or taken
// out since the message was read: the next look finds it.
//
// Within a list it goes from the tail to the head, so that what it takes out does
// not shift what is still to come. What is pushed meanwhile shifts all upwards:
// the shift that was last found is added to the next index.
func (b *Broker) Pull(ctx context.Context, epoch uint64, pulls []reconciler.Pull) ([]reconciler.RemoveStatus, error) {
	deadline, err := b.clock.deadlines(ctx, b.client)
	if err != nil {
		return nil, failed("pull", err)
	}
	p := &pulling{Broker: b, deadline: deadline, pace: b.pace(), epoch: epoch, pulls: pulls, statuses: make([]reconciler.RemoveStatus, len(pulls))}
	var unacked []int
	queued := map[string][]int{}
	var lists []string
	for i, pull := range pulls {
		place := pull.Message.Place
		switch {
		case !complete(place.Envelope):
			// What cannot be put back is not taken out.
			p.statuses[i] = reconciler.Changed
		case place.Kind == reconciler.UnackedMessage:
			unacked = append(unacked, i)
		default:
			if queued[place.List] == nil {
				lists = append(lists, place.List)
			}
			queued[place.List] = append(queued[place.List], i)
		}
	}
	if err := p.unacked(ctx, unacked); err != nil {
		return nil, failed("pull", err)
	}
	for _, list := range lists {
		if err := p.list(ctx, list, queued[list]); err != nil {
			return nil, failed("pull", err)
		}
	}
	return p.statuses, nil
}

// pulling is one batch.
type pulling struct {
	*Broker
	deadline func(looked time.Time) int64
	pace     *pacer
	epoch    uint64
	pulls    []reconciler.Pull
	statuses []reconciler.RemoveStatus
}

func (p *pulling) unacked(ctx context.Context, order []int) error {
	for page := range slices.Chunk(order, pullCalls) {
		calls := make([]call, len(page))
		for n, i := range page {
			place := p.pulls[i].Message.Place
			calls[n] = p.call(i, p.unackedKey(), place.Held, place.List)
			calls[n].keys = append(calls[n].keys, p.unackedIndexKey())
		}
		if _, err := p.run(ctx, page, calls); err != nil {
			return err
		}
	}
	return nil
}

// list pulls the messages of one list.
func (p *pulling) list(ctx context.Context, list string, order []int) error {
	slices.SortFunc(order, func(x, y int) int { return cmp.Compare(p.index(y), p.index(x)) })
	length, err := p.client.LLen(ctx, list).Result()
	if err != nil && !wrongType(err) {
		return err
	}
	q := &pullingList{pulling: p, key: list, length: length, searches: pullSearches, windows: pullWindows, nearest: order[len(order)-1]}
	p.with(list, func(s *listState) { q.drift = s.drift })
	for len(order) > 0 {
		page := order[:q.together(order)]
		order = order[len(page):]
		if err := q.page(ctx, page); err != nil {
			return err
		}
	}
	p.with(list, func(s *listState) { s.drift = q.drift })
	return nil
}

func (p *pulling) index(i int) int64 { return p.pulls[i].Message.Place.Index }

// call is one run of pull.lua, with what differs by kind of place behind.
func (p *pulling) call(i int, key string, more ...any) call {
	pull := p.pulls[i]
	place := pull.Message.Place
	keys := []string{controlKey, messagesPrefix + p.keys.recordID(pull.Subject), key}
	args := append([]any{p.epoch, p.options.Quarantine.Milliseconds(), place.Tag, place.Envelope}, more...)
	return call{keys, append(args, p.deadline(pull.Looked))}
}

// found is where pull.lua met an element.
type found struct {
	status string
	index  int64
}

// run makes the calls in one pipeline and notes how each ended.
func (p *pulling) run(ctx context.Context, page []int, calls []call) ([]found, error) {
	var replies []any
	err := bounded(p.pace, func() (atMost time.Duration, err error) {
		replies, err = pullScript.run(ctx, p.client, calls)
		return pullCost + time.Duration(len(calls))*pullBase, err
	})
	if err != nil {
		return nil, err
	}
	out := make([]found, len(page))
	for n, i := range page {
		answer, _ := replies[n].([]any)
		if len(answer) != 2 {
			return nil, fmt.Errorf("pull.lua: unexpected reply %v", replies[n])
		}
		out[n].status, _ = answer[0].(string)
		out[n].index, _ = answer[1].(int64)
		if p.statuses[i] = reconciler.RemoveStatus(out[n].status); out[n].status == "marked" {
			p.statuses[i] = reconciler.Removed
		}
		if p.statuses[i] == reconciler.Late {
			p.clock.forget()
		}
	}
	return out, p.pace.pay(ctx)
}

// pullingList is the part of a batch that is in one list.
type pullingList struct {
	*pulling
	key    string
	length int64
	// drift is how far the last one was above the index that it was read at.
	drift int64
	// missed are those since one was last found.
	missed            []int
	searches, windows int
	// nearest is the one that is nearest the head; probed: it has been looked for.
	nearest int
	probed  bool
}

// together is how many of the next pulls go in one pipeline: at least one.
func (q *pullingList) together(order []int) int {
	var cost time.Duration
	for n, i := range order {
		at := max(0, q.index(i)+q.drift)
		depth := min(at, max(0, q.length-1-at))
		if depth > q.near {
			return max(n, 1)
		}
		if cost += pullBase + time.Duration(depth)*pullWalk; n > 0 && cost > pullCost || n == pullCalls {
			return n
		}
	}
	return len(order)
}

// page pulls those that are about where they should be, and looks for the others.
func (q *pullingList) page(ctx context.Context, page []int) error {
	calls := make([]call, len(page))
	for n, i := range page {
		calls[n] = q.at(i, q.index(i)+q.drift, 0)
	}
	found, err := q.run(ctx, page, calls)
	if err != nil {
		return err
	}
	for n, i := range page {
		ok := q.note(i, found[n])
		if !ok && q.statuses[i] == reconciler.Changed {
			if ok, err = q.search(ctx, i); err != nil {
				return err
			}
			if !ok {
				q.missed = append(q.missed, i)
			}
		}
		if ok && len(q.missed) > 0 {
			if err := q.again(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// again tries those that were missed before one was found, the nearest first: by
// now it is known how far they have shifted. The farther ones have been popped.
func (q *pullingList) again(ctx context.Context) error {
	missed := q.missed
	q.missed = nil
	drift := q.drift
	for n := 0; len(missed) > 0 && n < pullAgain; n++ {
		i := missed[len(missed)-1]
		missed = missed[:len(missed)-1]
		ok, err := q.one(ctx, i, q.index(i)+q.drift, 0)
		if err != nil {
			return err
		}
		if ok {
			n = -1
		}
	}
	q.drift = max(q.drift, drift)
	return nil
}

func (q *pullingList) at(i int, index, reach int64) call {
	return q.call(i, q.key, index, pullBelow, pullAbove, reach, q.near, tombstone)
}

// note learns from one that was found.
func (q *pullingList) note(i int, f found) bool {
	if f.index < 0 {
		return false
	}
	q.drift = f.index - q.index(i)
	if f.status == "marked" {
		q.with(q.key, func(s *listState) {
			s.tombstones++
			s.marked++
		})
	}
	return true
}

// search looks for one that is not where it should be: at the index that it was
// read at (the shift that was found before may not be its own), near both ends,
// and then by windows around. The first time, the shift is learned from the one
// that is nearest the head, which is the last to be popped; then windows are read
// for the first, second, fourth, … missed in a row, since most have been popped.
func (q *pullingList) search(ctx context.Context, i int) (bool, error) {
	if q.searches--; q.searches < 0 {
		return false, nil
	}
	if ok, err := q.one(ctx, i, q.index(i), pullReach); ok || err != nil || q.length <= 2*pullReach {
		return ok, err
	}
	if !q.probed && q.nearest != i {
		q.probed = true
		index, err := q.relocate(ctx, q.nearest)
		if err != nil {
			return false, err
		}
		if index >= 0 {
			q.drift = index - q.index(q.nearest)
			if ok, err := q.one(ctx, i, q.index(i)+q.drift, 0); ok || err != nil {
				return ok, err
			}
		}
	}
	if nth := len(q.missed) + 1; nth&(nth-1) != 0 {
		return false, nil
	}
	index, err := q.relocate(ctx, i)
	if err != nil || index < 0 {
		return false, err
	}
	return q.one(ctx, i, index, 0)
}

func (q *pullingList) one(ctx context.Context, i int, index, reach int64) (bool, error) {
	found, err := q.run(ctx, []int{i}, []call{q.at(i, index, reach)})
	return err == nil && (q.note(i, found[0]) || q.statuses[i] != reconciler.Changed), err
}

// relocate reads windows above an index and below it by turns, and tells where the
// element is, -1 if it is in none.
func (q *pullingList) relocate(ctx context.Context, i int) (int64, error) {
	element, around := q.pulls[i].Message.Place.Envelope, q.index(i)+q.drift
	n := window(windowFirst)
	above, below := max(0, around), around // where to read next, and from where on it was read
	top, bottom := above+relocateAbove, max(0, around-relocateBelow)
	for left := q.windows - relocateWindows; q.windows > max(0, left) && (above < top || below > bottom); {
		if above < top {
			elements, err := q.window(ctx, above, above+int64(n)-1)
			if at := slices.Index(elements, element); at >= 0 || err != nil {
				return above + int64(at), err
			}
			if above += int64(len(elements)); len(elements) < int(n) {
				top = above // the end of the list
			}
			n.read(elements)
		}
		if below > bottom {
			from := max(bottom, below-int64(n))
			elements, err := q.window(ctx, from, below-1)
			if at := slices.Index(elements, element); at >= 0 || err != nil {
				return from + int64(at), err
			}
			below = from
			n.read(elements)
		}
	}
	return -1, nil
}

func (q *pullingList) window(ctx context.Context, from, to int64) (elements []string, err error) {
	q.windows--
	err = timed(q.pace, func() error {
		elements, err = q.client.LRange(ctx, q.key, from, to).Result()
		return err
	})
	if err != nil {
		return nil, err
	}
	return elements, q.pace.pay(ctx)
}
