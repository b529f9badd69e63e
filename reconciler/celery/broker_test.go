package celery_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// TestPullTable pulls the messages of tasks whose id begins with v, all of one
// sweep in one batch.
func TestPullTable(t *testing.T) {
	t.Parallel()
	const record = "orphanwatch:messages:task:"
	redelivered := strings.Replace(envelopeOf("v"), `"retries": 0`, `"retries": 0, "redelivered": true`, 1)
	for _, tt := range []struct {
		name string
		// before are commands before the sweep; between, after it.
		before, between []string
		want            string
		// state is what is left; kept, what the records hold.
		state, kept []string
	}{
		{"queued", []string{"rpush celery @a @v @b"}, nil, "removed", []string{"celery: @a @b"}, []string{"v: m:tag-v=@v p:tag-v=Hcelery"}},
		{"nearer the tail", []string{"rpush celery @a @b @c @v @d"}, nil, "removed", []string{"celery: @a @b @c @d"}, []string{"v: m:tag-v=@v p:tag-v=Tcelery"}},
		{"the only one", []string{"rpush celery @v"}, nil, "removed", nil, []string{"v: m:tag-v=@v p:tag-v=Hcelery"}},
		{"several", []string{"rpush celery @v1 @a @v2 @v3 @b @v4"}, nil, "removed removed removed removed", []string{"celery: @a @b"}, []string{"v1: m:tag-v1=@v1 p:tag-v1=Hcelery", "v2: m:tag-v2=@v2 p:tag-v2=Tcelery", "v3: m:tag-v3=@v3 p:tag-v3=Tcelery", "v4: m:tag-v4=@v4 p:tag-v4=Tcelery"}},
		{"sent twice", []string{"rpush celery @a @v @b @v @c"}, nil, "removed removed", []string{"celery: @a @b @c"}, []string{"v: m:tag-v=@v p:tag-v=Tcelery"}},
		{"a retry beside it", []string{"rpush celery @v/1 @a @v/2"}, []string{"lrem celery 1 @v/2"}, "changed", []string{"celery: @v/1 @a"}, nil},
		{"of a priority", []string{"rpush celery\x06\x163 @v @a"}, nil, "removed", []string{"celery\x06\x163: @a"}, []string{"v: m:tag-v=@v p:tag-v=Hcelery\x06\x163"}},
		{"pushed meanwhile", []string{"rpush celery @a @v1 @b @v2"}, []string{"lpush celery @x @y @z"}, "removed removed", []string{"celery: @z @y @x @a @b"}, []string{"v1: m:tag-v1=@v1 p:tag-v1=Tcelery", "v2: m:tag-v2=@v2 p:tag-v2=Tcelery"}},
		{"one behind was popped", []string{"rpush celery @a @v @b"}, []string{"rpop celery"}, "removed", []string{"celery: @a"}, []string{"v: m:tag-v=@v p:tag-v=Tcelery"}},
		{"one before it was taken out", []string{"rpush celery @a @b @v"}, []string{"lrem celery 1 @a"}, "removed", []string{"celery: @b"}, []string{"v: m:tag-v=@v p:tag-v=Tcelery"}},
		{"popped", []string{"rpush celery @a @v"}, []string{"rpop celery"}, "changed", []string{"celery: @a"}, nil},
		{"all popped", []string{"rpush celery @v"}, []string{"rpop celery"}, "changed", nil, nil},
		{"given back with other bytes", []string{"rpush celery @a @v"}, []string{"rpop celery", "rpush celery REDELIVERED"}, "changed", []string{"celery: @a @v(redelivered)"}, nil},
		{"a set by now", []string{"rpush celery @v"}, []string{"del celery", "sadd celery x"}, "changed", []string{"celery: x"}, nil},
		{"stale", []string{"rpush celery @v"}, []string{"hset orphanwatch:control epoch 8"}, "stale", []string{"celery: @v"}, nil},
		{"no control", []string{"rpush celery @v"}, []string{"del orphanwatch:control"}, "stale", []string{"celery: @v"}, nil},
		{"paused", []string{"rpush celery @v"}, []string{"hset orphanwatch:control paused 1"}, "paused", []string{"celery: @v"}, nil},
		{"held", []string{"rpush celery @v @v2"}, []string{"hset " + record + "v hold_until 99999999999999"}, "held removed", []string{"celery: @v"}, []string{"v: hold_until=set", "v2: m:tag-v2=@v2 p:tag-v2=Tcelery"}},
		{"the hold is over", []string{"rpush celery @v"}, []string{"hset " + record + "v hold_until 1"}, "removed", nil, []string{"v: hold_until=set m:tag-v=@v p:tag-v=Hcelery"}},
		{"the first wins", []string{"rpush celery @v", "hset " + record + "v m:tag-v first p:tag-v Tother"}, nil, "removed", nil, []string{"v: m:tag-v=first p:tag-v=Tother"}},
		{"unacked", []string{"hset unacked tag-v &v tag-a &a", "zadd unacked_index 1 tag-v 2 tag-a"}, nil, "removed", []string{"unacked: tag-a=&a", "unacked_index: tag-a"}, []string{"v: m:tag-v=@v p:tag-v=Tcelery"}},
		{"acknowledged", []string{"hset unacked tag-v &v tag-a &a", "zadd unacked_index 1 tag-v 2 tag-a"}, []string{"hdel unacked tag-v", "zrem unacked_index tag-v"}, "changed", []string{"unacked: tag-a=&a", "unacked_index: tag-a"}, nil},
		{"held by a worker again", []string{"hset unacked tag-v &v", "zadd unacked_index 1 tag-v"}, []string{"hset unacked tag-v HELD"}, "changed", []string{"unacked: tag-v=&v(redelivered)", "unacked_index: tag-v"}, nil},
		{"unacked without an index", []string{"hset unacked tag-v &v", "set unacked_index x"}, nil, "removed", []string{"unacked_index: x"}, []string{"v: m:tag-v=@v p:tag-v=Tcelery"}},
		{"unacked is no hash by now", []string{"hset unacked tag-v &v"}, []string{"del unacked", "set unacked x"}, "changed", []string{"unacked: x"}, nil},
		{"unacked, stale", []string{"hset unacked tag-v &v", "zadd unacked_index 1 tag-v"}, []string{"hset orphanwatch:control epoch 8"}, "stale", []string{"unacked: tag-v=&v", "unacked_index: tag-v"}, nil},
		{"garbage around it", []string{"rpush celery {} null @v %% {\"properties\":{}}"}, nil, "removed", []string{"celery: {} null  {\"properties\":{}}"}, []string{"v: m:tag-v=@v p:tag-v=Hcelery"}},
	} {
		for _, quarantine := range []time.Duration{time.Hour, 0} {
			t.Run(fmt.Sprint(tt.name, " ", quarantine), func(t *testing.T) {
				t.Parallel()
				l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.Quarantine = quarantine })
				l.run(tt.before...)
				var victims []reconciler.Message
				l.ok(l.Sweep(t.Context(), func(messages []reconciler.Message) error {
					for _, m := range messages {
						if strings.HasPrefix(m.ID, "v") {
							victims = append(victims, m)
						}
					}
					return nil
				}))
				for _, c := range tt.between {
					switch {
					case strings.HasSuffix(c, "REDELIVERED"):
						l.ok(l.client.RPush(t.Context(), "celery", redelivered).Err())
					case strings.HasSuffix(c, "HELD"):
						l.ok(l.client.HSet(t.Context(), "unacked", "tag-v", held(redelivered, "", "celery")).Err())
					default:
						l.run(c)
					}
				}
				if strings.HasPrefix(tt.name, "a retry") {
					victims = victims[1:]
				}
				var got []string
				for _, s := range l.pull(victims...) {
					got = append(got, string(s))
				}
				if strings.Join(got, " ") != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
				want := slices.Clone(tt.state)
				for _, k := range tt.kept {
					if quarantine == 0 { // only what was there before
						if tt.name == "the first wins" || strings.Contains(k, "hold_until") {
							k, _, _ = strings.Cut(k, " m:tag-v=@")
							want = append(want, record+k)
						}
						continue
					}
					want = append(want, record+k)
				}
				slices.Sort(want)
				l.wantState(want...)
				if quarantine > 0 && len(tt.kept) > 0 && !strings.Contains(tt.want, "held") {
					id, _, _ := strings.Cut(tt.kept[0], ":")
					if left := l.client.PTTL(t.Context(), record+id).Val(); left < quarantine-time.Minute || left > quarantine {
						t.Errorf("the record lasts %v", left)
					}
				}
			})
		}
	}
}

