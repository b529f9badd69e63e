package celery

import (
	"context"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// unackedMax is how many fields of the hash of unacked messages one call reads at most.
const unackedMax = 200

func (b *Broker) unackedKey() string      { return b.options.KeyPrefix + "unacked" }
func (b *Broker) unackedIndexKey() string { return b.options.KeyPrefix + "unacked_index" }

// Sweep yields every message that can be read in the lists that are known (see
// Discover, which the first sweep calls), as reconciler.Messages says. It counts
// what cannot (Unreadable), and our tombstones. A key that holds another type than
// a list is passed over.
func (b *Broker) Sweep(ctx context.Context, yield func([]reconciler.Message) error) error {
	if !b.discovered.Load() {
		if err := b.Discover(ctx); err != nil {
			return err
		}
	}
	if err := b.learn(ctx); err != nil {
		return err
	}
	pace := b.pace()
	// What workers hold comes first, since it starts first; and once more at the end:
	// they take messages out of lists that have not been read yet.
	met := map[uint64]struct{}{}
	if _, err := b.sweepUnacked(ctx, pace, met, yield); err != nil {
		return err
	}
	lists, err := b.filled(ctx, pace)
	if err != nil {
		return err
	}
	var unreadable int64
	for _, list := range lists {
		n, err := b.sweepList(ctx, pace, list, yield)
		if err != nil {
			return err
		}
		unreadable += n
	}
	n, err := b.sweepUnacked(ctx, pace, met, yield)
	if err != nil {
		return err
	}
	unreadable += n
	b.unreadable.Store(unreadable)
	return nil
}

// filled are the known lists that hold anything.
func (b *Broker) filled(ctx context.Context, pace *pacer) ([]string, error) {
	var out []string
	for page := range slices.Chunk(b.Lists(), 500) {
		lengths := make([]*redis.IntCmd, len(page))
		err := timed(pace, func() error {
			_, err := b.client.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i, list := range page {
					lengths[i] = p.LLen(ctx, list)
				}
				return nil
			})
			return err
		})
		if err != nil && !wrongType(err) {
			return nil, failed("measure lists", err)
		}
		for i, list := range page {
			n, err := lengths[i].Result()
			if err != nil && !wrongType(err) {
				return nil, failed("measure lists", err)
			}
			if n > 0 {
				out = append(out, list)
			} else {
				b.with(list, func(s *listState) { s.tombstones, s.marked = 0, 0 })
			}
		}
	}
	return out, nil
}

// metMax is how many unacked messages are not yielded twice by one sweep.
const metMax = 100_000

// sweepUnacked yields the unacked messages that have not been met.
func (b *Broker) sweepUnacked(ctx context.Context, pace *pacer, met map[uint64]struct{}, yield func([]reconciler.Message) error) (unreadable int64, err error) {
	err = b.eachUnacked(ctx, pace, func(fields []string) error {
		messages := make([]reconciler.Message, 0, len(fields)/2)
		for pair := range slices.Chunk(fields, 2) {
			is := b.hash(pair[0]) ^ b.hash(pair[1])
			if _, had := met[is]; had {
				continue
			}
			m, err := b.readUnacked(pair[0], pair[1])
			if err == nil {
				messages = append(messages, m)
				if len(met) < metMax {
					met[is] = struct{}{}
				}
			} else if pair[0] != tombstoneTag {
				unreadable++
			}
		}
		if len(messages) == 0 {
			return nil
		}
		return yield(messages)
	})
	if err != nil {
		return 0, err
	}
	return unreadable, nil
}

// readUnacked reads a field of the hash of unacked messages: its name is the
// delivery tag.
func (b *Broker) readUnacked(tag, value string) (reconciler.Message, error) {
	m, exchange, routingKey, err := b.reader.ReadUnacked(value)
	if err != nil {
		return m, err
	}
	m.Place.Tag = tag
	m.Place.List = b.home(exchange, routingKey, Priority(m.Place.Envelope))
	return m, nil
}

func (b *Broker) sweepList(ctx context.Context, pace *pacer, list string, yield func([]reconciler.Message) error) (unreadable int64, err error) {
	var tombstones int64
	b.with(list, func(s *listState) { s.marked = 0 })
	err = b.walk(ctx, pace, list, func(at int64, elements []string) (bool, error) {
		if at == 0 {
			b.with(list, func(s *listState) {
				if s.newest == nil {
					s.newest = b.newest(elements)
				}
			})
		}
		messages, bad, ours := b.read(list, at, elements)
		unreadable += bad
		tombstones += ours
		if len(messages) == 0 {
			return true, nil
		}
		return true, yield(messages)
	})
	if err == nil {
		// Those that were put behind the sweep's back are counted twice at worst.
		b.with(list, func(s *listState) { s.tombstones = tombstones + s.marked })
	}
	return unreadable, err
}

