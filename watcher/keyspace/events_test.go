package keyspace

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// TestEvents: which commands on a result key are hints, and which are echoes.
func TestEvents(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t, sandbox.RedisOptions{Args: []string{"--notify-keyspace-events", "KAn"}})
	f := watching(t, server, nil)
	other := dial(t, server.DB(1))
	dump := func() string {
		f.do("SET", "plain", "v")
		v, err := f.client.Dump(context.Background(), "plain").Result()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}()
	const k = meta + "a"
	type cmd = []any
	for _, c := range []struct {
		name        string
		before, act []cmd
		want        []string
	}{
		{"set", nil, []cmd{{"SET", k, "1"}}, []string{"a"}},
		{"setex", nil, []cmd{{"SETEX", k, "100", "1"}}, []string{"a"}},
		{"psetex", nil, []cmd{{"PSETEX", k, "100000", "1"}}, []string{"a"}},
		{"setnx", nil, []cmd{{"SETNX", k, "1"}}, []string{"a"}},
		{"mset", nil, []cmd{{"MSET", k, "1", meta + "b", "2"}}, []string{"a", "b"}},
		{"getset", nil, []cmd{{"GETSET", k, "1"}}, []string{"a"}},
		{"append", nil, []cmd{{"APPEND", k, "1"}}, []string{"a"}},
		{"setrange", nil, []cmd{{"SETRANGE", k, "0", "1"}}, []string{"a"}},
		{"incr", nil, []cmd{{"INCR", k}}, []string{"a"}},
		{"hset", nil, []cmd{{"HSET", k, "f", "v"}}, []string{"a"}},
		{"restore", nil, []cmd{{"RESTORE", k, "0", dump}}, []string{"a"}},
		{"copy", []cmd{{"SET", k, "1"}}, []cmd{{"COPY", k, meta + "b"}}, []string{"b"}},
		{"rename", []cmd{{"SET", k, "1"}}, []cmd{{"RENAME", k, meta + "b"}}, []string{"b"}},
		{"rename away", []cmd{{"SET", k, "1"}}, []cmd{{"RENAME", k, "elsewhere"}}, []string{}},
		{"rename in", []cmd{{"SET", "elsewhere", "1"}}, []cmd{{"RENAME", "elsewhere", k}}, []string{"a"}},
		{"transaction", nil, []cmd{{"EVAL", "redis.call('SETEX',KEYS[1],9,'v') redis.call('PUBLISH',KEYS[1],'v')", "1", k}}, []string{"a"}},
		{"del", []cmd{{"SET", k, "1"}}, []cmd{{"DEL", k}}, []string{}},
		{"unlink", []cmd{{"SET", k, "1"}}, []cmd{{"UNLINK", k}}, []string{}},
		{"getdel", []cmd{{"SET", k, "1"}}, []cmd{{"GETDEL", k}}, []string{}},
		{"expire", []cmd{{"SET", k, "1"}}, []cmd{{"EXPIRE", k, "100"}}, []string{}},
		{"expire in the past", []cmd{{"SET", k, "1"}}, []cmd{{"EXPIRE", k, "-1"}}, []string{}},
		{"getex", []cmd{{"SET", k, "1"}}, []cmd{{"GETEX", k, "EX", "100"}}, []string{}},
		{"persist", []cmd{{"SETEX", k, "100", "1"}}, []cmd{{"PERSIST", k}}, []string{}},
		{"move out", []cmd{{"SET", k, "1"}}, []cmd{{"MOVE", k, "1"}}, []string{}},
		{"flushdb", []cmd{{"SET", k, "1"}}, []cmd{{"FLUSHDB"}}, []string{}},
		{"foreign keys", nil, []cmd{{"SET", "celery-taskset-meta-a", "1"}, {"LPUSH", "celery", "x"}, {"SET", "orphanwatch:x", "1"}}, []string{}},
		{"no id", nil, []cmd{{"SET", meta, "1"}}, []string{}},
		{"any id", nil, []cmd{{"SET", meta + "scan:42 [*]\r\n\x00\xff", "1"}}, []string{"scan:42 [*]\r\n\x00\xff"}},
		{"longest id", nil, []cmd{{"SET", meta + strings.Repeat("x", maxID), "1"}}, []string{strings.Repeat("x", maxID)}},
		{"id too long", nil, []cmd{{"SET", meta + strings.Repeat("x", maxID+10), "1"}}, []string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.do("FLUSHALL")
			for _, args := range c.before {
				f.do(args...)
			}
			f.settle()
			f.sink.clear()
			for _, args := range c.act {
				f.do(args...)
			}
			f.settle()
			if got := f.sink.ids(); !reflect.DeepEqual(got, c.want) {
				t.Errorf("hints of %q, want %q", got, c.want)
			}
		})
	}
	t.Run("move in", func(t *testing.T) {
		f.sink.clear()
		f.do("FLUSHALL")
		if err := other.Do(context.Background(), "SET", k, "1").Err(); err != nil {
			t.Fatal(err)
		}
		if err := other.Do(context.Background(), "MOVE", k, "0").Err(); err != nil {
			t.Fatal(err)
		}
		f.await("the hint", func() bool { return f.sink.saw("a") })
	})
	t.Run("expired", func(t *testing.T) {
		f.do("SET", k, "1", "PX", "20")
		f.settle()
		f.sink.clear()
		f.await("expiry", func() bool { return f.client.Exists(context.Background(), k).Val() == 0 })
		f.settle()
		if got := f.sink.ids(); len(got) != 0 {
			t.Errorf("hints of %q, want none", got)
		}
	})
	// A new key has two events, which may be merged.
	if n := f.source.Ignored(); n < 2 || n > 4 {
		t.Errorf("%d events ignored, want 2 to 4: of a key without an id, and of one that is too long", n)
	}
	if _, gaps, _ := f.sink.now(); len(gaps) != 0 {
		t.Errorf("gaps %v, want none", gaps)
	}
}

