package celery

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

const (
	// namesMax is how many task names of one queue are counted apart; the rest goes
	// under otherNames.
	namesMax   = 1000
	otherNames = "(other names)"
	// queuesNamed is how many queues an error lists.
	queuesNamed = 50
)

var _ reconciler.Queues = (*Broker)(nil)

// catalog is which list is of which queue.
type catalog struct {
	names   []string
	listsOf map[string][]string // a queue, by steps
	queue   map[string]string   // of a list
}

// broadcasts tells the queues that kombu.common.Broadcast makes by default: their
// messages are published, and are in no list.
func broadcasts(queue string) bool { return strings.HasPrefix(queue, "bcast.") }

// catalog finds the queues anew: those that are bound, configured, or have a list
// with messages. A list that two queues could have (sep ":" and a queue "a:3") is
// that of the queue with its whole name.
func (b *Broker) catalog(ctx context.Context) (*catalog, error) {
	if err := b.Discover(ctx); err != nil {
		return nil, err
	}
	c := &catalog{listsOf: map[string][]string{}, queue: map[string]string{}}
	add := func(queue string) {
		if list := b.options.KeyPrefix + queue; c.queue[list] == "" && !controls(queue) && !broadcasts(queue) {
			c.queue[list] = queue
			c.names = append(c.names, queue)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, queue := range b.options.Queues {
		add(queue)
	}
	for _, bounds := range b.exchanges {
		for _, bound := range bounds {
			add(bound.queue)
		}
	}
	for list := range b.unbound {
		if c.queue[list] == "" {
			add(b.queueOf(list))
		}
	}
	slices.Sort(c.names)
	for _, queue := range c.names {
		c.listsOf[queue] = []string{b.options.KeyPrefix + queue}
		for _, step := range b.options.PrioritySteps {
			if list := b.listKey(queue, step); c.queue[list] == "" {
				c.queue[list] = queue
				c.listsOf[queue] = append(c.listsOf[queue], list)
			}
		}
	}
	return c, nil
}

// queueOf is the queue of a list that nothing else tells the queue of.
func (b *Broker) queueOf(list string) string {
	queue := strings.TrimPrefix(list, b.options.KeyPrefix)
	for _, step := range b.options.PrioritySteps {
		if base, ok := strings.CutSuffix(queue, b.options.Sep+strconv.Itoa(step)); ok && base != "" && step != 0 {
			return base
		}
	}
	return queue
}

// only leaves the queues with these names, all for none. A name that is not known
// is an error that lists those that are.
func (c *catalog) only(names []string) error {
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		if c.listsOf[name] == nil {
			return reconciler.Hint(fmt.Errorf("there is no queue %q", name), c.hint())
		}
	}
	maps.DeleteFunc(c.queue, func(_, queue string) bool { return !slices.Contains(names, queue) })
	c.names = slices.Compact(slices.Sorted(slices.Values(names)))
	return nil
}

func (c *catalog) hint() string {
	if len(c.names) == 0 {
		return "there are no queues at all: see the broker's URL, and celery.global_keyprefix"
	}
	list := "name one of: " + strings.Join(c.names[:min(len(c.names), queuesNamed)], ", ")
	if len(c.names) > queuesNamed {
		list += fmt.Sprintf(", and %d more", len(c.names)-queuesNamed)
	}
	return list
}

// queueWork is what counting and draining share.
type queueWork struct {
	*Broker
	*catalog
	pace     *pacer
	lengths  map[string]int64 // of the lists, when it began
	reports  map[string]*reconciler.QueueReport
	progress func(done, total int64)

	done, total int64
}

func (b *Broker) queueWork(ctx context.Context, names []string, progress func(done, total int64)) (*queueWork, error) {
	c, err := b.catalog(ctx)
	if err == nil {
		err = c.only(names)
	}
	if err != nil {
		return nil, err
	}
	w := &queueWork{
		Broker: b, catalog: c, pace: b.pace(), progress: progress,
		lengths: map[string]int64{}, reports: map[string]*reconciler.QueueReport{},
	}
	if err := w.measure(ctx); err != nil {
		return nil, failed("measure lists", err)
	}
	for _, queue := range c.names {
		w.reports[queue] = &reconciler.QueueReport{Queue: queue, Tasks: map[string]int64{}}
	}
	return w, nil
}

// measure reads the lengths of the lists; a key of another type is none.
func (w *queueWork) measure(ctx context.Context) error {
	var lists []string
	for _, queue := range w.names {
		lists = append(lists, w.listsOf[queue]...)
	}
	for page := range slices.Chunk(lists, 500) {
		cmds := make([]*redis.IntCmd, len(page))
		err := timed(w.pace, func() error {
			_, err := w.client.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i, list := range page {
					cmds[i] = p.LLen(ctx, list)
				}
				return nil
			})
			return err
		})
		for i, list := range page {
			n, one := cmds[i].Result()
			if one != nil && !wrongType(one) {
				return one
			}
			w.lengths[list] = n
			w.total += n
		}
		if err != nil && !wrongType(err) {
			return err
		}
	}
	return nil
}

