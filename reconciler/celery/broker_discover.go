package celery

import (
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// bindingInfix stands between the prefix and the exchange's name in the key of
// the set that holds an exchange's bindings (kombu.transport.redis).
const bindingInfix = "_kombu.binding."

// bound is a member of such a set.
type bound struct{ routingKey, pattern, queue string }

func (b *Broker) bindingPrefix() string { return b.options.KeyPrefix + bindingInfix }

// Discover finds the lists that hold messages: of the queues that exchanges are
// bound to and of the configured ones, one for each priority step, and other
// lists that hold messages now. Bindings are only read.
func (b *Broker) Discover(ctx context.Context) error {
	pace := b.pace()
	exchanges := map[string][]bound{}
	err := b.scanKeys(ctx, pace, escapeGlob(b.bindingPrefix())+"*", "set", func(keys []string) error {
		for _, key := range keys {
			exchange := strings.TrimPrefix(key, b.bindingPrefix())
			if controls(exchange) || exchanges[exchange] != nil {
				continue
			}
			bounds, err := b.readBinding(ctx, pace, key)
			if err != nil {
				return err
			}
			exchanges[exchange] = bounds
		}
		return nil
	})
	if err != nil {
		return failed("discover queues", err)
	}
	b.mu.Lock()
	b.exchanges = exchanges
	b.relist()
	known := keySet(b.lists)
	b.mu.Unlock()

	// One that is empty now may be used again: it stays known.
	err = b.scanKeys(ctx, pace, escapeGlob(b.options.KeyPrefix)+"*", "list", func(keys []string) error {
		keys = slices.DeleteFunc(keys, func(key string) bool {
			return known[key] || strings.HasPrefix(key, Own) || controls(strings.TrimPrefix(key, b.options.KeyPrefix))
		})
		used, err := b.holdMessages(ctx, pace, keys)
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, key := range used {
			b.unbound[key] = true
		}
		b.relist()
		return err
	})
	b.discovered.Store(err == nil)
	return failed("discover lists", err)
}

// scanKeys yields the keys that match, a type's alone.
func (b *Broker) scanKeys(ctx context.Context, pace *pacer, pattern, kind string, yield func([]string) error) error {
	for cursor := uint64(0); ; {
		var keys []string
		err := timed(pace, func() (err error) {
			keys, cursor, err = b.client.ScanType(ctx, cursor, pattern, scanCount, kind).Result()
			return err
		})
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			if err := yield(keys); err != nil {
				return err
			}
		}
		if cursor == 0 {
			return nil
		}
		if err := pace.pay(ctx); err != nil {
			return err
		}
	}
}

// readBinding reads what one exchange is bound to. Members of another form are
// not kombu's and are passed over.
func (b *Broker) readBinding(ctx context.Context, pace *pacer, key string) ([]bound, error) {
	out := []bound{}
	for cursor := uint64(0); ; {
		var members []string
		err := timed(pace, func() (err error) {
			members, cursor, err = b.client.SScan(ctx, key, cursor, "", scanCount).Result()
			return err
		})
		if wrongType(err) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		for _, member := range members {
			if f := strings.Split(member, b.options.Sep); len(f) == 3 && f[2] != "" && !controls(f[2]) {
				out = append(out, bound{f[0], f[1], f[2]})
			}
		}
		if cursor == 0 {
			slices.SortFunc(out, func(x, y bound) int { return strings.Compare(x.queue, y.queue) })
			return out, nil
		}
		if err := pace.pay(ctx); err != nil {
			return nil, err
		}
	}
}

// holdMessages are those of the lists whose first or last element is a message. A
// key that is no list by now, or that our user may not read, is none.
func (b *Broker) holdMessages(ctx context.Context, pace *pacer, keys []string) ([]string, error) {
	var out []string
	for page := range slices.Chunk(keys, 20) {
		ends := make([]*redis.StringCmd, 2*len(page))
		err := timed(pace, func() error {
			_, err := b.client.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i, key := range page {
					ends[2*i], ends[2*i+1] = p.LIndex(ctx, key, 0), p.LIndex(ctx, key, -1)
				}
				return nil
			})
			return err
		})
		if err != nil && !passedOver(ends) {
			return out, err
		}
		for i, key := range page {
			if complete(ends[2*i].Val()) || complete(ends[2*i+1].Val()) {
				out = append(out, key)
			}
		}
		if err := pace.pay(ctx); err != nil {
			return out, err
		}
	}
	return out, nil
}

// passedOver tells whether nothing has failed but what says that a list is not for
// us: it is empty or gone, of another type, or one that our user may not read.
func passedOver(ends []*redis.StringCmd) bool {
	for _, end := range ends {
		err := end.Err()
		if err != nil && !errors.Is(err, redis.Nil) && !wrongType(err) && !redis.IsPermissionError(err) {
			return false
		}
	}
	return true
}

