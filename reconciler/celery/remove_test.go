package celery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

const (
	id1 = "0a1b2c3d-0000-4000-8000-00000000002a"
	id2 = "0a1b2c3d-0000-4000-8000-00000000002b"
	// key1 is the result key of id1.
	key1 = "celery-task-meta-" + id1
)

var scans = reconciler.Binding{
	Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true,
	Companions: []string{"task_created:{key}", "{key}:progress"},
}

// lab is a Redis of its own, with a store and a leader's epoch.
type lab struct {
	testing.TB
	redis *sandbox.Redis
	*celery.Store
	client *redis.Client
	epoch  uint64
}

func newLab(t testing.TB, set ...func(*celery.Options)) *lab {
	t.Helper()
	r := sandbox.NewRedis(t)
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: r.Socket(), DialerRetries: 1})
	t.Cleanup(func() { _ = client.Close() })
	o := celery.Options{Client: client, Bindings: []reconciler.Binding{scans}, Quarantine: time.Hour, Remember: 24 * time.Hour}
	for _, f := range set {
		f(&o)
	}
	l := &lab{TB: t, redis: r, Store: celery.New(o), client: client}
	epoch, err := l.ClaimEpoch(t.Context(), 0)
	l.ok(err)
	l.epoch = epoch
	return l
}

func (l *lab) ok(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) do(args ...any) any {
	l.Helper()
	reply, err := l.client.Do(l.Context(), args...).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		l.Fatalf("%v: %v", args, err)
	}
	return reply
}

func (l *lab) look(s reconciler.Subject) reconciler.Found {
	l.Helper()
	found, err := l.Look(l.Context(), []reconciler.Look{{Subject: s}})
	l.ok(err)
	return found[0]
}

func (l *lab) removal(s reconciler.Subject) reconciler.Removal {
	l.Helper()
	return reconciler.Removal{Subject: s, Artifacts: l.look(s).Artifacts, Record: reconciler.Record{Evidence: reconciler.Deleted, Trigger: reconciler.ByDelete, Table: scans.Name(), Key: s.ID}}
}

func (l *lab) remove(r ...reconciler.Removal) []reconciler.RemoveResult {
	l.Helper()
	results, err := l.Remove(l.Context(), l.epoch, r)
	l.ok(err)
	return results
}

// revive tells that the row of s exists, by a look from after all that has been done.
func (l *lab) revive(s reconciler.Subject) {
	l.Helper()
	late, err := l.Revive(l.Context(), l.epoch, []reconciler.Revival{{Subject: s, Looked: time.Now().Add(time.Second)}})
	l.ok(err)
	if late[0] {
		l.Fatal("late")
	}
}

// want checks the status and the counts of a removal, written as "removed results=1".
func (l *lab) want(r reconciler.RemoveResult, want string) {
	l.Helper()
	got := string(r.Status)
	for _, kind := range []reconciler.ArtifactKind{reconciler.ResultKey, reconciler.CompanionKey} {
		if n := r.Count[kind]; n > 0 {
			got += fmt.Sprintf(" %s=%d", kind, n)
		}
	}
	if got != want {
		l.Errorf("removal: %s, want %s", got, want)
	}
}

// keys are those that are not ours.
func (l *lab) keys() []string {
	l.Helper()
	keys, err := l.client.Keys(l.Context(), "*").Result()
	l.ok(err)
	keys = slices.DeleteFunc(keys, func(k string) bool { return strings.HasPrefix(k, celery.Own) })
	slices.Sort(keys)
	return keys
}

func (l *lab) wantKeys(want ...string) {
	l.Helper()
	if got := l.keys(); !slices.Equal(got, want) {
		l.Errorf("keys %q, want %q", got, want)
	}
}

