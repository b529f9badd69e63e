package celery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// queueModel is what a queue must be after any sequence of steps: texts as short
// writes them, "#" for a tombstone.
type queueModel struct {
	list []string
	// unacked holds texts, kept the text and side of each pulled one, by id.
	unacked []string
	kept    map[string][2]string
	held    map[string]bool
}

func idOf(text string) string {
	id, _, _ := strings.Cut(text[1:], "(")
	return id
}

func redeliver(id string) string {
	return strings.Replace(envelopeOf(id), `"retries": 0`, `"retries": 0, "redelivered": true`, 1)
}

// TestBrokerModel drives producers, a worker, Sweep, Pull, PurgeTombstones and
// RestoreMessages in random order against the model.
func TestBrokerModel(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	l.SetNear(3)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		ctx := context.Background()
		fatal := func(err error) {
			if err != nil && !errors.Is(err, redis.Nil) {
				rt.Fatal(err)
			}
		}
		fatal(l.client.Del(ctx, "celery", "unacked", "unacked_index").Err())
		m := queueModel{kept: map[string][2]string{}, held: map[string]bool{}}
		looked := map[string]reconciler.Message{}
		bytes := map[string]string{} // what each looked-up message was, as a text
		sent := 0
		var ids []string
		anyID := func(rt *rapid.T) string {
			if len(ids) == 0 {
				rt.Skip("no message yet")
			}
			return rapid.SampledFrom(ids).Draw(rt, "id")
		}
		payload := func(text string) string {
			if strings.HasSuffix(text, "(redelivered)") {
				return redeliver(idOf(text))
			}
			return envelopeOf(idOf(text))
		}
		rt.Repeat(map[string]func(*rapid.T){
			"push": func(rt *rapid.T) {
				for range rapid.IntRange(1, 6).Draw(rt, "n") {
					id := fmt.Sprintf("r%d-%d", run, sent)
					sent++
					ids = append(ids, id)
					m.list = slices.Insert(m.list, 0, "@"+id)
					fatal(l.client.LPush(ctx, "celery", envelopeOf(id)).Err())
				}
			},
			"pop": func(*rapid.T) {
				element, err := l.client.RPop(ctx, "celery").Result()
				fatal(err)
				if len(m.list) == 0 {
					return
				}
				text := m.list[len(m.list)-1]
				m.list = m.list[:len(m.list)-1]
				if short(element) != text {
					rt.Fatalf("popped %s, model %s", short(element), text)
				}
				if text == "#" {
					return // a worker acknowledges it
				}
				m.unacked = append(m.unacked, text)
				tag := "tag-" + idOf(text)
				fatal(l.client.HSet(ctx, "unacked", tag, held(element, "", "celery")).Err())
				fatal(l.client.ZAdd(ctx, "unacked_index", redis.Z{Score: 1, Member: tag}).Err())
			},
			"acknowledge or give back": func(rt *rapid.T) {
				if len(m.unacked) == 0 {
					rt.Skip("nothing is held")
				}
				i := rapid.IntRange(0, len(m.unacked)-1).Draw(rt, "which")
				id := idOf(m.unacked[i])
				m.unacked = slices.Delete(m.unacked, i, i+1)
				fatal(l.client.HDel(ctx, "unacked", "tag-"+id).Err())
				fatal(l.client.ZRem(ctx, "unacked_index", "tag-"+id).Err())
				if rapid.Bool().Draw(rt, "give back") {
					m.list = append(m.list, "@"+id+"(redelivered)")
					fatal(l.client.RPush(ctx, "celery", redeliver(id)).Err())
				}
			},
			"sweep": func(rt *rapid.T) {
				swept := map[string]reconciler.Message{}
				fatal(l.Sweep(ctx, collect(swept)))
				here := map[string]bool{}
				for _, text := range slices.Concat(m.list, m.unacked) {
					if text != "#" {
						here[idOf(text)] = true
					}
				}
				if len(swept) != len(here) {
					rt.Fatalf("swept %d, model %+v", len(swept), m)
				}
				for id, message := range swept {
					if looked[id], bytes[id] = message, short(message.Place.Envelope); !here[id] {
						rt.Fatalf("swept %s, model %+v", id, m)
					}
				}
				if n := l.Tombstones(); int(n) != strings.Count(strings.Join(m.list, ""), "#") {
					rt.Fatalf("%d tombstones, model %+v", n, m)
				}
			},
			"pull": func(rt *rapid.T) {
				id := anyID(rt)
				message, ok := looked[id]
				if !ok {
					return
				}
				epoch := l.epoch - uint64(rapid.IntRange(0, 9).Draw(rt, "stale")/9)
				statuses, err := l.Pull(ctx, epoch, []reconciler.Pull{pullOf(message)})
				fatal(err)
				want := reconciler.Changed
				switch {
				case epoch != l.epoch:
					want = reconciler.Stale
				case m.held[id]:
					want = reconciler.Held
				case message.Place.Kind == reconciler.UnackedMessage:
					if i := slices.Index(m.unacked, bytes[id]); i >= 0 {
						want, m.unacked = reconciler.Removed, slices.Delete(m.unacked, i, i+1)
						m.keep(id, bytes[id], "T")
					}
				default:
					i := slices.Index(m.list, bytes[id])
					if i < 0 {
						break
					}
					want = reconciler.Removed
					behind := len(m.list) - 1 - i
					side := "H"
					if i > behind {
						side = "T"
					}
					m.keep(id, bytes[id], side)
					if min(i, behind) <= 3 {
						m.list = slices.Delete(m.list, i, i+1)
					} else {
						m.list[i] = "#"
					}
				}
				if statuses[0] != want {
					rt.Fatalf("pull %s: %s, want %s, model %+v", bytes[id], statuses[0], want, m)
				}
			},
			"restore": func(rt *rapid.T) {
				id := anyID(rt)
				restored, err := l.RestoreMessages(ctx, []string{"task:" + id}, time.Hour)
				fatal(err)
				kept, ok := m.kept[id]
				if len(restored[0].Messages) == 1 != ok {
					rt.Fatalf("restored %+v, model %+v", restored, m)
				}
				if !ok {
					return
				}
				delete(m.kept, id)
				m.held[id] = true
				if kept[1] == "H" {
					m.list = slices.Insert(m.list, 0, kept[0])
				} else {
					m.list = append(m.list, kept[0])
				}
			},
			"hold ends": func(rt *rapid.T) {
				id := anyID(rt)
				delete(m.held, id)
				_, err := l.Release(ctx, l.epoch, []reconciler.Revival{{Subject: reconciler.TaskSubject(id), Looked: time.Now().Add(time.Second)}})
				fatal(err)
			},
			"purge": func(*rapid.T) {
				had := l.Tombstones() > 0
				fatal(l.PurgeTombstones(ctx))
				if had {
					m.list = slices.DeleteFunc(m.list, func(text string) bool { return text == "#" })
				}
			},
			"": func(rt *rapid.T) {
				elements := l.client.LRange(ctx, "celery", 0, -1).Val()
				if len(elements) != len(m.list) {
					rt.Fatalf("%d elements, model %q", len(elements), m.list)
				}
				for i, e := range elements {
					if short(e) != m.list[i] || m.list[i] != "#" && e != payload(m.list[i]) {
						rt.Fatalf("%d is %s, model %q", i, short(e), m.list)
					}
				}
				hash, index := l.client.HLen(ctx, "unacked").Val(), l.client.ZCard(ctx, "unacked_index").Val()
				if int(hash) != len(m.unacked) || hash != index {
					rt.Fatalf("%d unacked, %d in the index, model %q", hash, index, m.unacked)
				}
			},
		})
	})
}