// advance tells of so many messages more.
func (w *queueWork) advance(n int) {
	if w.done += int64(n); w.progress != nil {
		w.progress(w.done, max(w.done, w.total))
	}
}

func (w *queueWork) report() []reconciler.QueueReport {
	out := make([]reconciler.QueueReport, 0, len(w.names))
	for _, queue := range w.names {
		out = append(out, *w.reports[queue])
	}
	return out
}

// CountQueues counts the messages in these queues by task name, "" for what is
// none that we can read. Our tombstones are not counted. It reads by windows, paced.
func (b *Broker) CountQueues(ctx context.Context, names []string, progress func(done, total int64)) ([]reconciler.QueueReport, error) {
	w, err := b.queueWork(ctx, names, progress)
	if err != nil {
		return nil, err
	}
	met := map[uint64]struct{}{}
	err = w.eachHeld(ctx, func(h held) error {
		is := b.hash(h.tag) ^ b.hash(h.value)
		if _, had := met[is]; had {
			return nil
		}
		if len(met) < metMax {
			met[is] = struct{}{}
		}
		r := w.reports[h.queue]
		r.Unacked++
		countName(r.Tasks, h.name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, queue := range w.names {
		for _, list := range w.listsOf[queue] {
			if err := w.countList(ctx, list, w.reports[queue]); err != nil {
				return nil, err
			}
		}
	}
	return w.report(), nil
}

func (w *queueWork) countList(ctx context.Context, list string, r *reconciler.QueueReport) error {
	if w.lengths[list] == 0 {
		return nil
	}
	return w.walk(ctx, w.pace, list, func(_ int64, elements []string) (bool, error) {
		for _, e := range elements {
			if e == tombstone {
				continue
			}
			m, err := nameReader.Read(e)
			if err != nil {
				m.Name = ""
			}
			r.Messages++
			countName(r.Tasks, m.Name)
		}
		w.advance(len(elements))
		return true, nil
	})
}

// nameReader has no bindings, so that it decodes few bodies.
var nameReader = NewReader(nil)

func countName(tasks map[string]int64, name string) {
	if _, known := tasks[name]; !known && len(tasks) >= namesMax {
		name = otherNames
	}
	tasks[strings.Clone(name)]++ // it shares the message's memory
}

// held is an unacked message of one of the queues.
type held struct {
	tag, value  string
	queue, list string
	name        string // "" where it cannot be read
}

// eachHeld yields the unacked messages of the queues, some of them twice. One whose
// queue cannot be told is of none.
func (w *queueWork) eachHeld(ctx context.Context, yield func(held) error) error {
	return w.eachUnacked(ctx, w.pace, func(fields []string) error {
		for pair := range slices.Chunk(fields, 2) {
			m, exchange, routingKey, err := nameReader.ReadUnacked(pair[1])
			if exchange == "" && routingKey == "" || pair[0] == tombstoneTag {
				continue
			}
			h := held{tag: pair[0], value: pair[1], list: w.home(exchange, routingKey, Priority(m.Place.Envelope))}
			if h.queue = w.queue[h.list]; h.queue == "" {
				continue
			}
			if err == nil {
				h.name = m.Name
			}
			if err := yield(h); err != nil {
				return err
			}
		}
		return nil
	})
}

// eachUnacked yields the fields and values of the hash of unacked messages by
// windows, paced, some of them twice.
func (b *Broker) eachUnacked(ctx context.Context, pace *pacer, yield func(fields []string) error) error {
	n := window(windowFirst)
	for cursor := uint64(0); ; {
		var fields []string
		err := bounded(pace, func() (atMost time.Duration, err error) {
			fields, cursor, err = b.client.HScan(ctx, b.unackedKey(), cursor, "", min(int64(n), unackedMax)).Result()
			return readCost(0, fields), err
		})
		if wrongType(err) {
			return nil
		}
		if err != nil {
			return failed("read unacked", err)
		}
		if err := yield(fields); err != nil {
			return err
		}
		if cursor == 0 {
			return nil
		}
		values := make([]string, 0, len(fields)/2)
		for i := 1; i < len(fields); i += 2 {
			values = append(values, fields[i])
		}
		n.read(values)
		if err := pace.pay(ctx); err != nil {
			return err
		}
	}
}
