package celery_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// limit is the moment that most tests take for the edge.
var limit = time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)

const (
	oldDate   = "2026-11-23T23:59:59.999999"
	youngDate = "2026-11-24T00:00:00"
)

func resultOf(id, date string) string {
	if date != "null" {
		date = `"` + date + `"`
	}
	return `{"status": "SUCCESS", "result": 3, "traceback": null, "children": [], "date_done": ` + date + `, "task_id": "` + id + `"}`
}

func (l *lab) expiry(set ...func(*reconciler.Expiry)) reconciler.Expiry {
	e := reconciler.Expiry{Before: limit, TTL: 24 * time.Hour, Record: reconciler.Record{Evidence: reconciler.Expired, Trigger: reconciler.ByCLI}}
	for _, f := range set {
		f(&e)
	}
	return e
}

func (l *lab) expire(set ...func(*reconciler.Expiry)) reconciler.ExpiredReport {
	l.Helper()
	report, err := l.RemoveExpired(l.Context(), l.epoch, l.expiry(set...))
	l.ok(err)
	return report
}

func (l *lab) wantReport(got, want reconciler.ExpiredReport) {
	l.Helper()
	if got != want {
		l.Errorf("%+v, want %+v", got, want)
	}
}

func dry(e *reconciler.Expiry) { e.DryRun = true }

// dumps is the whole database, with whether a key has a TTL.
func (l *lab) dumps() map[string]string {
	l.Helper()
	keys, err := l.client.Keys(l.Context(), "*").Result()
	l.ok(err)
	out := map[string]string{}
	for _, key := range keys {
		dump, err := l.client.Dump(l.Context(), key).Result()
		l.ok(err)
		out[key] = fmt.Sprint(dump, l.do("pttl", key) == int64(-1))
	}
	return out
}

// meanwhile is a hook that does something once, before the first pipeline of scripts.
type meanwhile struct{ do func() }

func (m *meanwhile) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (m *meanwhile) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (m *meanwhile) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if do := m.do; do != nil && cmds[0].Name() == "evalsha" {
			m.do = nil
			do()
		}
		return next(ctx, cmds)
	}
}