// keep notes a pulled message; the first of a tag wins.
func (m *queueModel) keep(id, text, side string) {
	if _, ok := m.kept[id]; !ok {
		m.kept[id] = [2]string{text, side}
	}
}

// TestBrokerConcurrent: producers, a consumer, pulls, purges and restores at the
// same time. Every living message is consumed once and in the order of its
// producer, every victim is either consumed or pulled.
func TestBrokerConcurrent(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t, func(o *celery.BrokerOptions) { o.Share = 1 })
	l.SetNear(20)
	ctx := t.Context()
	const producers, each = 3, 3000
	var sending sync.WaitGroup
	for p := range producers {
		sending.Go(func() {
			for n := range each {
				kind := "living"
				if n%5 == p {
					kind = "victim"
				}
				if err := l.client.LPush(ctx, "celery", envelopeOf(fmt.Sprintf("%s-%d-%d", kind, p, n))).Err(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	consumed := map[string]int{}
	var order [producers][]int
	var stop atomic.Bool
	var consuming sync.WaitGroup
	consuming.Go(func() {
		client := l.redis.Client(0)
		defer client.Close()
		for {
			reply, err := client.BRPop(ctx, 100*time.Millisecond, "celery").Result()
			if errors.Is(err, redis.Nil) {
				if stop.Load() {
					return
				}
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
			id := strings.TrimPrefix(short(reply[1]), "@")
			if id == "#" {
				continue
			}
			consumed[id]++
			var p, n int
			if _, err := fmt.Sscanf(id, "living-%d-%d", &p, &n); err == nil {
				order[p] = append(order[p], n)
			}
		}
	})
	pulled := map[string]int{}
	pass := func() (victims int) {
		seen := map[string]reconciler.Message{}
		l.ok(l.Sweep(ctx, collect(seen)))
		var messages []reconciler.Message
		for id, m := range seen {
			if strings.HasPrefix(id, "victim") {
				messages = append(messages, m)
			}
		}
		for i, s := range l.pull(messages...) {
			if s == reconciler.Removed {
				pulled[messages[i].ID]++
			}
		}
		l.ok(l.PurgeTombstones(ctx))
		return len(messages)
	}
	sent := make(chan struct{})
	go func() { sending.Wait(); close(sent) }()
	for running := true; running; {
		select {
		case <-sent:
			running = false
		default:
		}
		pass()
	}
	for pass() > 0 { // until a look finds none
	}
	stop.Store(true)
	consuming.Wait()
	if n := l.client.LLen(ctx, "celery").Val(); n != 0 {
		t.Errorf("%d are left", n)
	}
	for p := range producers {
		if !slices.IsSorted(order[p]) {
			t.Errorf("producer %d: consumed in another order", p)
		}
		for n := range each {
			kind := "living"
			if n%5 == p {
				kind = "victim"
			}
			id := fmt.Sprintf("%s-%d-%d", kind, p, n)
			if consumed[id]+pulled[id] != 1 {
				t.Errorf("%s was consumed %d times and pulled %d times", id, consumed[id], pulled[id])
			}
		}
	}
	if len(pulled) == 0 {
		t.Error("nothing was pulled")
	}
	t.Logf("%d consumed, %d pulled", len(consumed), len(pulled))
}
