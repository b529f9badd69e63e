package celery_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

func (l *brokerLab) drain(includeUnacked bool, names ...string) []reconciler.QueueReport {
	l.Helper()
	reports, err := l.DrainQueues(l.Context(), reconciler.QueueDrain{
		Names: names, IncludeUnacked: includeUnacked, Epoch: l.epoch, Trigger: reconciler.ByCLI,
	})
	l.ok(err)
	return reports
}

func (l *brokerLab) count(names ...string) []reconciler.QueueReport {
	l.Helper()
	reports, err := l.CountQueues(l.Context(), names, nil)
	l.ok(err)
	return reports
}

func (l *brokerLab) restoreQueue(queue string) []celery.Purged {
	l.Helper()
	purges, err := l.RestorePurged(l.Context(), queue, 0, nil)
	l.ok(err)
	return purges
}

// ours are our keys in the database, but the control hash.
func (l *brokerLab) ours() []string {
	l.Helper()
	keys, err := l.client.Keys(l.Context(), "orphanwatch:*").Result()
	l.ok(err)
	keys = slices.DeleteFunc(keys, func(key string) bool { return key == "orphanwatch:control" })
	slices.Sort(keys)
	return keys
}

// queueLines writes reports as lines that are easy to compare.
func queueLines(reports []reconciler.QueueReport) []string {
	var out []string
	for _, r := range reports {
		line := fmt.Sprintf("%s: %d waiting, %d unacked, %d cleaned", r.Queue, r.Messages, r.Unacked, r.Cleaned)
		for _, name := range slices.Sorted(maps.Keys(r.Tasks)) {
			line += fmt.Sprintf(", %q %d", name, r.Tasks[name])
		}
		out = append(out, line)
	}
	return out
}

func (l *brokerLab) wantQueues(got []reconciler.QueueReport, want ...string) {
	l.Helper()
	if lines := queueLines(got); !slices.Equal(lines, want) {
		l.Errorf("queues\n  %s\nwant\n  %s", strings.Join(lines, "\n  "), strings.Join(want, "\n  "))
	}
}

// push fills a list, the first of the texts at its head.
func (l *brokerLab) push(list string, elements ...string) {
	l.Helper()
	for _, e := range elements {
		l.ok(l.client.RPush(l.Context(), list, expand(e)).Err())
	}
}

func named(id, task string) string {
	return strings.Replace(envelopeOf(id), "scan_domain_task", task, 1)
}