// TestExpiredSamples: results of real workers, in all serializers.
func TestExpiredSamples(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*/*.result.bin")
	if err != nil || len(files) < 200 {
		t.Fatal(len(files), err)
	}
	l := newLab(t)
	undated := map[string]bool{}
	for i, file := range files {
		value, err := os.ReadFile(file)
		l.ok(err)
		key := l.Keys.ResultKey(fmt.Sprint(i))
		l.do("set", key, value)
		if i%2 == 0 {
			l.do("pexpire", key, time.Hour.Milliseconds())
		}
		undated[key] = celery.DateDone(string(value)) == ""
	}
	before := l.dumps()
	none := l.expire(dry, func(e *reconciler.Expiry) { e.Before = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC) })
	if none.Cleaned != 0 || none.Scanned != int64(len(files)) {
		t.Errorf("%+v", none)
	}
	planned := l.expire(dry)
	if !maps.Equal(before, l.dumps()) {
		t.Error("a dry run has changed something")
	}
	report := l.expire()
	planned.DryRun = false
	l.wantReport(report, planned)
	if report.Cleaned < 180 || report.TTLSet == 0 || report.Undated <= report.TTLSet || report.Cleaned+report.Undated != report.Scanned {
		t.Errorf("%+v", report)
	}
	for i := range files {
		key := l.Keys.ResultKey(fmt.Sprint(i))
		there := l.do("exists", key) == int64(1)
		if there != undated[key] {
			t.Errorf("%s: there %v, undated %v", files[i], there, undated[key])
		}
		ttl, _ := l.do("pttl", key).(int64)
		if want := time.Duration(1+i%2*23) * time.Hour; there && (ttl > want.Milliseconds() || ttl < want.Milliseconds()-600_000) {
			t.Errorf("%s: a TTL of %d ms, want %v", files[i], ttl, want)
		}
	}
}

func TestExpiredLeavesTheRest(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(o *celery.Options) {
		b := scans
		b.Companions = append(b.Companions, "pre_celery-task-meta-{key}:progress")
		o.Bindings, o.ResultKeyPrefix = []reconciler.Binding{b}, "pre_"
	})
	l.do("set", "pre_celery-task-meta-old", resultOf("old", oldDate))
	l.do("set", "pre_celery-task-meta-young", resultOf("young", youngDate))
	l.do("set", "pre_celery-task-meta-future", resultOf("future", "9999-12-31T23:59:59"))
	l.do("set", "pre_celery-task-meta-1:progress", resultOf("1", oldDate))
	l.do("set", "pre_celery-task-meta-2:progress", "50 %")
	l.do("rpush", "pre_celery-task-meta-list", resultOf("list", oldDate))
	for _, key := range []string{"celery-task-meta-old", "pre_celery-taskset-meta-old", "celery-taskset-meta-old", "pre_celery-task-meta-", "task_created:old", "old", "preXcelery-task-meta-old"} {
		l.do("set", key, resultOf("old", oldDate))
	}
	want := l.dumps()
	delete(want, "pre_celery-task-meta-old")
	l.wantReport(l.expire(), reconciler.ExpiredReport{Cleaned: 1, Scanned: 3})
	got := l.dumps()
	maps.DeleteFunc(got, func(key, _ string) bool { return strings.HasPrefix(key, celery.Own) && key != "orphanwatch:control" })
	if !maps.Equal(got, want) {
		t.Errorf("%q, want %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// TestExpiredMeanwhile: what happens between the look and the removal.
func TestExpiredMeanwhile(t *testing.T) {
	t.Parallel()
	pauses := []string{"hset", "orphanwatch:control", "paused", "1"}
	leader := []string{"hincrby", "orphanwatch:control", "epoch", "1"}
	for _, tt := range []struct {
		name, value string
		do          []string
		want        reconciler.ExpiredReport
		err         error
		changes     bool
	}{
		{"rewritten", resultOf("a", oldDate), []string{"set", "celery-task-meta-a", resultOf("a", youngDate)}, reconciler.ExpiredReport{Changed: 1}, nil, true},
		{"as old again", resultOf("a", oldDate), []string{"set", "celery-task-meta-a", resultOf("a", "2026-11-23T00:00:00")}, reconciler.ExpiredReport{Changed: 1}, nil, true},
		{"gone", resultOf("a", oldDate), []string{"del", "celery-task-meta-a"}, reconciler.ExpiredReport{}, nil, true},
		{"another type", resultOf("a", oldDate), []string{"eval", "redis.call('del', KEYS[1]) redis.call('lpush', KEYS[1], 'x')", "1", "celery-task-meta-a"}, reconciler.ExpiredReport{Changed: 1}, nil, true},
		{"paused", resultOf("a", oldDate), pauses, reconciler.ExpiredReport{}, reconciler.ErrPaused, true},
		{"another leader", resultOf("a", oldDate), leader, reconciler.ExpiredReport{}, reconciler.ErrStale, true},
		{"no control hash", resultOf("a", oldDate), []string{"del", "orphanwatch:control"}, reconciler.ExpiredReport{}, reconciler.ErrStale, true},
		{"scripts gone", resultOf("a", oldDate), []string{"script", "flush"}, reconciler.ExpiredReport{Cleaned: 1}, nil, false},
		{"undated rewritten", resultOf("a", "null"), []string{"set", "celery-task-meta-a", resultOf("a", youngDate)}, reconciler.ExpiredReport{Changed: 1}, nil, true},
		{"undated with a TTL meanwhile", resultOf("a", "null"), []string{"expire", "celery-task-meta-a", "60"}, reconciler.ExpiredReport{Undated: 1}, nil, true},
		{"undated gone", resultOf("a", "null"), []string{"del", "celery-task-meta-a"}, reconciler.ExpiredReport{}, nil, true},
		{"undated paused", resultOf("a", "null"), pauses, reconciler.ExpiredReport{}, reconciler.ErrPaused, true},
		{"undated, another leader", resultOf("a", "null"), leader, reconciler.ExpiredReport{}, reconciler.ErrStale, true},
		{"undated", resultOf("a", "null"), []string{"ping"}, reconciler.ExpiredReport{Undated: 1, TTLSet: 1}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			hook := &meanwhile{}
			l := newLab(t, func(o *celery.Options) { o.Client.AddHook(hook) })
			l.do("set", "celery-task-meta-a", tt.value)
			var after map[string]string
			hook.do = func() {
				args := make([]any, len(tt.do))
				for i, a := range tt.do {
					args[i] = a
				}
				l.do(args...)
				after = l.dumps()
			}
			report, err := l.RemoveExpired(t.Context(), l.epoch, l.expiry())
			if !errors.Is(err, tt.err) {
				t.Fatalf("%v, want %v", err, tt.err)
			}
			tt.want.Scanned = 1
			l.wantReport(report, tt.want)
			if same := maps.Equal(l.dumps(), after); same != tt.changes {
				t.Errorf("left alone: %v, want %v", same, tt.changes)
			}
		})
	}
}

// TestExpiredInterrupted: what the report says is what was done.
func TestExpiredInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	hook := &meanwhile{do: cancel}
	const n = 5000
	l := newLab(t)
	for i := range n {
		l.do("set", l.Keys.ResultKey(fmt.Sprint(i)), resultOf(fmt.Sprint(i), oldDate))
	}
	l.client.AddHook(hook)
	var last reconciler.Progress
	report, err := l.RemoveExpired(ctx, l.epoch, l.expiry(func(e *reconciler.Expiry) { e.Progress = func(p reconciler.Progress) { last = p } }))
	if !errors.Is(err, context.Canceled) || report.Cleaned == 0 || int(report.Cleaned)+len(l.keys()) != n {
		t.Errorf("%v, %+v, %d are left", err, report, len(l.keys()))
	}
	rest := l.expire(func(e *reconciler.Expiry) { e.Progress = func(p reconciler.Progress) { last = p } })
	if rest.Cleaned+report.Cleaned != n || len(l.keys()) != 0 {
		t.Errorf("%+v after %+v, %d are left", rest, report, len(l.keys()))
	}
	if last.Done != last.Total || last.Total == 0 {
		t.Errorf("progress %+v", last)
	}
}

func TestExpiredRestored(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	upper := strings.ToUpper(id1)
	l.do("setex", key1, 7200, resultOf(id1, oldDate))
	l.do("set", l.Keys.ResultKey(upper), resultOf(upper, oldDate))
	before := l.dumps()
	l.wantReport(l.expire(), reconciler.ExpiredReport{Cleaned: 2, Scanned: 2})
	l.wantKeys()
	if found := l.look(reconciler.TaskSubject(id1)); found.Deleted || found.Ended || found.Taken {
		t.Errorf("%+v: an old result tells of no deletion", found)
	}
	history, err := l.History(t.Context(), id1)
	l.ok(err)
	if len(history) != 1 || history[0].Evidence != reconciler.Expired || history[0].Trigger != reconciler.ByCLI || history[0].Count[reconciler.ResultKey] != 2 || len(history[0].Undo) != 2 || history[0].Removed.IsZero() {
		t.Errorf("%+v", history)
	}
	if ttl, _ := l.do("pttl", "orphanwatch:undo:"+key1).(int64); ttl <= 0 || ttl > time.Hour.Milliseconds() {
		t.Errorf("quarantine of %d ms", ttl)
	}
	restored := 0
	l.ok(l.RestoreSince(t.Context(), time.Minute, time.Hour, func(page []celery.Restored) error {
		restored += len(page)
		return nil
	}))
	after := l.dumps()
	for _, key := range []string{key1, l.Keys.ResultKey(upper)} {
		if before[key] != after[key] {
			t.Errorf("%s: %q, was %q", key, after[key], before[key])
		}
	}
	if ttl, _ := l.do("ttl", key1).(int64); restored != 1 || ttl < 7100 || ttl > 7200 {
		t.Errorf("%d restored, TTL %d", restored, ttl)
	}
	l.wantReport(l.expire(), reconciler.ExpiredReport{Held: 2, Scanned: 2})
	l.wantReport(l.expire(dry), reconciler.ExpiredReport{Held: 2, Scanned: 2, DryRun: true})
	if !maps.Equal(after, l.dumps()) {
		t.Error("what is held has been changed")
	}
	l.revive(reconciler.TaskSubject(id1))
	l.wantReport(l.expire(), reconciler.ExpiredReport{Cleaned: 2, Scanned: 2})
}

// TestExpiredAndDeleted: a removal for its age neither makes nor ends evidence.
func TestExpiredAndDeleted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	task := reconciler.TaskSubject(id1)
	put := func() { l.do("set", key1, resultOf(id1, oldDate)) }
	put()
	l.expire()
	put()
	r := l.removal(task)
	r.Record.LSN = "0/16B3748"
	l.want(l.remove(r)[0], "removed results=1")
	history, err := l.History(t.Context(), id1)
	l.ok(err)
	if h := history[0]; h.Evidence != reconciler.Deleted || h.Trigger != reconciler.ByDelete || h.LSN == "" || h.Count[reconciler.ResultKey] != 2 || len(h.Undo) != 1 {
		t.Errorf("%+v", h)
	}
	l.revive(task) // the row is there again
	put()
	l.wantReport(l.expire(), reconciler.ExpiredReport{Cleaned: 1, Scanned: 1})
	if l.look(task).Deleted {
		t.Error("a row that exists is thought to be deleted")
	}
	if history, _ = l.History(t.Context(), id1); history[0].Evidence != reconciler.Deleted || history[0].Count[reconciler.ResultKey] != 3 {
		t.Errorf("%+v", history[0])
	}
	other := reconciler.TaskSubject(id2)
	l.do("set", l.Keys.ResultKey(id2), resultOf(id2, oldDate))
	l.expire()
	_, err = l.Bury(t.Context(), l.epoch, []reconciler.Burial{{Task: other, Record: reconciler.Record{Evidence: reconciler.Deleted, Trigger: reconciler.ByDelete, LSN: "0/1"}}})
	l.ok(err)
	if history, _ = l.History(t.Context(), id2); !l.look(other).Deleted || history[0].Trigger != reconciler.ByDelete || history[0].LSN != "0/1" {
		t.Errorf("%+v: a record of an old result stands before that of a deletion", history)
	}
}

func TestExpiredWithoutQuarantine(t *testing.T) {
	t.Parallel()
	for _, remember := range []time.Duration{0, time.Hour} {
		l := newLab(t, func(o *celery.Options) { o.Quarantine, o.Remember = 0, remember })
		l.do("set", key1, resultOf(id1, oldDate))
		l.wantReport(l.expire(), reconciler.ExpiredReport{Cleaned: 1, Scanned: 1})
		if own := l.do("exists", "orphanwatch:record:task:"+id1) == int64(1); own != (remember > 0) || l.do("exists", "orphanwatch:undo:"+key1) != int64(0) {
			t.Errorf("remember %v: a record: %v", remember, own)
		}
	}
}

// TestExpiredLarge: values that a stamp does not hold whole.
func TestExpiredLarge(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 100_000)
	text := func(s string) string {
		return "\xdb" + string([]byte{0, byte(len(s) >> 16), byte(len(s) >> 8), byte(len(s))}) + s
	}
	for _, tt := range []struct {
		name, value string
		removed     bool
	}{
		{"JSON", `{"status": "SUCCESS", "result": "` + big + `", "date_done": "` + oldDate + `", "task_id": "a"}`, true},
		{"JSON, young", `{"status": "SUCCESS", "result": "` + big + `", "date_done": "` + youngDate + `", "task_id": "a"}`, false},
		{"JSON of 2 MB", `{"status": "SUCCESS", "result": "` + strings.Repeat(big, 20) + `", "date_done": "` + oldDate + `", "task_id": "a"}`, true},
		{"extended JSON", `{"result": "` + big + `", "date_done": "` + oldDate + `", "args": [{"date_done": "` + youngDate + `"}], "task_id": "a"}`, true},
		{"extended JSON, young", `{"result": "` + big + `", "date_done": "` + youngDate + `", "args": [{"date_done": "` + oldDate + `"}], "task_id": "a"}`, false},
		{"the stamp does not hold the date", `{"result": "` + big + `", "date_done": "` + oldDate + `", "args": ["` + big + `"], "task_id": "a"}`, false},
		{"date first", `{"date_done": "` + oldDate + `", "args": ["` + big + `"], "task_id": "a"}`, true},
		{"no JSON", `{"date_done": "` + oldDate + `", "args": ["` + big + `"]`, false},
		{"YAML", "date_done: '" + oldDate + "'\nresult: " + big + "\n", true},
		{"msgpack", "\x82\xa6result" + text(big) + "\xa9date_done" + text(oldDate), true},
		{"msgpack, young", "\x82\xa6result" + text(big) + "\xa9date_done" + text(youngDate), false},
		{"pickle", "\x80\x04date_done" + oldDate + big, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.do("set", "celery-task-meta-a", tt.value)
			report := l.expire()
			if (report.Cleaned == 1) != tt.removed || (len(l.keys()) == 0) != tt.removed {
				t.Errorf("%+v, %q are left", report, l.keys())
			}
			if undated := !tt.removed && !strings.Contains(tt.name, "young"); (report.TTLSet == 1) != undated {
				t.Errorf("%+v: TTL", report)
			}
		})
	}
}
