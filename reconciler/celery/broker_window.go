package celery

import (
	"context"
	"hash/maphash"
	"slices"
	"time"
)

const (
	// windowBytes is what one call reads of a list: well below 1 ms of the server.
	windowBytes = 256 << 10
	// windowFirst is how many elements the first call reads, windowMax the most.
	windowFirst, windowMax = 8, 500
	// windowAnchors is how many of the last elements the next window has to meet.
	windowAnchors = 8
	// windowBack and windowSteps: it steps back by 128, then 256, …, 8000 in all.
	windowBack, windowSteps = 64, 6
)

// window is how many elements make up windowBytes: by those just read, and at most
// twice as many as before, since the next may be larger.
type window int

// readCost is what the server takes at most to read elements from an index on: a
// call, a seek of 0.13 ms in the middle of a million, and a copy of 0.1 ms for each
// 256 KiB (performance facts; twice that is taken).
func readCost(start int64, elements []string) time.Duration {
	size := 0
	for _, e := range elements {
		size += len(e)
	}
	return 50*time.Microsecond + time.Duration(start/2) + time.Duration(size)
}

func (w *window) read(elements []string) {
	if len(elements) == 0 {
		return
	}
	size := 0
	for _, e := range elements {
		size += len(e)
	}
	*w = window(min(max(windowBytes*len(elements)/max(size, 1), 1), int(*w)*2, windowMax))
}

func (b *Broker) hash(element string) uint64 { return maphash.String(b.seed, element) }

// walk reads a list from the head to the tail by windows, until fn has enough.
// Pushes at the head shift elements to higher indexes: they are met again, and not
// given to fn again. What is taken out ahead of the window shifts them to lower
// ones: so each window begins with the last elements of the one before, and where
// it does not, walk steps back until it meets them.
func (b *Broker) walk(ctx context.Context, pace *pacer, list string, fn func(at int64, elements []string) (more bool, err error)) error {
	n, start := window(windowFirst), int64(0)
	b.with(list, func(s *listState) { n = max(n, s.window/2) }) // those now at the head may be larger
	defer func() { b.with(list, func(s *listState) { s.window = n }) }()
	var last trail
	var lost int64 // where it was first missed
	for steps := 0; ; {
		count := int64(n) + last.span
		var elements []string
		err := bounded(pace, func() (atMost time.Duration, err error) {
			elements, err = b.client.LRange(ctx, list, start, start+count-1).Result()
			return readCost(start, elements), err
		})
		if wrongType(err) {
			return nil
		}
		if err != nil {
			return failed("read list", err)
		}
		if err := pace.pay(ctx); err != nil {
			return err
		}
		fresh, met := last.meet(b, elements)
		if !met {
			if steps == 0 {
				lost = start
			}
			if steps++; steps <= windowSteps && start > 0 {
				start = max(0, start-int64(windowBack)<<steps)
			} else {
				// They are gone themselves: popped, or taken out.
				start, steps, last = max(0, lost-windowBack), 0, trail{}
			}
			continue
		}
		steps = 0
		if fresh < len(elements) {
			if more, err := fn(start+int64(fresh), elements[fresh:]); err != nil || !more {
				return err
			}
			last.leave(b, elements[fresh:])
		}
		if int64(len(elements)) < count {
			return nil
		}
		start = max(0, start+count-last.span)
		n.read(elements)
	}
}

// trail is what the next window has to meet: hashes of the last elements, but of
// tombstones, which are all the same. It begins span elements before the end of the
// last window, and ends with so many tombstones.
type trail struct {
	anchors          []uint64
	span, tombstones int64
}

// meet finds the first element behind the trail that is in the window.
func (t *trail) meet(b *Broker, elements []string) (fresh int, met bool) {
	if len(t.anchors) == 0 {
		return 0, true
	}
	for i := len(elements) - 1; i >= 0; i-- {
		at := slices.Index(t.anchors, b.hash(elements[i]))
		if at < 0 {
			continue
		}
		fresh = i + 1
		if at == len(t.anchors)-1 {
			for n := t.tombstones; n > 0 && fresh < len(elements) && elements[fresh] == tombstone; n-- {
				fresh++
			}
		}
		return fresh, true
	}
	return 0, false
}

// leave goes on to the elements that were met.
func (t *trail) leave(b *Broker, elements []string) {
	var next trail
	for i := len(elements) - 1; i >= 0 && len(next.anchors) < windowAnchors; i-- {
		switch {
		case elements[i] != tombstone:
			next.anchors = append(next.anchors, b.hash(elements[i]))
			next.span = int64(len(elements) - i)
		case len(next.anchors) == 0:
			next.tombstones++
		}
	}
	slices.Reverse(next.anchors)
	if len(next.anchors) == 0 && len(t.anchors) > 0 && t.span < windowMax {
		next = trail{t.anchors, t.span + next.tombstones, t.tombstones + next.tombstones}
	}
	*t = next
}