func TestRemoveTable(t *testing.T) {
	t.Parallel()
	task := reconciler.TaskSubject(id1)
	for _, tt := range []struct {
		name string
		// before are commands before the look; between, after it.
		before, between []string
		want            string
		left            []string
	}{
		{"unchanged", []string{"set " + key1 + " v"}, nil, "removed results=1", nil},
		{"every spelling", []string{"set " + key1 + " v", "set " + strings.ToUpper(id1) + " x", "set celery-task-meta-" + strings.ToUpper(id1) + " w", "set celery-task-meta-0a1b2c3d00004000800000000000002a u"}, nil, "removed results=3", []string{strings.ToUpper(id1)}},
		{"nothing there", nil, nil, "removed", nil},
		{"vanished", []string{"set " + key1 + " v"}, []string{"del " + key1}, "removed", nil},
		{"changed", []string{"set " + key1 + " v"}, []string{"set " + key1 + " w"}, "changed", []string{key1}},
		{"longer", []string{"set " + key1 + " v"}, []string{"append " + key1 + " v"}, "changed", []string{key1}},
		{"shorter", []string{"set " + key1 + " vv"}, []string{"set " + key1 + " v"}, "changed", []string{key1}},
		{"same again", []string{"set " + key1 + " v"}, []string{"setex " + key1 + " 9 v"}, "removed results=1", nil},
		{"empty", []string{"setrange " + key1 + " 0 x", "set " + key1 + " %"}, nil, "removed results=1", nil},
		{"another type meanwhile", []string{"set " + key1 + " v"}, []string{"del " + key1, "lpush " + key1 + " v"}, "changed", []string{key1}},
		{"another type", []string{"lpush " + key1 + " v"}, nil, "removed", []string{key1}},
		{"stale", []string{"set " + key1 + " v"}, []string{"hincrby orphanwatch:control epoch 1"}, "stale", []string{key1}},
		{"no control", []string{"set " + key1 + " v"}, []string{"del orphanwatch:control"}, "stale", []string{key1}},
		{"paused", []string{"set " + key1 + " v"}, []string{"hset orphanwatch:control paused 1"}, "paused", []string{key1}},
		{"held", []string{"set " + key1 + " v"}, []string{"hset orphanwatch:record:task:" + id1 + " hold_until 99999999999999"}, "held", []string{key1}},
		{"hold over", []string{"set " + key1 + " v"}, []string{"hset orphanwatch:record:task:" + id1 + " hold_until 1"}, "removed results=1", nil},
		{"one changed, one not", []string{"set " + key1 + " v", "set celery-task-meta-" + strings.ToUpper(id1) + " w"}, []string{"set " + key1 + " x"}, "changed results=1", []string{key1}},
	} {
		for _, quarantine := range []time.Duration{time.Hour, 0} {
			t.Run(fmt.Sprint(tt.name, " ", quarantine), func(t *testing.T) {
				t.Parallel()
				l := newLab(t, func(o *celery.Options) { o.Quarantine = quarantine })
				run := func(commands []string) {
					for _, c := range commands {
						var args []any
						for _, word := range strings.Fields(c) {
							args = append(args, strings.Trim(word, "%"))
						}
						l.do(args...)
					}
				}
				run(tt.before)
				r := l.removal(task)
				run(tt.between)
				l.want(l.remove(r)[0], tt.want)
				l.wantKeys(tt.left...)
				found := l.look(task)
				if removed := strings.Contains(tt.want, "="); found.Deleted != removed {
					t.Errorf("a record says deleted: %v, want %v", found.Deleted, removed)
				}
			})
		}
	}
}

func TestRemoveCompanionsOfAnyType(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	row := reconciler.RowSubject(0, id1)
	big := make([]any, 0, 4002)
	for i := range 2000 {
		big = append(big, "field"+strconv.Itoa(i), "value")
	}
	fill := map[string][]any{
		"string": {"set", "task_created:" + id1, "v"},
		"list":   {"rpush", "task_created:" + id1, "a", "b"},
		"hash":   {"hset", "task_created:" + id1, "f", "v"},
		"set":    {"sadd", "task_created:" + id1, "a", "b"},
		"zset":   {"zadd", "task_created:" + id1, 1, "a"},
		"stream": {"xadd", "task_created:" + id1, "*", "f", "v"},
		"big":    append([]any{"hset", "task_created:" + id1}, big...),
	}
	change := map[string][]any{
		"string": {"set", "task_created:" + id1, "w"},
		"list":   {"lset", "task_created:" + id1, 0, "c"},
		"hash":   {"hset", "task_created:" + id1, "f", "w"},
		"set":    {"sadd", "task_created:" + id1, "c"},
		"zset":   {"zincrby", "task_created:" + id1, 1, "a"},
		"stream": {"xadd", "task_created:" + id1, "*", "f", "v"},
		"big":    {"hdel", "task_created:" + id1, "field7"},
	}
	for kind := range fill {
		l.do(fill[kind]...)
		l.do("sadd", id1+":progress", "p")
		r := l.removal(row)
		if len(r.Artifacts) != 2 {
			t.Fatalf("%s: %+v", kind, r.Artifacts)
		}
		l.do(change[kind]...)
		l.want(l.remove(r)[0], "changed companions=1")
		l.wantKeys("task_created:" + id1)
		l.want(l.remove(l.removal(row))[0], "removed companions=1")
		l.wantKeys()
		l.do("flushall")
		l.epoch, _ = l.ClaimEpoch(t.Context(), 0)
	}
}

