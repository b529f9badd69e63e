package celery_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// sep is kombu's default separator.
const sep = "\x06\x16"

func steps(queue string) []string {
	return []string{queue, queue + sep + "3", queue + sep + "6", queue + sep + "9"}
}

func TestDiscover(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		set  func(*celery.BrokerOptions)
		fill []string
		want []string
	}{
		{"nothing", nil, nil, nil},
		{"configured", func(o *celery.BrokerOptions) { o.Queues = []string{"b", "a"} }, nil, append(steps("a"), steps("b")...)},
		{"bound", nil, []string{"sadd _kombu.binding.scans x" + sep + sep + "scans y" + sep + sep + "other", "sadd _kombu.binding.topic a.*" + sep + `^a\..*?$` + sep + "scans"}, append(steps("other"), steps("scans")...)},
		{"remote control and events are not", nil, []string{
			"sadd _kombu.binding.celery.pidbox " + sep + sep + "w@h.celery.pidbox", "sadd _kombu.binding.reply.celery.pidbox o" + sep + sep + "o.reply.celery.pidbox",
			"sadd _kombu.binding.celeryev " + sep + sep + "celeryev.1", "sadd _kombu.binding.x " + sep + sep + "w@h.celery.pidbox", "rpush o.reply.celery.pidbox @a", "rpush celeryev.1 @a", "rpush orphanwatch:x @a",
		}, nil},
		{"members of another form", nil, []string{"sadd _kombu.binding.a x a" + sep + "b a" + sep + sep + " a" + sep + sep + "b" + sep + "c", "lpush _kombu.binding.b @a", "set _kombu.binding.c x"}, []string{"_kombu.binding.b"}},
		{"prefix", func(o *celery.BrokerOptions) { o.KeyPrefix = "p[*]:" }, []string{"sadd p[*]:_kombu.binding.a a" + sep + sep + "a", "sadd _kombu.binding.b b" + sep + sep + "b", "rpush p[*]:used @a", "rpush pp:not @a", "rpush p[*]:o.reply.celery.pidbox @a"}, append(steps("p[*]:a"), "p[*]:used")},
		{"sep", func(o *celery.BrokerOptions) { o.Sep = ":" }, []string{"sadd _kombu.binding.celery celery::celery"}, []string{"celery", "celery:3", "celery:6", "celery:9"}},
		{"steps", func(o *celery.BrokerOptions) {
			o.PrioritySteps = []int{9, 8, 7, 6, 5, 4, 3, 2, 1, 0}
			o.Queues, o.Sep = []string{"q"}, "-"
		}, nil, []string{"q", "q-1", "q-2", "q-3", "q-4", "q-5", "q-6", "q-7", "q-8", "q-9"}},
		{"used without a binding", nil, []string{"rpush head @a junk", "rpush tail junk @a", "rpush middle junk @a junk", "rpush other {}", "set text x"}, []string{"head", "tail"}},
		{"names that globs mean otherwise", nil, []string{"sadd _kombu.binding.x x" + sep + sep + "q[1]*?"}, steps("q[1]*?")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newBrokerLab(t, func(o *celery.BrokerOptions) {
				if o.Queues = nil; tt.set != nil {
					tt.set(o)
				}
			})
			l.run(tt.fill...)
			before := l.state()
			l.ok(l.Discover(t.Context()))
			l.wantState(before...)
			want := slices.Clone(tt.want)
			slices.Sort(want)
			if got := l.Lists(); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

func TestChanged(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.KeyPrefix = "p:" })
	l.ok(l.Discover(t.Context()))
	want := func(key string, list bool) {
		t.Helper()
		if got, err := celery.Changed(l.Broker, t.Context(), key); got != list || err != nil {
			t.Errorf("%s: %v, %v", key, got, err)
		}
	}
	want("p:celery", true)
	want("p:celery"+sep+"9", true)
	want("celery", false)
	want("p:scans", false)
	l.run("sadd p:_kombu.binding.scans a" + sep + sep + "scans")
	want("p:_kombu.binding.scans", false)
	want("p:scans", true)
	l.run("del p:_kombu.binding.scans")
	want("p:_kombu.binding.scans", false)
	want("p:scans", false)
	want("p:_kombu.binding.celery.pidbox", false)
	// One without a binding, as soon as it holds a message.
	l.run("rpush p:unbound {}", "rpush unbound @a", "rpush p:o.reply.celery.pidbox @a", "rpush orphanwatch:x @a")
	for _, key := range []string{"p:unbound", "unbound", "p:o.reply.celery.pidbox", "orphanwatch:x"} {
		want(key, false)
	}
	l.run("lpush p:unbound @a")
	want("p:unbound", true)
	if !slices.Contains(l.Lists(), "p:unbound") {
		t.Errorf("%q", l.Lists())
	}
}

