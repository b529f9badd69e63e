package celery_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

func TestRevoke(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.KeyPrefix, o.DB, o.ControlExchange = "p:", 3, "scans" })
	ctx := t.Context()
	if n, _, err := l.Revoke(ctx, l.epoch, time.Now(), []string{"nobody listens"}); n != 0 || err != nil {
		t.Errorf("%d heard, %v", n, err)
	}
	worker := l.client.Subscribe(ctx, "p:/3.scans.pidbox")
	defer worker.Close()
	_, err := worker.Receive(ctx)
	l.ok(err)
	var ids, heard []string
	for i := range 1201 {
		ids = append(ids, fmt.Sprint("t", i))
	}
	if n, _, err := l.Revoke(ctx, l.epoch, time.Now(), ids); n != 1 || err != nil {
		t.Errorf("%d heard, %v", n, err)
	}
	if n, _, err := l.Revoke(ctx, l.epoch, time.Now(), nil); n != 0 || err != nil {
		t.Errorf("%d heard of nothing, %v", n, err)
	}
	for len(heard) < len(ids) {
		m, err := worker.ReceiveMessage(ctx)
		l.ok(err)
		var e struct {
			Body       []byte
			Properties struct {
				Tag string `json:"delivery_tag"`
			}
		}
		var body struct {
			Method    string
			Arguments struct {
				IDs       []string `json:"task_id"`
				Terminate bool
			}
		}
		l.ok(json.Unmarshal([]byte(m.Payload), &e))
		l.ok(json.Unmarshal(e.Body, &body))
		if !celery.Complete(m.Payload) || e.Properties.Tag == "" || body.Method != "revoke" || body.Arguments.Terminate || len(body.Arguments.IDs) > 500 {
			t.Fatalf("%.300s %s", m.Payload, base64.StdEncoding.EncodeToString(e.Body)[:100])
		}
		heard = append(heard, body.Arguments.IDs...)
	}
	if !slices.Equal(heard, ids) {
		t.Errorf("%d ids heard", len(heard))
	}
	l.run("sadd p:_kombu.binding.scans.pidbox "+sep+sep+"a@h.scans.pidbox "+sep+sep+"b@h.scans.pidbox", "sadd _kombu.binding.celery.pidbox x")
	if n, err := l.Workers(ctx); n != 2 || err != nil {
		t.Errorf("%d workers, %v", n, err)
	}
}

func TestTombstoneIsComplete(t *testing.T) {
	t.Parallel()
	if !celery.Complete(celery.Tombstone) || !strings.Contains(celery.Tombstone, `"`+celery.TombstoneTag+`"`) {
		t.Error(celery.Tombstone)
	}
}

// TestPullWithPrefix: with a prefix, another application's messages of the same
// database stay.
func TestPullWithPrefix(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.KeyPrefix = "p:" })
	for _, p := range []string{"p:", ""} {
		l.run("rpush "+p+"celery @v1", "hset "+p+"unacked tag-v2 &v2", "zadd "+p+"unacked_index 1 tag-v2")
	}
	swept := l.sweep()
	if got := l.pull(swept["v1"], swept["v2"]); !slices.Equal(got, []reconciler.RemoveStatus{reconciler.Removed, reconciler.Removed}) {
		t.Error(got)
	}
	l.wantState("celery: @v1", "orphanwatch:messages:task:v1: m:tag-v1=@v1 p:tag-v1=Hp:celery",
		"orphanwatch:messages:task:v2: m:tag-v2=@v2 p:tag-v2=Tp:celery", "unacked: tag-v2=&v2", "unacked_index: tag-v2")
	_, err := l.RestoreMessages(t.Context(), []string{"task:v1", "task:v2"}, time.Hour)
	l.ok(err)
	if got := l.client.LRange(t.Context(), "p:celery", 0, -1).Val(); len(got) != 2 || short(got[0]) != "@v1" {
		t.Errorf("%q", got)
	}
}

// TestPullWithFullMemory: what cannot be kept is not taken out.
func TestPullWithFullMemory(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	l.run("rpush celery @a @v", "hset unacked tag-w &w", "zadd unacked_index 1 tag-w")
	swept, before := l.sweep(), l.state()
	l.ok(l.redis.Reconfigure(t.Context(), map[string]string{"maxmemory": "1"}))
	for _, id := range []string{"v", "w"} {
		if _, err := l.Pull(t.Context(), l.epoch, []reconciler.Pull{pullOf(swept[id])}); err == nil || !strings.Contains(err.Error(), "OOM") {
			t.Errorf("%s: %v", id, err)
		}
	}
	l.wantState(before...)
	l.ok(l.redis.Reconfigure(t.Context(), map[string]string{"maxmemory": "0"}))
	l.pull(swept["v"], swept["w"])
	l.ok(l.redis.Reconfigure(t.Context(), map[string]string{"maxmemory": "1"}))
	pulled := l.state()
	if _, err := l.RestoreMessages(t.Context(), []string{"task:v"}, time.Hour); err == nil {
		t.Error("restored into a full memory")
	}
	l.wantState(pulled...)
}

// TestBrokerScriptsComeBack: the server forgets the scripts in the middle of it all.
func TestBrokerScriptsComeBack(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	var messages []reconciler.Message
	for i := range 300 {
		l.run(fmt.Sprint("rpush celery @t", i))
	}
	for _, m := range l.sweep() {
		messages = append(messages, m)
	}
	for page := range slices.Chunk(messages, 100) {
		l.run("script flush")
		for _, s := range l.pull(page...) {
			if s != reconciler.Removed {
				t.Fatal(s)
			}
		}
	}
	if l.client.Exists(t.Context(), "celery").Val() != 0 {
		t.Error("some are left")
	}
}