// TestPullDeep: far from both ends a tombstone takes the message's place, whatever
// was pushed since it was read; it leaves when it has come near the tail.
func TestPullDeep(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	const n = 12_000
	all := make([]any, n)
	for i := range all {
		all[i] = envelopeOf(fmt.Sprint("t", i))
	}
	l.ok(l.client.RPush(t.Context(), "celery", all...).Err())
	swept := l.sweep()
	if len(swept) != n || swept["t5999"].Place.Index != 5999 {
		t.Fatalf("%d swept, %+v", len(swept), swept["t5999"].Place)
	}
	push := func(prefix string, count int) {
		more := make([]any, count)
		for i := range more {
			more[i] = envelopeOf(fmt.Sprint(prefix, i))
		}
		l.ok(l.client.LPush(t.Context(), "celery", more...).Err())
	}
	push("some", 150)
	push("many", 1850)
	victims := []reconciler.Message{swept["t10"], swept["t4999"], swept["t5000"], swept["t7000"], swept["t7001"], swept["t11990"], swept["t11999"]}
	for i, s := range l.pull(victims...) {
		if s != reconciler.Removed {
			t.Errorf("%d: %s", i, s)
		}
	}
	if got := l.Tombstones(); got != 2 { // t4999 and t5000; the others are within 5000 of an end
		t.Errorf("%d tombstones", got)
	}
	if length := l.client.LLen(t.Context(), "celery").Val(); length != n+2000-5 {
		t.Errorf("%d elements", length)
	}
	for _, m := range victims {
		kept, err := l.MessagesOf(t.Context(), "task:"+m.ID)
		l.ok(err)
		if len(kept) != 1 || kept[0].Envelope != m.Place.Envelope || kept[0].List != "celery" || kept[0].Tag != m.Place.Tag {
			t.Errorf("%+v", kept)
		}
	}
	again := l.sweep()
	if len(again) != n+2000-7 || l.Unreadable() != 0 || l.Tombstones() != 2 {
		t.Errorf("%d messages, %d unreadable, %d tombstones", len(again), l.Unreadable(), l.Tombstones())
	}
	l.ok(l.PurgeTombstones(t.Context()))
	if l.Tombstones() != 2 {
		t.Errorf("purged far from the tail: %d are left", l.Tombstones())
	}
	l.ok(l.client.LTrim(t.Context(), "celery", 0, 9999).Err()) // now 3005 from the tail
	l.ok(l.PurgeTombstones(t.Context()))
	if l.Tombstones() != 0 || l.client.LLen(t.Context(), "celery").Val() != 9998 {
		t.Errorf("%d tombstones, %d elements", l.Tombstones(), l.client.LLen(t.Context(), "celery").Val())
	}

	// One that no other led to, far in: it is met by windows above and below.
	for _, shift := range []string{"pushed", "taken out"} {
		l.run("del celery")
		l.ok(l.client.RPush(t.Context(), "celery", all...).Err())
		l.Broker = celery.NewBroker(celery.BrokerOptions{Client: l.client, Queues: []string{"celery"}})
		victim := l.sweep()["t5500"]
		if shift == "pushed" {
			push("few", 900)
		} else {
			l.run("lpop celery 450")
		}
		if got := l.pull(victim); got[0] != reconciler.Removed {
			t.Errorf("%s: %s", shift, got)
		}
		for _, e := range l.client.LRange(t.Context(), "celery", 0, -1).Val() {
			if e == victim.Place.Envelope {
				t.Errorf("%s: it is still there", shift)
			}
		}
	}

	// Those at the tail were popped, the others have shifted: what is missed first
	// does not keep the rest from being found.
	l.run("del celery")
	l.ok(l.client.RPush(t.Context(), "celery", all...).Err())
	l.Broker = celery.NewBroker(celery.BrokerOptions{Client: l.client, Queues: []string{"celery"}, Share: 1})
	swept = l.sweep()
	victims = nil
	for i := 3500; i < n; i += 100 {
		if i < 5000 || i >= n-3500 {
			victims = append(victims, swept[fmt.Sprint("t", i)])
		}
	}
	push("more", 3500)
	l.run("rpop celery 3500")
	for i, s := range l.pull(victims...) {
		if want := i < 15; (s == reconciler.Removed) != want {
			t.Errorf("%s: %s", victims[i].ID, s)
		}
	}

	// A tombstone of someone before us, in a short list: the sweep counts it.
	l.run("del celery")
	l.ok(l.client.RPush(t.Context(), "celery", envelopeOf("a"), celery.Tombstone, envelopeOf("b"), envelopeOf("c"), celery.Tombstone).Err())
	l.sweep()
	if l.Tombstones() != 2 || l.Unreadable() != 0 {
		t.Errorf("%d tombstones, %d unreadable", l.Tombstones(), l.Unreadable())
	}
	l.ok(l.PurgeTombstones(t.Context()))
	if got := l.state()[0]; got != "celery: @a @b @c" || l.Tombstones() != 0 {
		t.Errorf("%s, %d tombstones", got, l.Tombstones())
	}
	l.run("del celery", "set celery x")
	l.ok(l.PurgeTombstones(t.Context()))
}

