package keyspace

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// lists makes a source that of a broker's lists.
func lists(o *Options) {
	o.Lists = true
	o.Keys = celery.NewBroker(celery.BrokerOptions{Client: o.Client})
}

// push waits until a push of our own to a list has come through, so that all before has.
func (f *fixture) push() {
	f.t.Helper()
	for range 2 {
		key := "sentinel" + instance()
		f.do("LPUSH", key, "x")
		f.await("sentinel", func() bool { return f.sink.saw(key) })
	}
}

// TestListEvents: which commands of the application say that something is new in a
// list or a binding.
func TestListEvents(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	f := watching(t, server, lists)
	other := dial(t, server.DB(1))
	type cmd = []any
	for _, c := range []struct {
		name        string
		before, act []cmd
		want        []string
	}{
		{"lpush", nil, []cmd{{"LPUSH", "celery", "m"}}, []string{"celery"}},
		{"rpush", nil, []cmd{{"RPUSH", "celery", "m"}}, []string{"celery"}},
		{"several", nil, []cmd{{"LPUSH", "celery", "a", "b"}, {"LPUSH", "q\x06\x163", "m"}}, []string{"celery", "q\x06\x163"}},
		{"a new queue", nil, []cmd{{"LPUSH", "never:seen [*]\xff", "m"}}, []string{"never:seen [*]\xff"}},
		{"a binding", nil, []cmd{{"SADD", "_kombu.binding.celery", "b"}}, []string{"_kombu.binding.celery"}},
		{"a binding that is there", []cmd{{"SADD", "_kombu.binding.celery", "b"}}, []cmd{{"SADD", "_kombu.binding.celery", "b"}}, []string{}},
		{"moved to the other end", []cmd{{"LPUSH", "a", "m"}}, []cmd{{"LMOVE", "a", "b", "LEFT", "RIGHT"}}, []string{"b"}},
		{"rpoplpush", []cmd{{"LPUSH", "a", "m"}}, []cmd{{"RPOPLPUSH", "a", "b"}}, []string{"b"}},
		{"popped", []cmd{{"LPUSH", "celery", "m"}}, []cmd{{"BRPOP", "celery", "1"}}, []string{}},
		{"removed", []cmd{{"LPUSH", "celery", "m"}}, []cmd{{"LREM", "celery", "1", "m"}}, []string{}},
		{"deleted", []cmd{{"LPUSH", "celery", "m"}}, []cmd{{"DEL", "celery"}}, []string{}},
		{"a result", nil, []cmd{{"SET", meta + "a", "1"}, {"HSET", "unacked", "t", "m"}, {"ZADD", "unacked_index", "1", "t"}}, []string{}},
		{"in a transaction", nil, []cmd{{"EVAL", "redis.call('HDEL','unacked','t') redis.call('RPUSH',KEYS[1],'m')", "1", "celery"}}, []string{"celery"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.do("FLUSHALL")
			for _, args := range c.before {
				f.do(args...)
			}
			f.push()
			f.sink.clear()
			for _, args := range c.act {
				f.do(args...)
			}
			f.push()
			if got := f.sink.ids(); !reflect.DeepEqual(got, c.want) {
				t.Errorf("hints of %q, want %q", got, c.want)
			}
			events, _, _ := f.sink.now()
			for _, e := range events {
				if e.Subject.Kind != reconciler.QueueList && e.Subject.Kind != reconciler.Canary || e.Trigger != reconciler.ByEvent || e.Seen.IsZero() {
					t.Errorf("%+v", e)
				}
			}
		})
	}
	f.sink.clear()
	if err := other.LPush(context.Background(), "elsewhere", "m").Err(); err != nil {
		t.Fatal(err)
	}
	f.push()
	if got := f.sink.ids(); len(got) > 0 {
		t.Errorf("hints of another database: %q", got)
	}
	if _, gaps, _ := f.sink.now(); len(gaps) > 0 {
		t.Errorf("gaps %v", gaps)
	}
}

