package wiring_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// unreadable counts the messages that cannot be read, and are left alone.
const unreadable = "orphanwatch_messages_unreadable"

// pidbox counts the revokes that workers hear.
type pidbox struct {
	mu      sync.Mutex
	revoked map[string]int
	failed  []string
}

// listen hears every control message until the test ends; then is called for each
// revoke.
func (a *application) listen(then func(ids []string)) *pidbox {
	a.t.Helper()
	p := &pidbox{revoked: map[string]int{}}
	sub := a.broker.Subscribe(a.t.Context(), a.prefix+"/0.celery.pidbox")
	_, err := sub.Receive(a.t.Context())
	require.NoError(a.t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for m := range sub.Channel() {
			ids, err := revokedBy(m.Payload)
			p.mu.Lock()
			if err != nil {
				p.failed = append(p.failed, fmt.Sprintf("%v: %s", err, m.Payload))
			}
			for _, id := range ids {
				p.revoked[id]++
			}
			p.mu.Unlock()
			if then != nil && len(ids) > 0 {
				then(ids)
			}
		}
	}()
	a.t.Cleanup(func() {
		_ = sub.Close()
		<-done
		assert.Empty(a.t, p.failed, "control messages that would end a worker")
	})
	return p
}

// revokedBy reads a control message as strictly as a worker does, which dies of an
// envelope that is not whole.
func revokedBy(payload string) (ids []string, err error) {
	var envelope struct {
		Body            *string
		ContentType     *string `json:"content-type"`
		ContentEncoding *string `json:"content-encoding"`
		Headers         *map[string]any
		Properties      *struct {
			BodyEncoding *string `json:"body_encoding"`
			DeliveryTag  *string `json:"delivery_tag"`
		}
	}
	if err := json.Unmarshal([]byte(payload), &envelope); err != nil {
		return nil, err
	}
	e := envelope
	if e.Body == nil || e.ContentType == nil || e.ContentEncoding == nil || e.Headers == nil || e.Properties == nil ||
		e.Properties.BodyEncoding == nil || e.Properties.DeliveryTag == nil {
		return nil, fmt.Errorf("the envelope is not complete")
	}
	body := []byte(*e.Body)
	if *e.Properties.BodyEncoding == "base64" {
		if body, err = base64.StdEncoding.DecodeString(*e.Body); err != nil {
			return nil, err
		}
	}
	var command struct {
		Method    string
		Arguments struct {
			TaskID json.RawMessage `json:"task_id"`
		}
	}
	if err := json.Unmarshal(body, &command); err != nil || command.Method != "revoke" {
		return nil, err
	}
	if json.Unmarshal(command.Arguments.TaskID, &ids) == nil {
		return ids, nil
	}
	ids = make([]string, 1)
	return ids, json.Unmarshal(command.Arguments.TaskID, &ids[0])
}

func (p *pidbox) counts() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.revoked)
}