func TestRestoreMessages(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	l.run("rpush celery @a @v @b @c @w", "hset unacked tag-u &u tag-x &x", "zadd unacked_index 1 tag-u")
	l.ok(l.client.HSet(t.Context(), "unacked", "tag-x", held(envelopeOf("x"), "nowhere", "lost")).Err())
	swept := l.sweep()
	if swept["x"].Place.List != "" || swept["u"].Place.List != "celery" {
		t.Fatalf("%+v, %+v", swept["x"].Place, swept["u"].Place)
	}
	l.pull(swept["v"], swept["w"], swept["u"], swept["x"])
	l.wantState("celery: @a @b @c",
		"orphanwatch:messages:task:u: m:tag-u=@u p:tag-u=Tcelery", "orphanwatch:messages:task:v: m:tag-v=@v p:tag-v=Hcelery",
		"orphanwatch:messages:task:w: m:tag-w=@w p:tag-w=Tcelery", "orphanwatch:messages:task:x: m:tag-x=@x p:tag-x=T")
	ids := []string{"task:v", "task:none", "task:w", "task:u", "task:x"}
	restored, err := l.RestoreMessages(t.Context(), ids, 2*time.Hour)
	l.ok(err)
	var got []string
	for _, r := range restored {
		for _, m := range r.Messages {
			got = append(got, fmt.Sprintf("%s %s %s", m.Tag, m.List, m.Status))
		}
		if held := time.Until(r.HoldUntil); len(r.Messages) > 0 && r.Messages[0].Status == "restored" && (held < 119*time.Minute || held > 121*time.Minute) {
			t.Errorf("held for %v", held)
		}
	}
	if want := []string{"tag-v celery restored", "tag-w celery restored", "tag-u celery restored", "tag-x  unplaced"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	after := []string{
		"celery: @v @a @b @c @w @u",
		"orphanwatch:messages:task:u: hold_until=set restored_at=set", "orphanwatch:messages:task:v: hold_until=set restored_at=set",
		"orphanwatch:messages:task:w: hold_until=set restored_at=set", "orphanwatch:messages:task:x: m:tag-x=@x p:tag-x=T",
	}
	l.wantState(after...)
	if left := l.client.PTTL(t.Context(), "orphanwatch:messages:task:v").Val(); left < 119*time.Minute {
		t.Errorf("the hold is forgotten after %v", left)
	}
	again, err := l.RestoreMessages(t.Context(), ids, 4*time.Hour)
	l.ok(err)
	if len(again[0].Messages) != 0 || time.Until(again[0].HoldUntil) > 3*time.Hour {
		t.Errorf("%+v", again[0])
	}
	l.wantState(after...)
	if got := l.pull(l.sweep()["v"]); got[0] != reconciler.Held {
		t.Errorf("%s", got)
	}
	release := func(looked time.Time) []bool {
		late, err := l.Release(t.Context(), l.epoch, []reconciler.Revival{{Subject: reconciler.TaskSubject("v"), Looked: looked}})
		l.ok(err)
		return late
	}
	if late := release(time.Now().Add(-time.Minute)); !late[0] || l.pull(l.sweep()["v"])[0] != reconciler.Held {
		t.Errorf("a look from before the restore ends its hold: %v", late)
	}
	if late := release(time.Now().Add(time.Second)); late[0] {
		t.Error("late")
	}
	if got := l.pull(l.sweep()["v"]); got[0] != reconciler.Removed {
		t.Errorf("%s", got)
	}
	// Its key holds another type by now.
	l.run("del celery", "set celery x")
	restored, err = l.RestoreMessages(t.Context(), []string{"task:v"}, time.Hour)
	l.ok(err)
	if restored[0].Messages[0].Status != "unplaced" || !restored[0].HoldUntil.IsZero() {
		t.Errorf("%+v", restored)
	}
}

func TestBrokerControl(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	ctx := t.Context()
	for _, tt := range []struct {
		set, want uint64
		refused   bool
	}{{7, 7, false}, {8, 8, false}, {7, 8, true}, {10, 10, false}, {9, 10, true}, {9_007_199_254_740_993, 9_007_199_254_740_993, false}, {9_007_199_254_740_992, 9_007_199_254_740_993, true}} {
		err := l.SetEpoch(ctx, tt.set)
		if got, e := l.Epoch(ctx); got != tt.want || e != nil || (err != nil) != tt.refused {
			t.Errorf("set %d: %v, %d, %v", tt.set, err, got, e)
		}
	}
	l.ok(l.Pause(ctx, "anna"))
	l.ok(l.Pause(ctx, "bert"))
	if by := l.client.HGet(ctx, "orphanwatch:control", "paused_by").Val(); by != "anna" {
		t.Errorf("paused by %q", by)
	}
	l.ok(l.Resume(ctx))
	if l.client.HExists(ctx, "orphanwatch:control", "paused").Val() {
		t.Error("still paused")
	}
	l.run("flushall")
	if epoch, err := l.Epoch(ctx); epoch != 0 || err != nil {
		t.Errorf("%d, %v", epoch, err)
	}
	l.ok(l.redis.Kill(ctx))
	if _, err := l.Pull(ctx, 7, []reconciler.Pull{pullOf(reconciler.Message{ID: "a", Place: reconciler.Place{Kind: reconciler.QueuedMessage, List: "celery", Envelope: envelopeOf("a")}})}); !errors.Is(err, reconciler.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	if err := l.Sweep(ctx, func([]reconciler.Message) error { return nil }); !errors.Is(err, reconciler.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

// TestPullRefusesFragments: what is no whole envelope is left, since putting it
// back would end a worker.
func TestPullRefusesFragments(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	whole := envelopeOf("v")
	for _, fragment := range []string{
		"", "{}", "null", `"x"`, "[" + whole + "]",
		strings.Replace(whole, `"headers"`, `"heads"`, 1),
		strings.Replace(whole, `"delivery_tag"`, `"tag"`, 1),
		strings.Replace(whole, `"routing_key"`, `"key"`, 1),
		strings.Replace(whole, `"body"`, `"text"`, 1),
	} {
		l.run("del celery")
		l.ok(l.client.RPush(t.Context(), "celery", fragment).Err())
		m := reconciler.Message{ID: "v", Place: reconciler.Place{Kind: reconciler.QueuedMessage, List: "celery", Tag: "tag-v", Envelope: fragment}}
		if got := l.pull(m); got[0] != reconciler.Changed || l.client.LLen(t.Context(), "celery").Val() != 1 {
			t.Errorf("%s: %s", fragment, got)
		}
	}
}

// What the Reader reads can be pulled: else the entry of a deleted row would come
// back for ever, sweep after sweep, and hold the replication position.
func TestWhatIsReadCanBePulled(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	for name, e := range map[string]string{
		"a header that is NaN":    strings.Replace(envelopeOf("v"), `"retries": 0`, `"retries": 0, "score": NaN`, 1),
		"a header that is -inf":   strings.Replace(envelopeOf("v"), `"retries": 0`, `"retries": 0, "score": -Infinity`, 1),
		"an exchange that is nil": strings.Replace(envelopeOf("v"), `"exchange": ""`, `"exchange": null`, 1),
		"a key twice":             strings.Replace(envelopeOf("v"), `"retries": 0`, `"retries": 0, "retries": 1`, 1),
	} {
		l.run("del celery")
		l.ok(l.client.RPush(t.Context(), "celery", e).Err())
		m, ok := l.sweep()["v"]
		if !ok {
			t.Errorf("%s: not read", name)
			continue
		}
		if got := l.pull(m); got[0] != reconciler.Removed {
			t.Errorf("%s: %s", name, got)
		}
	}
}