// TestSubjects: what an event carries.
func TestSubjects(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	f := watching(t, server, func(o *Options) { o.Keys = newKeys("created[*]:{key}:x?") })
	const canonical = "0f8fad5b-d9cb-469f-a165-70867728950e"
	const mixed = "0F8fad5b-d9cb-469f-a165-70867728950E"
	for _, c := range []struct {
		key  string
		want watcher.Event
	}{
		{meta + canonical, watcher.Event{Subject: reconciler.Subject{Kind: reconciler.Task, ID: canonical}}},
		{meta + strings.ToUpper(canonical), watcher.Event{Subject: reconciler.Subject{Kind: reconciler.Task, ID: canonical}}},
		{meta + strings.ReplaceAll(canonical, "-", ""), watcher.Event{Subject: reconciler.Subject{Kind: reconciler.Task, ID: canonical}}},
		{meta + mixed, watcher.Event{Subject: reconciler.Subject{Kind: reconciler.Task, ID: canonical}, Spelling: mixed}},
		{"created[*]:42:x?", watcher.Event{Subject: reconciler.Subject{Kind: reconciler.Row, ID: "42"}}},
		{"created[*]:" + mixed + ":x?", watcher.Event{Subject: reconciler.Subject{Kind: reconciler.Row, ID: canonical}, Spelling: mixed}},
	} {
		f.settle()
		f.sink.clear()
		before := time.Now()
		f.do("SET", c.key, "1")
		f.do("SET", "created*:7:xy", "1") // what the globs would match were they not escaped
		f.do("SET", "createdX:7:x?", "1")
		f.await("event of "+c.key, func() bool { return f.sink.saw(c.want.Subject.ID) })
		f.settle()
		if ids := f.sink.ids(); len(ids) != 1 {
			t.Errorf("%s: events of %q, want of it alone", c.key, ids)
		}
		events, _, _ := f.sink.now()
		for _, got := range events {
			if got.Subject.ID != c.want.Subject.ID {
				continue
			}
			if got.Seen.Before(before) || got.Seen.After(time.Now()) {
				t.Errorf("%s: seen %s, written after %s", c.key, got.Seen, before)
			}
			c.want.Trigger, got.Seen = reconciler.ByEvent, time.Time{}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s: %+v, want %+v", c.key, got, c.want)
			}
		}
	}
}