// TestQueues: what is a queue, what is in it, and that purge and restore bring back
// the same bytes in the same places.
func TestQueues(t *testing.T) {
	t.Parallel()
	for _, v := range []struct{ name, prefix, sep string }{
		{"defaults", "", "\x06\x16"}, {"prefix", "app:", "\x06\x16"}, {"sep", "", ":"}, {"both", "p_", ":"},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.KeyPrefix, o.Sep = v.prefix, v.sep })
			ctx := t.Context()
			key := func(name string) string { return v.prefix + strings.ReplaceAll(name, "|", v.sep) }
			bind := func(exchange, routingKey, queue string) {
				l.ok(l.client.SAdd(ctx, key("_kombu.binding."+exchange), routingKey+v.sep+v.sep+queue).Err())
			}
			bind("celery", "celery", "celery")
			bind("mail", "mail.out", "mail")
			bind("idle", "idle", "idle")
			bind("celeryev", "", "celeryev.1234")
			bind("all", "", "bcast.1234")
			bind("celery.pidbox", "", "celery@host.celery.pidbox")
			l.push(key("celery"), "@new", celery.Tombstone, "{broken", "@old")
			l.push(key("celery|3"), named("p3", "mail_task"))
			l.push(key("celery|9"), "@p9a", "@p9b")
			l.push(key("mail|6"), named("m1", "mail_task"), named("m2", "mail_task"))
			l.push(key("unbound|3"), named("u1", "other_task"))
			l.push(key("abc.reply.celery.pidbox"), `{"reply": "pong"}`)
			l.push(key("not-a-queue"), "something", "else")
			l.push("orphanwatch:mine", "@mine")
			hold := func(tag, envelope, exchange, routingKey string) {
				l.ok(l.client.HSet(ctx, key("unacked"), tag, held(envelope, exchange, routingKey)).Err())
				l.ok(l.client.ZAdd(ctx, key("unacked_index"), redis.Z{Score: 1, Member: tag}).Err())
			}
			hold("t1", named("h1", "mail_task"), "mail", "mail.out")
			hold("t2", named("h2", "scan_domain_task"), "", "celery")
			hold("t3", "{}", "", "celery")
			hold("t4", celery.Tombstone, "nowhere", "never")
			before := l.state()

			whole := []string{
				`celery: 6 waiting, 2 unacked, 0 cleaned, "" 2, "mail_task" 1, "scan_domain_task" 5`,
				`idle: 0 waiting, 0 unacked, 0 cleaned`,
				`mail: 2 waiting, 1 unacked, 0 cleaned, "mail_task" 3`,
				`unbound: 1 waiting, 0 unacked, 0 cleaned, "other_task" 1`,
			}
			l.wantQueues(l.count(), whole...)
			l.wantQueues(l.count("mail", "unbound", "mail"), whole[2], whole[3])
			l.wantState(before...)

			// One queue, and what is unacked stays.
			l.wantQueues(l.drain(false, "mail"), "mail: 2 waiting, 1 unacked, 2 cleaned")
			l.wantQueues(l.count("mail"), `mail: 0 waiting, 1 unacked, 0 cleaned, "mail_task" 1`)
			// The others, and what workers hold: our tombstone is neither kept nor counted.
			l.wantQueues(l.drain(true), "celery: 7 waiting, 2 unacked, 8 cleaned", "idle: 0 waiting, 0 unacked, 0 cleaned",
				"mail: 0 waiting, 1 unacked, 1 cleaned", "unbound: 1 waiting, 0 unacked, 1 cleaned")
			if left := l.client.HKeys(ctx, key("unacked")).Val(); !slices.Equal(left, []string{"t4"}) {
				t.Errorf("unacked are %v", left)
			}
			if left := l.client.ZRange(ctx, key("unacked_index"), 0, -1).Val(); !slices.Equal(left, []string{"t4"}) {
				t.Errorf("the index of unacked is %v", left)
			}
			for _, k := range []string{"celery", "celery|3", "celery|9", "mail", "mail|6", "unbound|3"} {
				if l.client.Exists(ctx, key(k)).Val() != 0 {
					t.Errorf("%q is still there", k)
				}
			}
			if n := l.client.SCard(ctx, key("_kombu.binding.mail")).Val(); n != 1 {
				t.Errorf("%d bindings of mail", n)
			}

			// Back: in order, what was held at the tail, what is no message stays kept.
			for _, p := range l.restoreQueue("") {
				if p.Restored+p.Incomplete != p.Messages || p.Gone+p.Unplaced != 0 || p.Trigger != "cli" || time.Since(p.At) > time.Minute {
					t.Errorf("%+v", p)
				}
			}
			for k, want := range map[string][]string{
				"celery": {"@new", "@old", "@h2"}, "celery|3": {named("p3", "mail_task")}, "celery|9": {"@p9a", "@p9b"},
				"mail|6": {named("m1", "mail_task"), named("m2", "mail_task")}, "mail": {named("h1", "mail_task")}, "unbound|3": {named("u1", "other_task")},
			} {
				for i := range want {
					want[i] = expand(want[i])
				}
				if got := l.client.LRange(ctx, key(k), 0, -1).Val(); !slices.Equal(got, want) {
					t.Errorf("%q is %q\nwant %q", k, got, want)
				}
			}
			kept, err := l.Purged(ctx, "", 0)
			l.ok(err)
			var texts []string
			for _, p := range kept {
				texts = append(texts, fmt.Sprint(p.Queue, " ", p.Kind, " ", p.Messages))
			}
			if want := []string{"celery messages 1", "celery unacked 1"}; !slices.Equal(texts, want) {
				t.Errorf("still kept %q, want %q", texts, want)
			}
			after := l.state()
			for _, p := range l.restoreQueue("") {
				if p.Restored != 0 || p.Incomplete != 1 {
					t.Errorf("a second restore: %+v", p)
				}
			}
			l.wantState(after...)
		})
	}
}

// TestQueueOfTwoNames: with sep ":", a queue's whole name decides.
func TestQueueOfTwoNames(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.Sep, o.Queues = ":", []string{"a", "a:3"} })
	l.push("a:3", "@x")
	l.push("a:6", "@y")
	l.push("a:3:9", "@z")
	l.wantQueues(l.drain(false, "a"), "a: 1 waiting, 0 unacked, 1 cleaned")
	l.wantQueues(l.count(), "a: 0 waiting, 0 unacked, 0 cleaned", `a:3: 2 waiting, 0 unacked, 0 cleaned, "scan_domain_task" 2`)
}