// await waits until each of the ids was revoked.
func (p *pidbox) await(a *application, ids ...string) {
	a.t.Helper()
	a.check(recovery, "revokes", func() error {
		counts, missing := p.counts(), 0
		for _, id := range ids {
			if counts[id] == 0 {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d tasks were not revoked", missing, len(ids))
		}
		return nil
	})
}

// Celery >= 5.6.2 answers a revoke with a result in every worker. It goes, and makes no
// revoke of its own.
func TestRevokeResultsDoNotLoop(t *testing.T) {
	t.Parallel()
	captured, err := os.ReadFile("../reconciler/celery/testdata/5.6.3/result-revoked.result.bin")
	require.NoError(t, err)
	value := strings.Replace(string(captured), `"children": []`, `"children": null`, 1)
	require.NotEqual(t, string(captured), value)
	var fields struct {
		TaskID string `json:"task_id"`
	}
	require.NoError(t, json.Unmarshal(captured, &fields))

	for _, match := range []string{byArgument, byID} {
		t.Run(match, func(t *testing.T) {
			t.Parallel()
			a := newApplication(t, variant{match: match})
			answer := func(ids []string) { // of a worker of that version
				_, err := a.redis.Pipelined(t.Context(), func(p redis.Pipeliner) error {
					for _, id := range ids {
						text := strings.ReplaceAll(value, fields.TaskID, id)
						p.SetEx(t.Context(), resultKey(id), text, 24*time.Hour)
						p.Publish(t.Context(), resultKey(id), text)
					}
					return nil
				})
				assert.NoError(t, err)
			}
			rows := a.rows(25)
			a.run()
			a.work(2, nil)
			eta := map[string]any{"countdown": 600}
			held := a.send(never, a.scans(rows[:20], nil, eta)...)
			living := a.send(never, a.scans(rows[20:], nil, eta)...)
			a.awaitPlaces(0, 25)
			box := a.listen(func(ids []string) {
				for range 2 { // workers
					answer(ids)
				}
			})
			a.delete(3, rows[:20])
			box.await(a, held...)
			nothing := func() {
				t.Helper()
				sandbox.AwaitTB(t, recovery, "nothing of the deleted rows to be left", func() error { return a.left(held) })
			}
			nothing()
			for range 3 { // restarted workers, and each task's own time
				answer(held)
				nothing()
			}
			waitFor(t, 3*grace) // for what must not come
			require.NoError(t, a.left(held))
			counts := box.counts()
			for _, id := range held {
				assert.Equal(t, 1, counts[id], "revokes of %s", id)
				delete(counts, id)
			}
			assert.Empty(t, counts, "revokes of others")
			letters, err := a.letters()
			require.NoError(t, err)
			assert.Len(t, letters, len(living), "messages of living rows")
		})
	}
}

// A chord whose member vanishes never ends. So the member's message stays, and a revoke
// lets the worker tell the chord.
func TestChordMembersAreRevokedNotRemoved(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"keep", "remove"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			a := newApplication(t, variant{
				config:    map[string]any{"worker_prefetch_multiplier": 1},
				daemonEnv: []string{"ORPHANWATCH_POLICY_CHORDS=" + policy},
			})
			rows := a.rows(3)
			a.run()
			box := a.listen(nil)
			a.work(1, nil)
			a.block(1)
			a.send(1, others(1, nil, nil)...)
			a.awaitPlaces(0, 1) // more it does not take
			tasks := append(a.scans(rows, nil, nil), others(1, nil, nil)...)
			group, members, err := a.producer.Chord(t.Context(), tasks...)
			require.NoError(t, err)
			body, dead := members[3], members[0]
			for i, id := range members[:3] {
				a.expect(id, min(i, 1), tasks[i])
			}
			a.awaitPlaces(3, 1)
			before, err := a.letters()
			require.NoError(t, err)

			commits := a.delete(1, rows[:1])
			if policy == "keep" {
				box.await(a, dead)
				a.remain(2*grace, before)
			} else {
				a.check(recovery, "the member's message to be gone", func() error { return a.left([]string{dead}) })
				a.expect(body, never, tasks[3])
			}
			a.release(1)
			a.awaitLiving(recovery)
			if policy == "keep" {
				a.check(recovery, "the chord's body to have its error", func() error {
					text, err := a.redis.Get(t.Context(), resultKey(body)).Result()
					if err == nil && !strings.Contains(text, "ChordError") {
						err = fmt.Errorf("its result is %s", text)
					}
					return err
				})
				assert.Equal(t, map[string]int{dead: 1}, box.counts(), "revokes")
			} else {
				assert.Empty(t, box.counts(), "revokes")
				assert.Zero(t, a.have(body), "a body without one of its members")
			}
			a.check(recovery, "nothing of the deleted row to be left", func() error { return a.left([]string{dead}) })
			a.judge(commits)
			assert.Zero(t, a.times()[body])
			size, err := a.redis.Get(t.Context(), "celery-taskset-meta-"+group+".s").Result()
			assert.NoError(t, err, "the chord's own keys")
			assert.Equal(t, "3", size)
		})
	}
}