// TestListsCanary: the whole path is proven, in the broker's name, and nothing is left.
func TestListsCanary(t *testing.T) {
	t.Parallel()
	f := watching(t, sandbox.NewRedis(t), func(o *Options) {
		lists(o)
		o.CanaryEvery = 50 * time.Millisecond
	})
	f.awaitMode(ModeKeyspace)
	f.await("three canaries", func() bool {
		events, _, _ := f.sink.now()
		n := 0
		for _, e := range events {
			if e.Subject == (reconciler.Subject{Kind: reconciler.Canary, ID: watcher.SourceBroker}) {
				n++
			}
		}
		return n >= 3
	})
	keys, err := f.client.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) > 1 {
		t.Errorf("keys %q, %v: want the canary's alone", keys, err)
	}
	for _, key := range keys {
		if n := f.client.LLen(t.Context(), key).Val(); n > 1 {
			t.Errorf("%s has grown to %d", key, n)
		}
		if ttl := f.client.PTTL(t.Context(), key).Val(); ttl <= 0 || ttl > canaryLife {
			t.Errorf("%s lasts %v", key, ttl)
		}
	}
	// Events are taken away: it says so, and comes back when it has added them again.
	f.do("CONFIG", "SET", flagsName, "")
	f.awaitGap(gapCanary)
	f.awaitMode(ModeKeyspace)
	f.push()
	if f.source.Name() != watcher.SourceBroker {
		t.Errorf("name %s", f.source.Name())
	}
}

// TestListsFlags: what is missing is added to what is there.
func TestListsFlags(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ have, want string }{
		{"", "Els"}, {"K$", "K$Els"}, {"Ex", "xEls"}, {"KA", "AKE"}, {"AKE", "AKE"}, {"Kgn", "gKnEls"},
	} {
		server := sandbox.NewRedis(t, sandbox.RedisOptions{Args: []string{"--notify-keyspace-events", c.have}})
		f := watching(t, server, lists)
		f.awaitMode(ModeKeyspace)
		f.push()
		have, err := readFlags(t.Context(), f.client)
		if err != nil || !sameFlags(have, c.want) {
			t.Errorf("%q became %q, %v; want %q", c.have, have, err, c.want)
		}
		f.stop()
	}
}