func TestRecordFirstValueWins(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	task := reconciler.TaskSubject(id1)
	l.do("setex", key1, 100, "first")
	r := l.removal(task)
	r.Record = reconciler.Record{
		Evidence: reconciler.Absent, Trigger: reconciler.ByResync, Table: "public.scan_tasks", Key: "other", LSN: "0/16B3748", XID: 744,
		CommitTime: time.Date(2026, 11, 23, 1, 2, 3, 4000, time.UTC), TraceID: strings.Repeat("ab", 16),
	}
	l.want(l.remove(r)[0], "removed results=1")
	if l.look(task).Deleted {
		t.Error("evidence absent reads as deleted")
	}
	l.do("set", key1, "second")
	l.want(l.remove(l.removal(task))[0], "removed results=1")
	if !l.look(task).Deleted {
		t.Error("later evidence deleted is lost")
	}
	if got := l.do("get", "orphanwatch:undo:"+key1); got != "first" {
		t.Errorf("undo holds %v, want the first value", got)
	}
	entries, err := l.History(t.Context(), strings.ToUpper(id1))
	l.ok(err)
	if len(entries) != 1 {
		t.Fatalf("%+v", entries)
	}
	e := entries[0]
	if e.Kind != "task" || e.ID != id1 || e.Evidence != reconciler.Deleted || e.Trigger != reconciler.ByResync || e.Table != "public.scan_tasks" || e.Key != "other" ||
		e.LSN != "0/16B3748" || e.XID != 744 || !e.CommitTime.Equal(r.Record.CommitTime) || e.TraceID != r.Record.TraceID ||
		e.Count[reconciler.ResultKey] != 2 || e.Removed.IsZero() || e.RemovedAgain.Before(e.Removed) || len(e.Undo) != 1 {
		t.Errorf("%+v", e)
	}
	if left := time.Until(e.Undo[key1]); left < 90*time.Second || left > 101*time.Second {
		t.Errorf("the original expires in %v, want 100 s", left)
	}
	if ttl := l.do("pttl", "orphanwatch:undo:"+key1).(int64); ttl > 100_000 {
		t.Errorf("undo lasts %d ms, longer than the original would have", ttl)
	}
	if ttl := l.do("ttl", "orphanwatch:record:task:"+id1).(int64); ttl < 86300 {
		t.Errorf("the record lasts %d s", ttl)
	}
}

func TestNoRecordWithoutRemember(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(o *celery.Options) { o.Quarantine, o.Remember = 0, 0 })
	l.do("set", key1, "v")
	l.want(l.remove(l.removal(reconciler.TaskSubject(id1)))[0], "removed results=1")
	keys, err := l.client.Keys(t.Context(), "*").Result()
	l.ok(err)
	if !slices.Equal(keys, []string{"orphanwatch:control"}) {
		t.Errorf("%q", keys)
	}
}

func TestRestore(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	task, row := reconciler.TaskSubject(id1), reconciler.RowSubject(0, id1)
	l.do("setex", key1, 100, "result")
	l.do("set", "task_created:"+id1, "c")
	l.do("lpush", id1+":progress", "p")
	for _, r := range l.remove(l.removal(task), l.removal(row)) {
		if r.Status != reconciler.Removed {
			t.Fatal(r)
		}
	}
	l.wantKeys()
	l.do("lpush", id1+":progress", "newer")
	restored, err := l.Restore(t.Context(), []string{strings.ReplaceAll(strings.ToUpper(id1), "-", ""), id2, "no such"}, time.Minute)
	l.ok(err)
	got := map[string]string{}
	for _, r := range restored {
		if left := time.Until(r.HoldUntil); left < 50*time.Second || left > 61*time.Second {
			t.Errorf("held for %v", left)
		}
		for _, k := range r.Keys {
			got[k.Key] = k.Status
		}
	}
	if len(restored) != 2 || got[key1] != "restored" || got["task_created:"+id1] != "restored" || got[id1+":progress"] != "exists" {
		t.Fatalf("%+v", restored)
	}
	if ttl := l.do("ttl", key1).(int64); ttl < 90 || ttl > 100 {
		t.Errorf("the result expires in %d s, want the original 100", ttl)
	}
	if ttl := l.do("ttl", "task_created:"+id1).(int64); ttl != -1 {
		t.Errorf("the companion expires in %d s, want never", ttl)
	}
	if l.do("lindex", id1+":progress", 0) != "newer" {
		t.Error("a newer value was overwritten")
	}
	for _, s := range []reconciler.Subject{task, row} {
		if l.look(s).HoldUntil.IsZero() {
			t.Errorf("%v is not held", s)
		}
		l.want(l.remove(l.removal(s))[0], "held")
	}
	again, err := l.Restore(t.Context(), []string{id1}, time.Hour)
	l.ok(err)
	for _, r := range again {
		for _, k := range r.Keys {
			if k.Status == "restored" {
				t.Errorf("restored twice: %+v", r)
			}
		}
		if time.Until(r.HoldUntil) > 2*time.Minute {
			t.Errorf("a second restore moved the hold to %v", r.HoldUntil)
		}
	}
}