// controls tells names of remote control and events: what is in such lists are
// replies, not tasks.
func controls(name string) bool {
	return strings.HasSuffix(name, ".pidbox") || name == "celeryev" || strings.HasPrefix(name, "celeryev.")
}

func wrongType(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "WRONGTYPE") }

// relist works out the known lists anew; b.mu is held.
func (b *Broker) relist() {
	all := maps.Clone(b.unbound)
	add := func(queue string) {
		for _, step := range b.options.PrioritySteps {
			all[b.listKey(queue, step)] = true
		}
	}
	for _, queue := range b.options.Queues {
		add(queue)
	}
	for _, bounds := range b.exchanges {
		for _, bound := range bounds {
			add(bound.queue)
		}
	}
	b.lists = slices.Sorted(maps.Keys(all))
	for key, s := range b.states {
		if !all[key] && s.tombstones == 0 {
			delete(b.states, key)
		}
	}
}

// listKey is the key of a queue's list for a priority step.
func (b *Broker) listKey(queue string, step int) string {
	if step == 0 {
		return b.options.KeyPrefix + queue
	}
	return b.options.KeyPrefix + queue + b.options.Sep + strconv.Itoa(step)
}

// home is the list to which a worker gives a message back, "" where that cannot
// be told. Workers before kombu 5.4 push to the list of step 0 instead.
func (b *Broker) home(exchange, routingKey string, priority int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	queue := routingKey
	if exchange != "" {
		if queue = lookup(b.exchanges[exchange], routingKey); queue == "" && slices.Contains(b.lists, b.options.KeyPrefix+routingKey) {
			queue = routingKey
		}
	}
	if queue == "" {
		return ""
	}
	// As kombu does: the highest step up to the priority.
	steps := b.options.PrioritySteps
	step := steps[len(steps)-1]
	for i := len(steps) - 1; i >= 0; i-- {
		if step = steps[i]; step <= min(max(priority, 0), 9) {
			break
		}
	}
	return b.listKey(queue, step)
}

// lookup is the queue that an exchange puts a routing key into: one that is bound
// by it, else one whose pattern (a topic's, as a regular expression) matches.
func lookup(bounds []bound, routingKey string) string {
	for _, b := range bounds {
		if b.routingKey == routingKey {
			return b.queue
		}
	}
	for _, b := range bounds {
		if b.pattern == "" {
			continue
		}
		if re, err := regexp.Compile("^(?:" + b.pattern + ")"); err == nil && re.MatchString(routingKey) {
			return b.queue
		}
	}
	return ""
}

// Lists are the keys of the lists that are known now.
func (b *Broker) Lists() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.lists)
}

// maxNews bounds the keys that wait to be looked at.
const maxNews = 10_000

// announce notes a key that an event named: should it be a new queue's, the next
// sweep must not miss it.
func (b *Broker) announce(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := slices.BinarySearch(b.lists, key); !known && len(b.news) < maxNews {
		b.news[key] = struct{}{}
	}
}

// learn looks at what was announced.
func (b *Broker) learn(ctx context.Context) error {
	b.mu.Lock()
	news := b.news
	b.news = map[string]struct{}{}
	b.mu.Unlock()
	for key := range news {
		if _, err := b.changed(ctx, key); err != nil {
			for key := range news {
				b.announce(key)
			}
			return err
		}
	}
	return nil
}

// changed is told of a key that an event named, and tells whether it is a list with
// messages. Of an exchange it reads the bindings again.
func (b *Broker) changed(ctx context.Context, key string) (list bool, err error) {
	if exchange, ok := strings.CutPrefix(key, b.bindingPrefix()); ok {
		return false, b.rebind(ctx, key, exchange)
	}
	b.mu.Lock()
	_, list = slices.BinarySearch(b.lists, key)
	b.mu.Unlock()
	name, ours := strings.CutPrefix(key, b.options.KeyPrefix)
	if list || !ours || strings.HasPrefix(key, Own) || controls(name) {
		return list, nil
	}
	used, err := b.holdMessages(ctx, b.pace(), []string{key})
	if err != nil || len(used) == 0 {
		return false, failed("look at list", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unbound[key] = true
	b.relist()
	return true, nil
}

func (b *Broker) rebind(ctx context.Context, key, exchange string) error {
	if controls(exchange) {
		return nil
	}
	bounds, err := b.readBinding(ctx, b.pace(), key)
	if err != nil {
		return failed("read bindings", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exchanges[exchange] = bounds
	b.relist()
	return nil
}

func keySet(keys []string) map[string]bool {
	out := make(map[string]bool, len(keys))
	for _, key := range keys {
		out[key] = true
	}
	return out
}