func sameFlags(a, b string) bool {
	x, y := []byte(a), []byte(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// TestTwoSourcesAtOnce: results and broker in one Redis: neither takes the other's
// flags away, nor those of the application.
func TestTwoSourcesAtOnce(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t, sandbox.RedisOptions{Args: []string{"--notify-keyspace-events", "Ex"}})
	admin := dial(t, server.URL())
	for range 10 {
		if err := admin.ConfigSet(t.Context(), flagsName, "Ex").Err(); err != nil {
			t.Fatal(err)
		}
		var both sync.WaitGroup
		fixtures := make([]*fixture, 2)
		for i, change := range []func(*Options){nil, lists} {
			fixtures[i] = run(t, server, server.URL(), change)
			both.Go(func() { <-fixtures[i].ready })
		}
		both.Wait()
		have, err := readFlags(t.Context(), admin)
		if err != nil || !hasFlags(have, "Ex"+resultFlags+brokerFlags) {
			t.Fatalf("flags %q, %v", have, err)
		}
		for _, f := range fixtures {
			f.awaitMode(ModeKeyspace)
			f.stop()
		}
	}
}

// TestListsScanOnly: where events are not to be had there is no other way, and why
// is said with what mends it.
func TestListsScanOnly(t *testing.T) {
	t.Parallel()
	t.Run("configure is never", func(t *testing.T) {
		t.Parallel()
		f := watching(t, sandbox.NewRedis(t), func(o *Options) { never(o); lists(o) })
		why := f.awaitMode(ModeScan)
		if !strings.Contains(why, `notify-keyspace-events is "" and redis.configure is never`) {
			t.Errorf("why: %s", why)
		}
		if have, err := readFlags(t.Context(), f.client); err != nil || have != "" {
			t.Errorf("flags %q, %v; want them untouched", have, err)
		}
		f.do("LPUSH", "celery", "m")
		f.shell(fixes(why)[0])
		f.awaitMode(ModeKeyspace)
		f.awaitGap(gapLadder)
		f.push()
		if slices.Contains(f.sink.ids(), "celery") {
			t.Error("an event from before the flags")
		}
	})
	t.Run("no channels", func(t *testing.T) {
		t.Parallel()
		f := as(t, sandbox.NewRedis(t), func(o *Options) { fast(o); lists(o) }, "+@all", "~*", "resetchannels")
		why := f.awaitMode(ModeScan)
		f.shell(fixes(why)[0])
		f.awaitMode(ModeKeyspace)
		f.push()
	})
	t.Run("no right to the canary", func(t *testing.T) {
		t.Parallel()
		f := as(t, sandbox.NewRedis(t), func(o *Options) { fast(o); lists(o) }, "+@all", "-ltrim", "~*", "&*")
		why := f.awaitMode(ModeScan)
		if !strings.Contains(why, "NOPERM") {
			t.Errorf("why: %s", why)
		}
		f.shell(fixes(why)[0])
		f.awaitMode(ModeKeyspace)
		f.push()
	})
}

// TestCheckLists: each right that the broker needs is asked for, by the right key;
// and the one command of the finding gives it.
func TestCheckLists(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	admin := dial(t, server.URL())
	f := &fixture{t: t, server: server}
	options := func(user string) Options {
		o := Options{
			Client: dial(t, strings.Replace(server.URL(), "redis://", "redis://"+user+":x@", 1)),
			Prefix: "p:", Publish: []string{"p:/0.celery.pidbox"},
		}
		lists(&o)
		return o
	}
	for _, c := range []struct {
		user  string
		rules []any
		want  string
	}{
		{"nothing", []any{"+acl", "+ping", "+hello"}, "LREM p:celery 1 x"},
		{"no-lrem", []any{"+@all", "-lrem", "~*", "&*"}, "LREM p:celery 1 x"},
		{"no-hdel", []any{"+@all", "-hdel", "~*", "&*"}, "HDEL p:unacked x"},
		{"no-zrem", []any{"+@all", "-zrem", "~*", "&*"}, "ZREM p:unacked_index x"},
		{"no-lset", []any{"+@all", "-lset", "~*", "&*"}, "LSET p:celery 0 x"},
		{"no-sscan", []any{"+@all", "-sscan", "~*", "&*"}, "SSCAN p:_kombu.binding.celery 0"},
		{"no-ltrim", []any{"+@all", "-ltrim", "~*", "&*"}, "LTRIM orphanwatch:canary:x 0 0"},
		{"no-publish", []any{"+@all", "~*", "resetchannels", "&__keyevent@0__:*"}, "PUBLISH p:/0.celery.pidbox x"},
		{"no-events", []any{"+@all", "~*", "resetchannels", "&p:*"}, "SUBSCRIBE __keyevent@0__:lpush"},
		{"other-keys", []any{"+@all", "&*", "~celery", "~unacked*", "~orphanwatch:*"}, "HSCAN p:unacked 0"},
	} {
		t.Run(c.user, func(t *testing.T) {
			if err := admin.Do(t.Context(), append([]any{"ACL", "SETUSER", c.user, "on", ">x"}, c.rules...)...).Err(); err != nil {
				t.Fatal(err)
			}
			got := named(t, Check(t.Context(), options(c.user)), nameRights)
			if got.OK || !strings.Contains(got.Detail, c.want) {
				t.Fatalf("%+v, want %s", got, c.want)
			}
			f.shell(got.Fix)
			if got := named(t, Check(t.Context(), options(c.user)), nameRights); !got.OK {
				t.Errorf("after the fix: %+v", got)
			}
		})
	}
	t.Run("flags", func(t *testing.T) {
		if err := admin.ConfigSet(t.Context(), flagsName, "K$").Err(); err != nil {
			t.Fatal(err)
		}
		o := options("no-lrem") // who has got all by now
		got := named(t, Check(t.Context(), o), nameFlags)
		if got.OK || !strings.Contains(got.Detail, "new messages are not announced") || !strings.Contains(got.Fix, "Els") {
			t.Fatalf("%+v", got)
		}
		if _, err := got.Mend(t.Context()); err != nil {
			t.Fatal(err)
		}
		have, err := readFlags(t.Context(), admin)
		if got := named(t, Check(t.Context(), o), nameFlags); err != nil || !got.OK || !hasFlags(have, resultFlags+brokerFlags) {
			t.Errorf("%+v, flags %q, %v", got, have, err)
		}
	})
}

// TestCheckListsIsEnough: a user with the rights that are asked for, and no more, can
// do what the broker does.
func TestCheckListsIsEnough(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	admin := dial(t, server.URL())
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "bare", "on", ">x", "+acl|whoami", "+acl|dryrun", "+ping", "+hello", "+info", "+client").Err(); err != nil {
		t.Fatal(err)
	}
	client := dial(t, strings.Replace(server.URL(), "redis://", "redis://bare:x@", 1))
	o := Options{Client: client, Publish: []string{"/0.celery.pidbox"}}
	lists(&o)
	f := &fixture{t: t, server: server}
	f.shell(named(t, Check(t.Context(), o), nameRights).Fix)
	const envelope = `{"body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json", ` +
		`"headers": {"lang": "py", "task": "scan", "id": "a", "retries": 0}, "properties": {"delivery_mode": 2, ` +
		`"delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0, "body_encoding": "base64", "delivery_tag": "tag"}}`
	_, err := admin.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.LPush(t.Context(), "celery", envelope)
		p.SAdd(t.Context(), "_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
		p.HSet(t.Context(), "unacked", "tag2", "["+strings.Replace(envelope, `"tag"`, `"tag2"`, 1)+`, "", "celery"]`)
		p.ZAdd(t.Context(), "unacked_index", redis.Z{Score: 1, Member: "tag2"})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b := celery.NewBroker(celery.BrokerOptions{Client: client, Bindings: []reconciler.Binding{{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true}}})
	var pulls []reconciler.Pull
	steps := []struct {
		name string
		do   func() error
	}{
		{"epoch", func() error { return b.SetEpoch(t.Context(), 7) }},
		{"discover", func() error { return b.Discover(t.Context()) }},
		{"sweep", func() error {
			return b.Sweep(t.Context(), func(ms []reconciler.Message) error {
				for _, m := range ms {
					pulls = append(pulls, reconciler.Pull{Subject: reconciler.TaskSubject(m.ID), Message: m})
				}
				return nil
			})
		}},
		{"arrivals", func() error {
			return b.Arrivals(t.Context(), "celery", func([]reconciler.Message) error { return nil })
		}},
		{"pull", func() error {
			statuses, err := b.Pull(t.Context(), 7, pulls)
			if err == nil && !slices.Equal(statuses, []reconciler.RemoveStatus{reconciler.Removed, reconciler.Removed}) {
				t.Errorf("%v", statuses)
			}
			return err
		}},
		{"purge", func() error { return b.PurgeTombstones(t.Context()) }},
		{"restore", func() error { _, err := b.RestoreMessages(t.Context(), []string{"task:a"}, 1); return err }},
		{"release", func() error {
			_, err := b.Release(t.Context(), 7, []reconciler.Revival{{Subject: reconciler.TaskSubject("a"), Looked: time.Now()}})
			return err
		}},
		{"revoke", func() error { _, _, err := b.Revoke(t.Context(), 7, time.Now(), []string{"a"}); return err }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}
