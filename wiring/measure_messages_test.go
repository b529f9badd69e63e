package wiring_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// TestMeasureMillion measures the daemon on a queue of a million messages, 10,000 of
// which are of rows that are deleted at once, evenly spread, beside a consumer:
//
//	go test ./wiring -run TestMeasureMillion -measure -v -timeout 20m
//
// Like TestMeasure it judges no times.
func TestMeasureMillion(t *testing.T) {
	if !*measure {
		return
	}
	const total, orphans = 1_000_000, 10_000
	a := newApplication(t, variant{})
	rows := a.rows(2 * orphans)
	doomed := rows[:orphans]
	a.send(never, a.scan(rows[0], nil, nil)) // so that kombu makes the queue
	message := newTemplate(t, a.broker.LPop(t.Context(), "celery").Val())
	began := time.Now()
	for from := 0; from < total; from += 5000 {
		_, err := a.broker.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			for i := from; i < from+5000; i++ {
				p.LPush(t.Context(), "celery", messageOf(message, i, total/orphans, doomed, rows[orphans:]))
			}
			return nil
		})
		require.NoError(t, err)
	}
	t.Logf("%d messages of %d bytes pushed within %v", total, len(message.text), time.Since(began).Round(time.Millisecond))

	d := a.run("ORPHANWATCH_POLICY_GRACE=5s")
	began = time.Now()
	a.awaitStatus(5*time.Minute, "the first pass", func(s wiring.DaemonStatus) bool { return !s.Pass.Ended.IsZero() })
	t.Logf("first pass over all of it: %v; RSS %d MiB", time.Since(began).Round(time.Millisecond), d.rss(t))
	require.NoError(t, a.broker.ConfigSet(t.Context(), "slowlog-log-slower-than", "1000").Err())
	require.NoError(t, a.broker.ConfigSet(t.Context(), "slowlog-max-len", "10000").Err())
	require.NoError(t, a.broker.Do(t.Context(), "SLOWLOG", "RESET").Err())

	ctx, stop := context.WithCancel(t.Context())
	pops := make(chan []time.Duration)
	go func() { pops <- consume(ctx, a.client(a.sb.Redis, 0)) }()
	began = time.Now()
	a.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", doomed)
	sandbox.AwaitTB(t, 10*time.Minute, "the messages to be removed", sandbox.Until(func() bool {
		return d.metric("orphanwatch_removed_total", `kind="messages"`) >= orphans*0.9 && d.metric("orphanwatch_pending") == 0
	}))
	took := time.Since(began)
	stop()
	waits := <-pops
	slices.Sort(waits)
	slow, err := a.broker.SlowLogGet(t.Context(), 10000).Result()
	require.NoError(t, err)
	longest := map[string]time.Duration{}
	for _, s := range slow {
		name := strings.ToLower(s.Args[0])
		longest[name] = max(longest[name], s.Duration)
	}
	t.Logf("%d rows deleted: %.0f messages removed, all done after %v; peak RSS %d MiB", orphans,
		d.metric("orphanwatch_removed_total", `kind="messages"`), took.Round(time.Millisecond), d.proc("VmHWM")/1024)
	t.Logf("longest calls of Redis (over 1 ms): %v; %d in all", longest, len(slow))
	t.Logf("BRPOP of a consumer: p50 %v, p99 %v, max %v of %d", waits[len(waits)/2], waits[len(waits)*99/100], waits[len(waits)-1], len(waits))
}

// messageOf makes the i-th message of one that Celery made: every n-th is of a doomed
// row, the one behind it of a living row, the others are tasks of others.
func messageOf(message template, i, n int, doomed, living []string) string {
	id := uuid.NewString()
	name, row := sandbox.OtherTask, "x"
	switch i % n {
	case 0:
		name, row = sandbox.ScanTask, doomed[i/n]
	case 1:
		name, row = sandbox.ScanTask, living[i/n]
	}
	body := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `[[%q], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]`, row))
	return message.with(id, name, body)
}

// template is a message that Celery made, cut where others differ.
type template struct {
	text          string
	id, tag, body string
}

func newTemplate(t *testing.T, text string) template {
	var e struct {
		Body       string
		Headers    struct{ ID string }
		Properties struct {
			Tag string `json:"delivery_tag"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(text), &e))
	return template{text, e.Headers.ID, e.Properties.Tag, e.Body}
}

func (m template) with(id, name, body string) string {
	return strings.NewReplacer(m.id, id, m.tag, uuid.NewString(), m.body, body, sandbox.ScanTask, name).Replace(m.text)
}

// consume pops a message about every millisecond, and tells how long each took.
func consume(ctx context.Context, client *redis.Client) (waits []time.Duration) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return waits
		case <-tick.C:
		}
		began := time.Now()
		if err := client.BRPop(context.WithoutCancel(ctx), time.Second, "celery").Err(); err != nil {
			panic(fmt.Sprint("BRPOP: ", err))
		}
		waits = append(waits, time.Since(began))
	}
}
