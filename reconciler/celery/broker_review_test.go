package celery_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

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

// A key that no index holds is no row's, and is not kept: what is remembered of a
// message is bounded.
func TestLongArgumentsAreNoKeys(t *testing.T) {
	t.Parallel()
	argued := reconciler.Binding{Schema: "public", Table: "scans", Key: "id", Args: []int{0}, Names: []string{"scan"}}
	r := celery.NewReader([]reconciler.Binding{argued})
	of := func(id, name, arg string) (reconciler.Message, error) {
		return r.Read(fmt.Sprintf(`{"body": "[[\"%s\"], {}, {}]", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"task": %q, "id": %q}, `+
			`"properties": {"delivery_info": {"exchange": "", "routing_key": "celery"}, "delivery_tag": "t"}}`, arg, name, id))
	}
	if m, err := of("1", "scan", strings.Repeat("k", 8<<10)); err != nil || len(m.Refs) != 1 {
		t.Errorf("%v, %d", err, len(m.Refs))
	}
	if m, err := of("1", "scan", strings.Repeat("k", 1<<20)); err != nil || len(m.Refs) != 0 {
		t.Errorf("%v, %d", err, len(m.Refs))
	}
	if _, err := of(strings.Repeat("i", 1<<20), "scan", "k"); err == nil {
		t.Error("an id of 1 MiB")
	}
	if _, err := of("1", strings.Repeat("n", 1<<20), "k"); err == nil {
		t.Error("a name of 1 MiB")
	}
}

// A record tells that a message was taken out of a queue, until its row lives again.
func TestARecordTellsWhatWasTaken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	task := reconciler.TaskSubject(id1)
	bury := func(b reconciler.Burial) reconciler.Buried {
		b.Task, b.Record.Evidence = task, reconciler.Deleted
		b.Record.Table, b.Record.Key = "public.scan_tasks", "a\nb"
		answers, err := l.Bury(t.Context(), l.epoch, []reconciler.Burial{b})
		l.ok(err)
		return answers[0]
	}
	bury(reconciler.Burial{})
	bury(reconciler.Burial{Count: map[reconciler.ArtifactKind]int{reconciler.UnackedMessage: 1}})
	if f := l.look(task); f.Taken || !f.Deleted || f.Table != "public.scan_tasks" || f.Key != "a\nb" {
		t.Errorf("%+v", f)
	}
	bury(reconciler.Burial{Count: map[reconciler.ArtifactKind]int{reconciler.QueuedMessage: 2}})
	if f := l.look(task); !f.Taken || f.Revoked {
		t.Errorf("%+v", f)
	}
	l.ok(l.Revive(t.Context(), []reconciler.Subject{task}))
	if f := l.look(task); f.Taken || f.Deleted {
		t.Errorf("%+v", f)
	}
	if b := bury(reconciler.Burial{Revoke: true}); !b.Revoke {
		t.Errorf("%+v", b)
	}
	if b := bury(reconciler.Burial{Revoke: true}); b.Revoke {
		t.Error("revoked twice")
	}
}