func TestDrainRefuses(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	ctx := t.Context()
	l.push("celery", "@a", "@b")
	l.push("mail", "@c")
	l.run("hset unacked t1 &d", "zadd unacked_index 1 t1", "set string x")
	before := l.state()
	drain := func(epoch uint64, names ...string) error {
		reports, err := l.DrainQueues(ctx, reconciler.QueueDrain{Names: names, IncludeUnacked: true, Epoch: epoch})
		for _, r := range reports {
			if r.Cleaned != 0 {
				t.Errorf("%+v", r)
			}
		}
		return err
	}
	var hinted *reconciler.Hinted
	if err := drain(l.epoch, "celery", "emial"); !errors.As(err, &hinted) || hinted.Hint != "name one of: celery, mail" || !strings.Contains(err.Error(), `"emial"`) {
		t.Errorf("a queue that is not there: %v", err)
	}
	if _, err := l.CountQueues(ctx, []string{"string"}, nil); !errors.As(err, &hinted) {
		t.Errorf("a key that is no list: %v", err)
	}
	for _, epoch := range []uint64{0, l.epoch - 1, l.epoch + 1} {
		if err := drain(epoch); !errors.Is(err, reconciler.ErrStale) {
			t.Errorf("epoch %d: %v", epoch, err)
		}
	}
	l.ok(l.Pause(ctx, "me"))
	if err := drain(l.epoch); !errors.Is(err, reconciler.ErrPaused) {
		t.Errorf("paused: %v", err)
	}
	l.wantState(before...)
	l.ok(l.Resume(ctx))
	l.wantQueues(l.drain(false), "celery: 2 waiting, 1 unacked, 2 cleaned", "mail: 1 waiting, 0 unacked, 1 cleaned")

	// Where no daemon has ever been, there is no epoch to be compared.
	l.run("flushdb")
	l.push("celery", "@a")
	reports, err := l.DrainQueues(ctx, reconciler.QueueDrain{})
	l.ok(err)
	l.wantQueues(reports, "celery: 1 waiting, 0 unacked, 1 cleaned", "mail: 0 waiting, 0 unacked, 0 cleaned")
}

// TestDrainStops: a pause, or an interrupt, in the middle ends it; what was done is
// told exactly, and kept.
func TestDrainStops(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	for want, stop := range map[error]func(context.CancelFunc){
		reconciler.ErrPaused: func(context.CancelFunc) { l.ok(l.Pause(t.Context(), "me")) },
		context.Canceled:     func(cancel context.CancelFunc) { cancel() },
	} {
		l.fill(3000, func(int) bool { return false })
		whole := l.client.LRange(t.Context(), "celery", 0, -1).Val()
		ctx, cancel := context.WithCancel(t.Context())
		once := false
		reports, err := l.DrainQueues(ctx, reconciler.QueueDrain{Epoch: l.epoch, Progress: func(done, total int64) {
			if done >= 1000 && !once {
				once = true
				stop(cancel)
			}
			if total != 3000 {
				t.Errorf("%d of %d", done, total)
			}
		}})
		left := l.client.LLen(t.Context(), "celery").Val()
		if !errors.Is(err, want) || reports[0].Cleaned < 1000 || left == 0 || reports[0].Cleaned+left != 3000 {
			t.Errorf("%v, %+v, %d left", err, reports, left)
		}
		l.restoreQueue("celery") // a pause is of removals
		if got := l.client.LRange(t.Context(), "celery", 0, -1).Val(); !slices.Equal(got, whole) {
			t.Error("not what it was")
		}
		cancel()
		l.ok(l.Resume(t.Context()))
	}
}

// TestDrainOfFullRedis: where there is no memory to keep anything in, nothing is
// taken out, and the way out is told.
func TestDrainOfFullRedis(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	l.fill(1000, func(int) bool { return false })
	l.run("hset unacked t1 &d", "zadd unacked_index 1 t1")
	before := l.state()
	l.run("config set maxmemory 1")
	for _, unacked := range []bool{true, false} {
		_, err := l.DrainQueues(t.Context(), reconciler.QueueDrain{Epoch: l.epoch, IncludeUnacked: unacked})
		var hinted *reconciler.Hinted
		if !errors.As(err, &hinted) || !strings.Contains(hinted.Hint, "QUARANTINE=0s") {
			t.Errorf("%v", err)
		}
	}
	l.wantState(before...)
	none := celery.NewBroker(celery.BrokerOptions{Client: l.client, Queues: []string{"celery"}})
	reports, err := none.DrainQueues(t.Context(), reconciler.QueueDrain{Epoch: l.epoch, IncludeUnacked: true})
	l.ok(err)
	l.wantQueues(reports, "celery: 1000 waiting, 1 unacked, 1001 cleaned")
	l.wantState()
}

