package celery

import (
	"context"
	"hash/maphash"
	"slices"
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
	var anchors []uint64
	var lost int64 // where the anchors were first missed
	for steps := 0; ; {
		count := int64(n) + int64(len(anchors))
		var elements []string
		err := timed(pace, func() (err error) {
			elements, err = b.client.LRange(ctx, list, start, start+count-1).Result()
			return err
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
		fresh, met := b.meet(elements, anchors)
		if !met {
			if steps == 0 {
				lost = start
			}
			if steps++; steps <= windowSteps && start > 0 {
				start = max(0, start-int64(windowBack)<<steps)
			} else {
				// They are gone themselves: popped, or taken out.
				start, steps, anchors = max(0, lost-windowBack), 0, nil
			}
			continue
		}
		steps = 0
		if fresh < len(elements) {
			if more, err := fn(start+int64(fresh), elements[fresh:]); err != nil || !more {
				return err
			}
			anchors = b.anchors(anchors, elements[fresh:])
		}
		if int64(len(elements)) < count {
			return nil
		}
		start = max(0, start+count-int64(len(anchors)))
		n.read(elements)
	}
}

// meet finds the first element behind the last anchor that is in the window.
func (b *Broker) meet(elements []string, anchors []uint64) (fresh int, met bool) {
	if len(anchors) == 0 {
		return 0, true
	}
	for i := len(elements) - 1; i >= 0; i-- {
		if slices.Contains(anchors, b.hash(elements[i])) {
			return i + 1, true
		}
	}
	return 0, false
}

// anchors are the last elements that tell a place: tombstones are all the same.
func (b *Broker) anchors(before []uint64, elements []string) []uint64 {
	for _, e := range elements[max(0, len(elements)-windowAnchors):] {
		if e != tombstone {
			before = append(before, b.hash(e))
		}
	}
	return before[max(0, len(before)-windowAnchors):]
}