// What is no message stays byte for byte where it is, and is in nobody's way.
func TestHostileMessagesAreLeftAlone(t *testing.T) {
	t.Parallel()
	a := newApplication(t, variant{daemonEnv: []string{"ORPHANWATCH_CELERY_QUEUES=celery,hostile"}})
	a.allow("~hostile*")
	rows := a.rows(10)
	queue := map[string]any{"queue": "hostile"} // no worker consumes it, it would die
	ids := a.send(never, a.scan(rows[0], nil, queue))
	// Its row is deleted, but none of those that are made of it says so legibly.
	whole := a.broker.LIndex(t.Context(), "hostile", 0).Val()
	altered := func(from, to string) string {
		text := strings.Replace(whole, from, to, 1)
		require.NotEqual(t, whole, text)
		return strings.ReplaceAll(text, ids[0], uuid.NewString())
	}
	garbage := []any{
		"", "{}", "null", "[]", "__deleted__", "\x00\xff\xfe", `{"body":`, `"text"`, "1e999",
		strings.Repeat("[", 100_000), `{"headers":` + strings.Repeat(`{"a":`, 50_000),
		`{"body": 1, "headers": 2, "properties": 3}`,
		`{"body": "", "headers": {"id": ["` + rows[0] + `"], "task": "scan_domain_task"}, "properties": {}}`,
		`{"body": "", "headers": {"task": "scan_domain_task", "id": 5}, "properties": {"delivery_tag": null}}`,
		altered(`"body": "`, `"body": "%%%`),
		altered(`"content-type": "application/json"`, `"content-type": "application/x-python-serialize"`),
		altered(`"task": "scan_domain_task"`, `"task": "scan_domain_task", "compression": "application/x-gzip"`),
		strings.Repeat("x", 4<<20),
	}
	require.NoError(t, a.broker.LPush(t.Context(), "hostile", garbage...).Err())
	ids = append(ids, a.send(never, a.scan(rows[1], nil, queue))...)
	for i, g := range garbage {
		tag := "tag" + strconv.Itoa(i)
		wrapped, err := json.Marshal([]any{g, "", "celery"})
		require.NoError(t, err)
		require.NoError(t, a.broker.HSet(t.Context(), unacked, tag, g, tag+"w", wrapped).Err())
		require.NoError(t, a.broker.ZAdd(t.Context(), "unacked_index", redis.Z{Member: tag}, redis.Z{Member: tag + "w"}).Err())
	}
	held := a.broker.HGetAll(t.Context(), unacked).Val()
	reversed := slices.Clone(garbage)
	slices.Reverse(reversed)

	d := a.run()
	a.delete(1, rows[:2])
	hostile := func() []string {
		return a.broker.LRange(t.Context(), "hostile", 0, -1).Val()
	}
	a.check(recovery, "the messages among them to be gone", func() error {
		for _, raw := range hostile() {
			if id := idOf(json.RawMessage(raw)); raw == whole || id == ids[1] {
				return fmt.Errorf("%s is there", id)
			}
		}
		return nil
	})
	untouched := func() {
		a.t.Helper()
		left := hostile()
		require.Len(t, left, len(garbage))
		for i, raw := range left {
			require.Equal(t, reversed[i], any(raw))
		}
		require.Equal(t, held, a.broker.HGetAll(t.Context(), unacked).Val())
	}
	untouched()
	assert.Positive(t, d.metric(unreadable))

	require.True(t, d.alive())
	late := a.send(never, a.scan(rows[2], nil, queue))
	a.delete(1, rows[2:3])
	a.check(recovery, "a later message to be gone", func() error {
		if slices.ContainsFunc(hostile(), func(raw string) bool { return idOf(json.RawMessage(raw)) == late[0] }) {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	untouched()
}