// read reads elements of a list, the first of them at an index.
func (b *Broker) read(list string, at int64, elements []string) (messages []reconciler.Message, unreadable, tombstones int64) {
	messages = make([]reconciler.Message, 0, len(elements))
	for i, e := range elements {
		if e == tombstone {
			tombstones++
			continue
		}
		m, err := b.reader.Read(e)
		if err != nil {
			// A tombstone that a worker gave back has other bytes.
			if !strings.Contains(e, `"`+tombstoneTag+`"`) {
				unreadable++
			}
			continue
		}
		m.Place.List, m.Place.Index = list, at+int64(i)
		messages = append(messages, m)
	}
	return messages, unreadable, tombstones
}

// newest are hashes of up to 8 of the elements at the head, farther and farther
// apart: should the newest be pulled, those behind them still tell the place.
func (b *Broker) newest(elements []string) []uint64 {
	out := []uint64{}
	for i := 0; i < len(elements); i += max(1, i) {
		if elements[i] != tombstone {
			out = append(out, b.hash(elements[i]))
		}
	}
	return out[:min(len(out), 8)]
}

// Arrivals yields what is new in the list with a key that an event named: see
// arrived and returned. Of an exchange's bindings it reads which queues they name;
// a list that is not known yet becomes so if it holds messages.
func (b *Broker) Arrivals(ctx context.Context, key string, yield func([]reconciler.Message) error) error {
	list, err := b.changed(ctx, key)
	if err != nil || !list {
		return err
	}
	some := false
	err = b.arrived(ctx, key, func(batch []reconciler.Message) error {
		some = true
		return yield(batch)
	})
	if err != nil || some {
		return err
	}
	return b.returned(ctx, key, yield)
}

// arrived yields what is new at the head of a list since it was last asked for, or
// since the first sweep: the elements before the first one that it remembers, or all.
func (b *Broker) arrived(ctx context.Context, list string, yield func([]reconciler.Message) error) error {
	var known, newest []uint64
	b.with(list, func(s *listState) { known = s.newest })
	first := true
	err := b.walk(ctx, b.pace(), list, func(at int64, elements []string) (bool, error) {
		if first {
			newest, first = b.newest(elements), false
		}
		more := true
		for i, e := range elements {
			if slices.Contains(known, b.hash(e)) {
				elements, more = elements[:i], false
				break
			}
		}
		messages, _, _ := b.read(list, at, elements)
		if len(messages) == 0 {
			return more, nil
		}
		return more, yield(messages)
	})
	if err == nil {
		b.with(list, func(s *listState) { s.newest = newest })
	}
	return err
}

// returnedMax is how many elements at the tail returned reads at most.
const returnedMax = 100

// returned yields the messages at the tail of a list, up to 100 in up to about
// 256 KiB: workers that stop, and the visibility timeout, give back to there.
func (b *Broker) returned(ctx context.Context, list string, yield func([]reconciler.Message) error) error {
	length, err := b.client.LLen(ctx, list).Result()
	if wrongType(err) {
		return nil
	}
	if err != nil {
		return failed("read list", err)
	}
	n := window(windowFirst)
	for read, size := int64(0), 0; read < min(length, returnedMax) && size < windowBytes; {
		count := min(int64(n), returnedMax-read)
		elements, err := b.client.LRange(ctx, list, -read-count, -read-1).Result()
		if wrongType(err) {
			return nil
		}
		if err != nil {
			return failed("read list", err)
		}
		if len(elements) == 0 {
			return nil
		}
		read += int64(len(elements))
		for _, e := range elements {
			size += len(e)
		}
		messages, _, _ := b.read(list, max(0, length-read), elements)
		if len(messages) > 0 {
			if err := yield(messages); err != nil {
				return err
			}
		}
		n.read(elements)
	}
	return nil
}

// AppendLooks appends what an event of a key says: that something is new in a list.
// With Patterns it makes the broker's keys what package keyspace watches.
func (b *Broker) AppendLooks(to []reconciler.Look, key string) []reconciler.Look {
	b.announce(key)
	return append(to, reconciler.Look{Subject: reconciler.Subject{Kind: reconciler.QueueList, ID: key}})
}

// Patterns are none: lists are not watched by their names, so that no new one is missed.
func (b *Broker) Patterns() []string { return nil }

// ControlChannel is where workers hear revokes.
func (b *Broker) ControlChannel() string {
	return pidboxChannel(b.options.KeyPrefix, b.options.DB, b.options.ControlExchange)
}