func TestRestoreWhatHasExpired(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(o *celery.Options) { o.Quarantine = 300 * time.Millisecond })
	l.do("psetex", key1, 50, "short")
	l.do("set", "celery-task-meta-"+id2, "kept too long")
	l.remove(l.removal(reconciler.TaskSubject(id1)), l.removal(reconciler.TaskSubject(id2)))
	sandbox.AwaitTB(t, 5*time.Second, "both undo keys to end", sandbox.Until(func() bool {
		return l.do("exists", "orphanwatch:undo:"+key1, "orphanwatch:undo:celery-task-meta-"+id2).(int64) == 0
	}))
	restored, err := l.Restore(t.Context(), []string{id1, id2}, time.Minute)
	l.ok(err)
	if len(restored) != 2 || restored[0].Keys[0].Status != "expired" || restored[1].Keys[0].Status != "gone" || !restored[0].HoldUntil.IsZero() {
		t.Fatalf("%+v", restored)
	}
	l.wantKeys()
}

func TestRestoreSince(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	const n = 1300
	var removals []reconciler.Removal
	for i := range n {
		l.do("set", fmt.Sprint("celery-task-meta-t", i), i)
		removals = append(removals, l.removal(reconciler.TaskSubject(fmt.Sprint("t", i))))
	}
	l.remove(removals...)
	l.wantKeys()
	// Age the first hundred by an hour.
	for i := range 100 {
		l.do("zincrby", "orphanwatch:records", -3600_000, fmt.Sprint("task:t", i))
	}
	seen := 0
	l.ok(l.RestoreSince(t.Context(), 10*time.Minute, time.Minute, func(page []celery.Restored) error {
		seen += len(page)
		return nil
	}))
	if seen != n-100 || len(l.keys()) != n-100 {
		t.Fatalf("restored %d, keys %d, want %d", seen, len(l.keys()), n-100)
	}
}

func TestScriptsComeBack(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var removals []reconciler.Removal
	for i := range 400 {
		l.do("set", fmt.Sprint("celery-task-meta-t", i), i)
		removals = append(removals, l.removal(reconciler.TaskSubject(fmt.Sprint("t", i))))
	}
	// SCRIPT FLUSH in the middle of the pipeline, behind 100 removals.
	l.client.AddHook(flushInPipeline{after: 100})
	total := 0
	for _, r := range l.remove(removals...) {
		total += r.Count[reconciler.ResultKey]
	}
	if total != 400 {
		t.Errorf("removed %d, want 400", total)
	}
	l.wantKeys()

	l.do("script", "flush")
	l.do("set", key1, "v")
	l.want(l.remove(l.removal(reconciler.TaskSubject(id1)))[0], "removed results=1")
}

// flushInPipeline puts a SCRIPT FLUSH into every long pipeline.
type flushInPipeline struct{ after int }

func (flushInPipeline) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (flushInPipeline) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (h flushInPipeline) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) > 350 {
			cmds = slices.Insert(slices.Clone(cmds), h.after, redis.Cmder(redis.NewStatusCmd(ctx, "script", "flush")))
		}
		return next(ctx, cmds)
	}
}

func TestUnreachableAndBack(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.do("set", key1, "v")
	task := reconciler.TaskSubject(id1)
	r := l.removal(task)
	l.ok(l.redis.Kill(t.Context()))
	if _, err := l.Remove(t.Context(), l.epoch, []reconciler.Removal{r}); !errors.Is(err, reconciler.ErrUnreachable) {
		t.Fatalf("%v, want ErrUnreachable", err)
	}
	if _, err := l.Look(t.Context(), []reconciler.Look{{Subject: task}}); !errors.Is(err, reconciler.ErrUnreachable) {
		t.Fatalf("%v, want ErrUnreachable", err)
	}
	l.ok(l.redis.Start(t.Context()))
	// An empty Redis knows no leader: stale, until somebody claims again.
	l.do("set", key1, "v")
	l.want(l.remove(r)[0], "stale")
	epoch, err := l.ClaimEpoch(t.Context(), l.epoch)
	l.ok(err)
	if epoch <= l.epoch {
		t.Fatalf("epoch %d after %d", epoch, l.epoch)
	}
	l.epoch = epoch
	l.want(l.remove(r)[0], "removed results=1")
}
