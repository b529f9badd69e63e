package celery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// brokerLab is a Redis of its own with a broker, to which an epoch is known.
type brokerLab struct {
	testing.TB
	redis *sandbox.Redis
	*celery.Broker
	client *redis.Client
	epoch  uint64
}

func newBrokerLab(t testing.TB, set ...func(*celery.BrokerOptions)) *brokerLab {
	t.Helper()
	r := sandbox.NewRedis(t)
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: r.Socket(), DialerRetries: 1})
	t.Cleanup(func() { _ = client.Close() })
	o := celery.BrokerOptions{Client: client, Bindings: []reconciler.Binding{scans}, Quarantine: time.Hour, Queues: []string{"celery"}}
	for _, f := range set {
		f(&o)
	}
	l := &brokerLab{TB: t, redis: r, Broker: celery.NewBroker(o), client: client, epoch: 7}
	l.ok(l.SetEpoch(t.Context(), l.epoch))
	return l
}

func (l *brokerLab) ok(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// run runs commands; a word that begins with @ is the envelope of that task, one
// that begins with & its value in the hash of unacked messages.
func (l *brokerLab) run(commands ...string) {
	l.Helper()
	for _, c := range commands {
		var args []any
		for _, word := range strings.Fields(c) {
			args = append(args, expand(word))
		}
		if err := l.client.Do(l.Context(), args...).Err(); err != nil && !errors.Is(err, redis.Nil) {
			l.Fatalf("%s: %v", c, err)
		}
	}
}

func expand(word string) string {
	if id, ok := strings.CutPrefix(word, "@"); ok {
		return envelopeOf(id)
	}
	if id, ok := strings.CutPrefix(word, "&"); ok {
		return held(envelopeOf(id), "", "celery")
	}
	return strings.Trim(word, "%")
}

// envelopeOf is a message of Celery's; its tag is "tag-" and the id, or what
// stands behind a slash.
func envelopeOf(id string) string {
	id, tag, ok := strings.Cut(id, "/")
	if !ok {
		tag = "tag-" + id
	}
	return fmt.Sprintf(`{"body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json", `+
		`"headers": {"lang": "py", "task": "scan_domain_task", "id": %q, "retries": 0, "root_id": %q, "argsrepr": "()", "kwargsrepr": "{}"}, `+
		`"properties": {"correlation_id": %q, "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0, "body_encoding": "base64", "delivery_tag": %q}}`,
		id, id, id, tag)
}

func held(envelope, exchange, routingKey string) string {
	return fmt.Sprintf("[%s, %q, %q]", envelope, exchange, routingKey)
}

// short writes a message of ours as @id, our tombstone as #, another as it is.
func short(element string) string {
	if strings.Contains(element, "orphanwatch-tombstone") {
		return "#"
	}
	if _, rest, ok := strings.Cut(element, `"id": "`); ok {
		id, _, _ := strings.Cut(rest, `"`)
		mark := "@"
		if strings.HasPrefix(element, "[") {
			mark = "&"
		}
		switch {
		case strings.Contains(element, "redelivered"):
			return mark + id + "(redelivered)"
		case element != envelopeOf(id) && mark == "@":
			_, tag, _ := strings.Cut(element, `"delivery_tag": "`)
			tag, _, _ = strings.Cut(tag, `"`)
			return mark + id + "/" + tag
		}
		return mark + id
	}
	return element
}

// state is the whole database but the control hash, one text a key.
func (l *brokerLab) state() []string {
	l.Helper()
	ctx := l.Context()
	keys, err := l.client.Keys(ctx, "*").Result()
	l.ok(err)
	var out []string
	for _, key := range keys {
		if key == "orphanwatch:control" {
			continue
		}
		var parts []string
		switch l.client.Type(ctx, key).Val() {
		case "list":
			for _, e := range l.client.LRange(ctx, key, 0, -1).Val() {
				parts = append(parts, short(e))
			}
		case "hash":
			for field, value := range l.client.HGetAll(ctx, key).Val() {
				if field == "hold_until" || field == "restored_at" {
					value = "set"
				}
				parts = append(parts, field+"="+short(value))
			}
			slices.Sort(parts)
		case "zset":
			parts = l.client.ZRange(ctx, key, 0, -1).Val()
		case "set":
			parts = l.client.SMembers(ctx, key).Val()
			slices.Sort(parts)
		default:
			parts = []string{l.client.Get(ctx, key).Val()}
		}
		out = append(out, key+": "+strings.Join(parts, " "))
	}
	slices.Sort(out)
	return out
}

func (l *brokerLab) wantState(want ...string) {
	l.Helper()
	if got := l.state(); !slices.Equal(got, want) {
		l.Errorf("state\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// sweep is every message by its id; the last one of each.
func (l *brokerLab) sweep() map[string]reconciler.Message {
	l.Helper()
	out := map[string]reconciler.Message{}
	l.ok(l.Sweep(l.Context(), collect(out)))
	return out
}

func collect(into map[string]reconciler.Message) func([]reconciler.Message) error {
	return func(messages []reconciler.Message) error {
		for _, m := range messages {
			into[m.ID] = m
		}
		return nil
	}
}

func pullOf(m reconciler.Message) reconciler.Pull {
	return reconciler.Pull{Subject: reconciler.TaskSubject(m.ID), Message: m}
}

func (l *brokerLab) pull(messages ...reconciler.Message) []reconciler.RemoveStatus {
	l.Helper()
	var pulls []reconciler.Pull
	for _, m := range messages {
		pulls = append(pulls, pullOf(m))
	}
	statuses, err := l.Pull(context.WithoutCancel(l.Context()), l.epoch, pulls)
	l.ok(err)
	return statuses
}