// TestUnackedHome: to which list a worker gives a message back.
func TestUnackedHome(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	l.run("sadd _kombu.binding.direct rk"+sep+sep+"scans celery"+sep+sep+"other",
		"sadd _kombu.binding.topic scan.*"+sep+`^scan\..*?[^\.]$`+sep+"topics")
	for i, tt := range []struct {
		exchange, key string
		priority      int
		want          string
	}{
		{"", "celery", 0, "celery"},
		{"", "unknown", 2, "unknown"},
		{"", "celery", 3, "celery" + sep + "3"},
		{"", "celery", 8, "celery" + sep + "6"},
		{"", "celery", 99, "celery" + sep + "9"},
		{"", "celery", -1, "celery"},
		{"direct", "rk", 0, "scans"},
		{"direct", "celery", 0, "other"},
		{"topic", "scan.host", 0, "topics"},
		{"topic", "scan.", 0, ""},
		{"nowhere", "celery", 5, "celery" + sep + "3"},
		{"nowhere", "unknown", 0, ""},
		{"", "", 0, ""},
	} {
		id := fmt.Sprint("t", i)
		e := strings.Replace(envelopeOf(id), `"priority": 0`, fmt.Sprintf(`"priority": %d`, tt.priority), 1)
		l.ok(l.client.HSet(t.Context(), "unacked", "tag-"+id, held(e, tt.exchange, tt.key)).Err())
		m := l.sweep()[id]
		if m.Place.List != tt.want || m.Place.Kind != reconciler.UnackedMessage || m.Place.Envelope != e || m.Place.Tag != "tag-"+id {
			t.Errorf("%+v: %+v", tt, m.Place)
		}
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.KeyPrefix = "p:" })
	want := map[string]bool{}
	add := func(list string, n int) {
		var elements []any
		for i := range n {
			id := fmt.Sprint(strings.ReplaceAll(list, sep, "~"), "-", i)
			elements = append(elements, envelopeOf(id))
			want[id] = true
		}
		l.ok(l.client.RPush(t.Context(), list, elements...).Err())
	}
	add("p:celery", 3000)
	add("p:celery"+sep+"9", 7)
	add("p:unbound", 600)
	for i := range 500 {
		id := fmt.Sprint("held-", i)
		l.ok(l.client.HSet(t.Context(), "p:unacked", "tag-"+id, held(envelopeOf(id), "", "celery")).Err())
		want[id] = true
	}
	l.run("lset p:celery 1000 {}", "lset p:celery 2999 %%", "hset p:unacked bad []", "set p:celery"+sep+"3 x", "hset unacked x &other")
	delete(want, "p:celery-1000")
	delete(want, "p:celery-2999")
	calls, last := 0, reconciler.UnackedMessage
	got := map[string]bool{}
	l.ok(l.Sweep(t.Context(), func(messages []reconciler.Message) error {
		calls++
		for _, m := range messages {
			if got[m.ID] = true; !want[m.ID] {
				t.Errorf("%s is not there", m.ID)
			}
			if last != m.Place.Kind && m.Place.Kind == reconciler.UnackedMessage {
				t.Error("an unacked one behind a queued one")
			}
			if last = m.Place.Kind; last == reconciler.QueuedMessage && m.ID != fmt.Sprint(strings.ReplaceAll(m.Place.List, sep, "~"), "-", m.Place.Index) {
				t.Errorf("%s at %d of %q", m.ID, m.Place.Index, m.Place.List)
			}
		}
		return nil
	}))
	if len(got) != len(want) || l.Unreadable() != 3 {
		t.Errorf("%d messages, want %d; %d unreadable, want 3", len(got), len(want), l.Unreadable())
	}
	if calls < 10 {
		t.Errorf("%d windows", calls)
	}
	stop := errors.New("enough")
	if err := l.Sweep(t.Context(), func([]reconciler.Message) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want the error of yield", err)
	}
}