// TestPurgeQueues is the service: a dry run changes nothing.
func TestPurgeQueues(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	r, err := reconciler.New(reconciler.Options{Queues: l.Broker, Guard: reconciler.NewGuard(reconciler.Policy{}, nil, time.Now)})
	l.ok(err)
	l.push("celery", "@a", "@b")
	before := l.state()
	stages := map[string]reconciler.Progress{}
	c := reconciler.Cleanup{Trigger: reconciler.ByAPI, DryRun: true, Progress: func(p reconciler.Progress) { stages[p.Stage] = p }}
	report, err := r.PurgeQueues(t.Context(), reconciler.Term{Epoch: l.epoch}, nil, true, c)
	l.ok(err)
	l.wantQueues(report.Queues, `celery: 2 waiting, 0 unacked, 0 cleaned, "scan_domain_task" 2`)
	l.wantState(before...)
	c.DryRun = false
	if _, err := r.PurgeQueues(t.Context(), reconciler.Term{Epoch: l.epoch}, []string{"x"}, true, c); err == nil || !report.DryRun {
		t.Error("a queue that is not there is purged")
	}
	report, err = r.PurgeQueues(t.Context(), reconciler.Term{Epoch: l.epoch}, []string{"celery"}, false, c)
	l.ok(err)
	if report.Cleaned != 2 || report.DryRun {
		t.Errorf("%+v", report)
	}
	want := map[string]reconciler.Progress{
		"reading queues": {Stage: "reading queues", Done: 2, Total: 2}, "purging queues": {Stage: "purging queues", Done: 2, Total: 2},
	}
	if !maps.Equal(stages, want) {
		t.Errorf("%v", stages)
	}
	if p, err := l.Purged(t.Context(), "celery", time.Minute); err != nil || len(p) != 1 || p[0].Trigger != "api" {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestPurgedExpires: everything of a purge goes with the quarantine; with none, nothing is kept.
func TestPurgedExpires(t *testing.T) {
	t.Parallel()
	const quarantine = 400 * time.Millisecond
	l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.Quarantine = quarantine })
	l.fill(1200, func(int) bool { return false })
	l.run("hset unacked t1 &d", "zadd unacked_index 1 t1")
	began := time.Now()
	l.wantQueues(l.drain(true), "celery: 1200 waiting, 1 unacked, 1201 cleaned")
	for _, key := range l.ours() {
		if ttl := l.client.PTTL(t.Context(), key).Val(); ttl < 0 || ttl > quarantine {
			t.Errorf("%s lives for %v", key, ttl)
		}
	}
	sandbox.AwaitTB(t, 10*time.Second, "the quarantine to end", sandbox.Until(func() bool { return len(l.ours()) == 0 }))
	if took := time.Since(began); took < quarantine {
		t.Errorf("it ended after %v", took)
	}
	if got := l.restoreQueue("celery"); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	// The index outlives one purge of two; what has expired is forgotten.
	l.ok(l.client.ZAdd(t.Context(), "orphanwatch:purges", redis.Z{Score: 1, Member: "old"}).Err())
	l.push("celery", "@x")
	l.drain(false)
	if n := l.client.ZCard(t.Context(), "orphanwatch:purges").Val(); n != 1 {
		t.Errorf("%d in the index", n)
	}

	none := newBrokerLab(t, func(o *celery.BrokerOptions) { o.Quarantine = 0 })
	none.fill(1200, func(i int) bool { return i < 200 })
	none.run("hset unacked t1 &d", "zadd unacked_index 1 t1")
	none.wantQueues(none.drain(true), "celery: 1200 waiting, 1 unacked, 1001 cleaned")
	none.wantState()
}

// TestRestorePurgedSince: what is older, or another queue's, stays kept; older purges
// come back nearer the tail; a key of another type is left alone.
func TestRestorePurgedSince(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	ctx := t.Context()
	l.push("celery", "@b", "@a")
	l.push("mail", "@m")
	l.drain(false)
	ids := l.client.ZRange(ctx, "orphanwatch:purges", 0, -1).Val()
	for _, id := range ids { // as if it had been an hour ago
		l.ok(l.client.ZIncrBy(ctx, "orphanwatch:purges", -3600e3, id).Err())
	}
	l.push("celery", "@d", "@c")
	l.drain(false)
	l.push("celery", "@e")
	l.run("set mail x")

	page, err := l.RestorePurged(ctx, "", time.Minute, nil)
	l.ok(err)
	if len(page) != 1 || page[0].Restored != 2 {
		t.Fatalf("%+v", page)
	}
	if got := l.client.LRange(ctx, "celery", 0, -1).Val(); !slices.Equal(got, []string{envelopeOf("e"), envelopeOf("d"), envelopeOf("c")}) {
		t.Errorf("%q", got)
	}
	all := l.restoreQueue("")
	if len(all) != 2 || all[0].Queue != "mail" || all[0].Unplaced != 1 || all[1].Restored != 2 {
		t.Errorf("%+v", all)
	}
	var order []string
	for _, e := range l.client.LRange(ctx, "celery", 0, -1).Val() {
		order = append(order, short(e))
	}
	if want := "@e @d @c @b @a"; strings.Join(order, " ") != want {
		t.Errorf("%v, want %s", order, want)
	}
	l.run("del mail")
	if all = l.restoreQueue("mail"); len(all) != 1 || all[0].Restored != 1 || len(l.ours()) != 0 {
		t.Errorf("%+v, %v", all, l.ours())
	}
}