// TestDatabase: only events of the client's own database count.
func TestDatabase(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	f := run(t, server, server.DB(3), nil)
	f.awaitReady()
	f.do("SET", meta+"elsewhere", "1") // in database 0
	f.client = dial(t, server.DB(3))
	f.do("SET", meta+"here", "1")
	f.settle()
	if got := f.sink.ids(); !reflect.DeepEqual(got, []string{"here"}) {
		t.Errorf("events of %q, want of the one in database 3", got)
	}
}

// TestCanaryIsOffered: the probe takes the way of all events.
func TestCanaryIsOffered(t *testing.T) {
	t.Parallel()
	f := watching(t, sandbox.NewRedis(t), func(o *Options) { o.CanaryEvery = 50 * time.Millisecond })
	f.await("three canaries", func() bool {
		n := 0
		events, _, _ := f.sink.now()
		for _, e := range events {
			if e.Subject == (reconciler.Subject{Kind: reconciler.Canary, ID: watcher.SourceRedis}) && !e.Seen.IsZero() {
				n++
			}
		}
		return n >= 3
	})
	if keys := f.client.Keys(context.Background(), "*").Val(); len(keys) != 1 || !strings.HasPrefix(keys[0], "orphanwatch:canary:") {
		t.Errorf("keys %q, want only the canary's", keys)
	}
	if ttl := f.client.PTTL(context.Background(), f.source.canaryKey).Val(); ttl <= 0 || ttl > canaryLife {
		t.Errorf("the canary lives for %s, want up to %s", ttl, canaryLife)
	}
}

// TestCoalescing: while the queue is full, 100,000 writes of few keys stay few entries.
func TestCoalescing(t *testing.T) {
	t.Parallel()
	f := watching(t, sandbox.NewRedis(t), func(o *Options) { o.MaxPending = 50 })
	f.settle()
	f.sink.clear()
	f.sink.setFull(true)
	const keys = 20
	f.write(100_000, keys)
	f.do("SET", meta+"last", "1")
	f.await("all to be received", func() bool { return f.source.set.has(meta + "last") })
	f.sink.setFull(false)
	f.settle()
	events, gaps, _ := f.sink.now()
	if len(f.sink.ids()) != keys+1 || len(gaps) != 0 {
		t.Errorf("%d keys and gaps %v, want %d and none", len(f.sink.ids()), gaps, keys+1)
	}
	// What had been taken before the queue was full may come a second time.
	if len(events) > 2*keys+10 {
		t.Errorf("%d events, want about %d", len(events), keys)
	}
}

func (s *set) has(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.keys[key]
	return ok
}

// write sets n times, one of so many keys each, without notice of single replies.
func (f *fixture) write(n, keys int) {
	f.t.Helper()
	const script = "for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do redis.call('SET', ARGV[4]..(i % tonumber(ARGV[3])), 'v') end"
	for from := 0; from < n; from += 10_000 {
		f.do("EVAL", script, "0", from, min(from+10_000, n)-1, keys, meta+"k")
	}
}

// TestOverflow: more keys than the set holds are a gap, and watching goes on.
func TestOverflow(t *testing.T) {
	t.Parallel()
	f := watching(t, sandbox.NewRedis(t), func(o *Options) { o.MaxPending = 100 })
	f.settle()
	f.sink.clear()
	f.sink.setFull(true)
	f.write(1000, 1000)
	f.awaitGap(gapOverflow)
	f.await("all to be received", func() bool {
		f.do("SET", meta+"last", "1") // which may overflow too
		return f.source.set.has(meta + "last")
	})
	f.sink.setFull(false)
	f.settle()
	if n := len(f.sink.ids()); n == 0 || n > 250 {
		t.Errorf("%d keys, want what the set held: some, at most about 200", n)
	}
	if _, gaps, h := f.sink.now(); !h.Connected || len(gaps) > 10 {
		t.Errorf("connected %t with %d gaps, want true with about 9", h.Connected, len(gaps))
	}
}

func TestKeysOfWiring(t *testing.T) {
	t.Parallel()
	if got := fmt.Sprint(newKeys("a:{key}").Patterns()); got != "[celery-task-meta-* a:*]" {
		t.Errorf("patterns %s: the results' must be the first, which celery publish relies on", got)
	}
}