// TestSweepMeetsWhatIsPopped: a worker takes a message after the unacked ones were
// read and before its list is.
func TestSweepMeetsWhatIsPopped(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	l.run("hset unacked tag-a &a", "zadd unacked_index 1 tag-a", "rpush celery @b")
	var got []string
	l.ok(l.Sweep(t.Context(), func(messages []reconciler.Message) error {
		if len(got) == 0 {
			l.run("rpop celery", "hset unacked tag-b &b", "zadd unacked_index 2 tag-b")
		}
		for _, m := range messages {
			got = append(got, m.ID)
		}
		return nil
	}))
	if want := []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("met %v, want %v", got, want)
	}
}

// TestSweepMeetsAll: whatever is taken out or pushed between two windows, each
// message that stays is met.
func TestSweepMeetsAll(t *testing.T) {
	t.Parallel()
	for _, between := range []struct {
		name string
		step func(l *brokerLab, n int)
	}{
		{"taken out at the head", func(l *brokerLab, _ int) { l.run("lpop celery 30") }},
		{"many at once", func(l *brokerLab, n int) {
			if n == 6 {
				l.run("lpop celery 900")
			}
		}},
		{"pushed at the head", func(l *brokerLab, n int) {
			if n < 40 {
				for i := range 70 {
					l.run(fmt.Sprintf("lpush celery @new-%d-%d", n, i))
				}
			}
		}},
		{"popped", func(l *brokerLab, _ int) { l.run("rpop celery 20") }},
	} {
		t.Run(between.name, func(t *testing.T) {
			t.Parallel()
			l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.Share = 1 })
			var all []any
			for i := range 4000 {
				all = append(all, envelopeOf(fmt.Sprint("t", i)))
			}
			l.ok(l.client.RPush(t.Context(), "celery", all...).Err())
			got, n := map[string]bool{}, 0
			l.ok(l.Sweep(t.Context(), func(messages []reconciler.Message) error {
				for _, m := range messages {
					got[m.ID] = true
				}
				between.step(l, n)
				n++
				return nil
			}))
			left := l.client.LRange(t.Context(), "celery", 0, -1).Val()
			for _, e := range left {
				if id := strings.TrimPrefix(short(e), "@"); !got[id] && !strings.HasPrefix(id, "new") {
					t.Errorf("%s was not met", id)
				}
			}
			if len(left) == 0 {
				t.Error("nothing is left to be met")
			}
		})
	}
}

func TestArrivals(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	want := func(ids ...string) {
		t.Helper()
		var got []string
		l.ok(celery.Arrived(l.Broker, t.Context(), "celery", func(messages []reconciler.Message) error {
			for _, m := range messages {
				got = append(got, m.ID)
			}
			return nil
		}))
		if !slices.Equal(got, ids) {
			t.Errorf("arrived %q, want %q", got, ids)
		}
	}
	want()
	l.run("lpush celery @a @b @c")
	want("c", "b", "a")
	want()
	l.run("lpush celery @d {} @e")
	want("e", "d")
	l.run("lpop celery", "lpush celery @f")
	want("f") // the newest of the last time is gone
	l.run("rpop celery 2", "lpush celery @g", "rpush celery @back")
	want("g")
	l.run("del celery", "lpush celery @h")
	want("h")
	failing := errors.New("no")
	l.run("lpush celery @i")
	if err := celery.Arrived(l.Broker, t.Context(), "celery", func([]reconciler.Message) error { return failing }); !errors.Is(err, failing) {
		t.Error(err)
	}
	want("i") // what failed comes again

	// After a sweep only what is newer.
	other := celery.NewBroker(celery.BrokerOptions{Client: l.client, Queues: []string{"celery"}})
	l.ok(other.Sweep(t.Context(), func([]reconciler.Message) error { return nil }))
	l.run("lpush celery @j")
	got := map[string]reconciler.Message{}
	l.ok(celery.Arrived(other, t.Context(), "celery", collect(got)))
	if len(got) != 1 || got["j"].Place.Index != 0 {
		t.Errorf("%v", got)
	}

	// Many at once: by windows, with the index of each.
	for i := range 700 {
		l.run(fmt.Sprint("lpush celery @many-", i))
	}
	got = map[string]reconciler.Message{}
	l.ok(celery.Arrived(l.Broker, t.Context(), "celery", collect(got)))
	if len(got) != 701 || got["many-0"].Place.Index != 699 {
		t.Errorf("%d arrived, the oldest at %d", len(got), got["many-0"].Place.Index)
	}

	l.run("rpush celery @back-1 {} @back-2")
	got = map[string]reconciler.Message{}
	l.ok(celery.Returned(l.Broker, t.Context(), "celery", collect(got)))
	if len(got) != 99 || got["back-2"].Place.Index != l.client.LLen(t.Context(), "celery").Val()-1 {
		t.Errorf("%d returned, %+v", len(got), got["back-2"].Place)
	}
	l.run("del celery")
	for _, list := range []string{"celery", "text"} {
		l.run("set text x")
		got = map[string]reconciler.Message{}
		l.ok(celery.Returned(l.Broker, t.Context(), list, collect(got)))
		l.ok(celery.Arrived(l.Broker, t.Context(), list, collect(got)))
		if len(got) != 0 {
			t.Errorf("%v", got)
		}
	}
}

// TestArrivalsTellWhatWasGivenBack: where nothing is new at the head, the event was
// of the tail.
func TestArrivalsTellWhatWasGivenBack(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	want := func(ids ...string) {
		t.Helper()
		got := map[string]reconciler.Message{}
		l.ok(l.Arrivals(t.Context(), "celery", collect(got)))
		if len(got) != len(ids) {
			t.Errorf("%d arrived, want %q", len(got), ids)
		}
		for _, id := range ids {
			if _, ok := got[id]; !ok {
				t.Errorf("%s did not arrive: %v", id, got)
			}
		}
	}
	l.run("lpush celery @a @b")
	want("a", "b")
	l.run("rpop celery", "rpush celery @back")
	want("b", "back")
	l.run("lpush celery @c")
	want("c")
	l.run("sadd _kombu.binding.scans a" + sep + sep + "scans")
	l.ok(l.Arrivals(t.Context(), "_kombu.binding.scans", collect(map[string]reconciler.Message{})))
	if !slices.Contains(l.Lists(), "scans") {
		t.Errorf("%q", l.Lists())
	}
}

// TestASweepKnowsWhatWasAnnounced: the first message of a new queue may be of a row
// that is deleted before anybody has looked at the queue.
func TestASweepKnowsWhatWasAnnounced(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	l.sweep()
	l.run("lpush new @a", "sadd _kombu.binding.bound x"+sep+sep+"bound", "lpush bound"+sep+"9 @b", "lpush other x")
	if got := l.sweep(); len(got) != 0 {
		t.Errorf("%v", got)
	}
	for _, key := range []string{"new", "_kombu.binding.bound", "other"} {
		l.AppendLooks(nil, key)
	}
	if got := l.sweep(); len(got) != 2 || got["a"].Place.List != "new" || got["b"].Place.List != "bound"+sep+"9" {
		t.Errorf("%v", got)
	}
}

// The rights that doctor asks for are of the queues: a list of another application
// in the same database, which our user may not read, is none of them.
func TestAListThatMayNotBeReadIsPassedOver(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	l.run("rpush celery @a", "rpush another:list x", "acl setuser watch on nopass +@all ~celery* ~_kombu* ~unacked* ~orphanwatch:* allchannels")
	options := *l.client.Options()
	options.Username, options.Password = "watch", "x"
	client := redis.NewClient(&options)
	t.Cleanup(func() { _ = client.Close() })
	b := celery.NewBroker(celery.BrokerOptions{Client: client, Bindings: []reconciler.Binding{scans}})
	l.ok(b.Discover(t.Context()))
	l.ok(b.Arrivals(t.Context(), "another:list", func([]reconciler.Message) error { return nil }))
	n := 0
	l.ok(b.Sweep(t.Context(), func(batch []reconciler.Message) error {
		n += len(batch)
		return nil
	}))
	if n != 1 {
		t.Errorf("%d messages", n)
	}
}
