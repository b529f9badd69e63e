package celery_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

const record1 = "orphanwatch:record:task:" + id1

func burial(e reconciler.Evidence, revoke bool) reconciler.Burial {
	return reconciler.Burial{
		Task: reconciler.TaskSubject(id1), Revoke: revoke,
		Record: reconciler.Record{Evidence: e, Trigger: reconciler.ByDelete, Table: "public.logs", Key: "7"},
	}
}

func (l *lab) bury(burials ...reconciler.Burial) []reconciler.Buried {
	l.Helper()
	answers, err := l.Bury(l.Context(), l.epoch, burials)
	l.ok(err)
	return answers
}

// runs runs commands, word by word.
func (l *lab) runs(commands ...string) {
	l.Helper()
	for _, c := range commands {
		var args []any
		for _, word := range strings.Fields(c) {
			args = append(args, word)
		}
		l.do(args...)
	}
}

// record is the record of id1, each field as name=value, a time as name=t.
func (l *lab) record() []string {
	l.Helper()
	fields, err := l.client.HGetAll(l.Context(), record1).Result()
	l.ok(err)
	out := []string{}
	for name, value := range fields {
		if strings.HasSuffix(name, "_at") || name == "hold_until" {
			value = "t"
		}
		out = append(out, name+"="+value)
	}
	slices.Sort(out)
	return out
}

func TestBuryTable(t *testing.T) {
	t.Parallel()
	const absent, deleted = reconciler.Absent, reconciler.Deleted
	fresh := []string{"evidence=deleted", "key=7", "removed_at=t", "table=public.logs", "trigger=pg_delete"}
	known := "hset " + record1 + " evidence absent removed_at 5 trigger resync"
	for _, tt := range []struct {
		name   string
		before []string
		in     reconciler.Burial
		want   string
		record []string
	}{
		{"first", nil, burial(deleted, false), "removed", fresh},
		{"first, revoke", nil, burial(deleted, true), "removed revoke", slices.Insert(slices.Clone(fresh), 3, "revoked_at=t")},
		{"first, absent", nil, burial(absent, false), "removed", append([]string{"evidence=absent"}, fresh[1:]...)},
		{"second", []string{known}, burial(absent, false), "removed", []string{"again_at=t", "evidence=absent", "removed_at=t", "trigger=resync"}},
		{"second, now deleted", []string{known}, burial(deleted, false), "removed", []string{"again_at=t", "evidence=deleted", "removed_at=t", "trigger=resync"}},
		{"second, was deleted", []string{known, "hset " + record1 + " evidence deleted"}, burial(absent, false), "removed", []string{"again_at=t", "evidence=deleted", "removed_at=t", "trigger=resync"}},
		{"second, revoke", []string{known}, burial(absent, true), "removed revoke", []string{"again_at=t", "evidence=absent", "removed_at=t", "revoked_at=t", "trigger=resync"}},
		{"revoked before", []string{known, "hset " + record1 + " revoked_at 5"}, burial(deleted, true), "removed", []string{"again_at=t", "evidence=deleted", "removed_at=t", "revoked_at=t", "trigger=resync"}},
		{"revived", []string{known, "hset " + record1 + " revived_at 5"}, burial(deleted, false), "removed", []string{"again_at=t", "evidence=deleted", "removed_at=t", "trigger=resync"}},
		{"only revoked or held", []string{"hset " + record1 + " hold_until 5"}, burial(deleted, false), "removed", []string{"evidence=deleted", "hold_until=t", "key=7", "removed_at=t", "table=public.logs", "trigger=pg_delete"}},
		{"stale", []string{"hincrby orphanwatch:control epoch 1"}, burial(deleted, true), "stale", nil},
		{"no control", []string{"del orphanwatch:control"}, burial(deleted, true), "stale", nil},
		{"paused", []string{"hset orphanwatch:control paused 1"}, burial(deleted, true), "paused", nil},
		{"held", []string{"hset " + record1 + " hold_until 99999999999999"}, burial(deleted, true), "held", []string{"hold_until=t"}},
		{"hold over", []string{known, "hset " + record1 + " hold_until 1"}, burial(absent, false), "removed", []string{"again_at=t", "evidence=absent", "hold_until=t", "removed_at=t", "trigger=resync"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.runs(tt.before...)
			got := l.bury(tt.in)[0]
			text := string(got.Status)
			if got.Revoke {
				text += " revoke"
			}
			if text != tt.want {
				t.Errorf("%s, want %s", text, tt.want)
			}
			if got := l.record(); !slices.Equal(got, tt.record) && len(got)+len(tt.record) > 0 {
				t.Errorf("record %q, want %q", got, tt.record)
			}
			wrote := strings.HasPrefix(tt.want, "removed")
			if listed := l.do("zscore", "orphanwatch:records", "task:"+id1) != nil; listed != wrote {
				t.Errorf("in the set of records: %v", listed)
			}
			if ttl := l.do("ttl", record1).(int64); wrote && (ttl < 86300 || ttl > 86400) {
				t.Errorf("the record lasts %d s", ttl)
			}
		})
	}
}

// TestBuryGrantsOneRevoke: to whoever asks first, over all batches and leaders.
func TestBuryGrantsOneRevoke(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	granted := 0
	for _, answer := range append(l.bury(burial(reconciler.Absent, true), burial(reconciler.Deleted, true)), l.bury(burial(reconciler.Deleted, true))...) {
		if answer.Revoke {
			granted++
		}
	}
	epoch, err := l.ClaimEpoch(t.Context(), 0)
	l.ok(err)
	l.epoch = epoch
	if l.bury(burial(reconciler.Deleted, true))[0].Revoke {
		granted++
	}
	if granted != 1 {
		t.Errorf("granted %d times", granted)
	}
}

// A right to revoke that was not used ends with the row's return, so that its next
// deletion has one; what was published is published once (R9).
func TestAnUnusedRightToRevokeEnds(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	b := burial(reconciler.Deleted, true)
	granted := func() bool { return l.bury(b)[0].Revoke }
	if !granted() || granted() {
		t.Error("not granted once")
	}
	l.revive(b.Task)
	if !granted() {
		t.Error("the right that was never used is still taken")
	}
	l.bury(reconciler.Burial{Task: b.Task, Heard: new(int)})
	l.revive(b.Task)
	if granted() {
		t.Error("it is revoked twice")
	}
}

// TestBuryCounts: what has been removed is noted, whoever leads by then.
func TestBuryCounts(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.bury(burial(reconciler.Deleted, false))
	count := burial(reconciler.Absent, true)
	count.Count = map[reconciler.ArtifactKind]int{reconciler.QueuedMessage: 2, reconciler.UnackedMessage: 1}
	l.bury(count)
	l.runs("hset orphanwatch:control paused 1", "hincrby orphanwatch:control epoch 1", "hset "+record1+" hold_until 99999999999999")
	if got := l.bury(count)[0]; got.Status != reconciler.Removed || got.Revoke {
		t.Errorf("%+v", got)
	}
	want := []string{"evidence=deleted", "hold_until=t", "key=7", "messages=4", "removed_at=t", "table=public.logs", "trigger=pg_delete", "unacked=2"}
	if got := l.record(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	entries, err := l.History(t.Context(), id1)
	l.ok(err)
	if len(entries) != 1 || entries[0].Count[reconciler.QueuedMessage] != 4 || entries[0].Count[reconciler.UnackedMessage] != 2 {
		t.Errorf("%+v", entries)
	}
	// A record that has ended meanwhile is no reason for one that never does.
	l.do("del", record1)
	l.bury(count)
	if ttl := l.do("pttl", record1).(int64); ttl <= 0 {
		t.Errorf("lasts %d ms", ttl)
	}
}

// TestBuryLasts: for an hour at least, whatever the configuration; and it never
// shortens what a hold has made longer.
func TestBuryLasts(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(o *celery.Options) { o.Quarantine, o.Remember = 0, 0 })
	l.bury(burial(reconciler.Deleted, false))
	if ttl := l.do("ttl", record1).(int64); ttl < 3500 || ttl > 3600 {
		t.Errorf("%d s, want an hour", ttl)
	}
	l.do("expire", record1, 90_000)
	l.bury(burial(reconciler.Deleted, false))
	if ttl := l.do("ttl", record1).(int64); ttl < 89_000 {
		t.Errorf("shortened to %d s", ttl)
	}
}

// TestBuryMany: more than one pipeline holds, in order; the set is trimmed.
func TestBuryMany(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.do("zadd", "orphanwatch:records", 1, "task:long ago")
	var burials []reconciler.Burial
	for i := range 1203 {
		b := burial(reconciler.Deleted, i%3 == 0)
		b.Task = reconciler.TaskSubject(fmt.Sprint("t", i))
		burials = append(burials, b)
	}
	answers := l.bury(burials...)
	if len(answers) != len(burials) {
		t.Fatalf("%d answers", len(answers))
	}
	for i, a := range answers {
		if a.Status != reconciler.Removed || a.Revoke != (i%3 == 0) {
			t.Fatalf("%d: %+v", i, a)
		}
	}
	if n := l.do("zcard", "orphanwatch:records").(int64); n != 1203 {
		t.Errorf("%d records in the set, want it trimmed to 1203", n)
	}
}

// TestLookReadsRecords: all that a record says, whatever its texts are.
func TestLookReadsRecords(t *testing.T) {
	t.Parallel()
	odd := "a\nb\n\n\xff'\" %s"
	for _, tt := range []struct {
		name   string
		fields []any
		want   reconciler.Found
	}{
		{"deleted", []any{"evidence", "deleted"}, reconciler.Found{Deleted: true}},
		{"absent", []any{"evidence", "absent"}, reconciler.Found{}},
		{"revived", []any{"evidence", "deleted", "revived_at", 5}, reconciler.Found{}},
		{"revived, still revoked and ended", []any{"evidence", "deleted", "revived_at", 5, "revoked_at", 5, "ended", 1}, reconciler.Found{Revoked: true, Ended: true}},
		{"held", []any{"evidence", "absent", "hold_until", 5000}, reconciler.Found{HoldUntil: time.UnixMilli(5000).UTC()}},
		{"revoked", []any{"evidence", "deleted", "revoked_at", 5}, reconciler.Found{Deleted: true, Revoked: true}},
		{"ended", []any{"evidence", "deleted", "ended", 1}, reconciler.Found{Deleted: true, Ended: true}},
		{"a row", []any{"evidence", "deleted", "table", "public.logs", "key", "7"}, reconciler.Found{Deleted: true, Table: "public.logs", Key: "7"}},
		{"a row of its own id", []any{"evidence", "deleted", "table", "public.logs"}, reconciler.Found{Deleted: true, Table: "public.logs"}},
		{"an odd key", []any{"evidence", "deleted", "table", "public.logs", "key", odd}, reconciler.Found{Deleted: true, Table: "public.logs", Key: odd}},
		{"an odd key, held", []any{"evidence", "absent", "table", "public.logs", "key", "\n\n\n\n\n\n", "hold_until", 5000}, reconciler.Found{Table: "public.logs", Key: "\n\n\n\n\n\n", HoldUntil: time.UnixMilli(5000).UTC()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.do(append([]any{"hset", record1}, tt.fields...)...)
			if got := l.look(reconciler.TaskSubject(id1)); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", tt.want) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
	t.Run("as they are written", func(t *testing.T) {
		t.Parallel()
		l := newLab(t)
		b := burial(reconciler.Deleted, true)
		b.Record.Key, b.Record.Ended = odd, true
		l.bury(b)
		want := reconciler.Found{Deleted: true, Revoked: true, Ended: true, Table: "public.logs", Key: odd}
		if got := l.look(b.Task); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// TestRemoveRemembersTheEnd: the record of a result of a task that had ended says so,
// so that what is left of it is not revoked.
func TestRemoveRemembersTheEnd(t *testing.T) {
	t.Parallel()
	for _, ended := range []bool{true, false} {
		l := newLab(t)
		l.do("set", key1, `{"status": "SUCCESS", "result": null}`)
		r := l.removal(reconciler.TaskSubject(id1))
		if !r.Artifacts[0].Ended {
			t.Fatalf("%+v", r.Artifacts[0])
		}
		r.Record.Ended = ended
		l.want(l.remove(r)[0], "removed results=1")
		if got := l.look(r.Subject); got.Ended != ended {
			t.Errorf("ended: %v, want %v", got.Ended, ended)
		}
	}
	// A record that is there already: of a task of which only messages were removed.
	l := newLab(t)
	l.bury(burial(reconciler.Deleted, false))
	l.do("set", key1, `{"status": "SUCCESS", "result": null}`)
	r := l.removal(reconciler.TaskSubject(id1))
	r.Record.Ended = true
	l.want(l.remove(r)[0], "removed results=1")
	if !l.look(r.Subject).Ended {
		t.Error("a later result of a task that has ended is not remembered as such")
	}
}

// TestRestoreWithMessages: the record is held wherever the broker has restored
// messages, also where there is no other thing to restore, and tells of the revoke.
func TestRestoreWithMessages(t *testing.T) {
	t.Parallel()
	b := newBrokerLab(t)
	o := celery.Options{Client: b.client, Bindings: []reconciler.Binding{scans}, Quarantine: time.Hour, Remember: 24 * time.Hour, Broker: b.Broker}
	l := &lab{TB: t, redis: b.redis, Store: celery.New(o), client: b.client, epoch: b.epoch}
	b.run("rpush celery @"+id1, "rpush celery @"+id2)
	message := b.sweep()[id1]
	l.bury(burial(reconciler.Deleted, true))
	if got := b.pull(message); !slices.Equal(got, []reconciler.RemoveStatus{reconciler.Removed}) {
		t.Fatal(got)
	}
	restored, err := l.Restore(t.Context(), []string{id1, id2}, time.Minute)
	l.ok(err)
	if len(restored) != 1 {
		t.Fatalf("%+v", restored)
	}
	r := restored[0]
	if len(r.Keys) != 1 || r.Keys[0].Status != "restored" || r.Keys[0].Key != "celery" || r.Keys[0].Tag != "tag-"+id1 {
		t.Errorf("%+v", r.Keys)
	}
	if left := time.Until(r.HoldUntil); left < 50*time.Second || left > 61*time.Second {
		t.Errorf("held for %v", left)
	}
	if since := time.Since(r.RevokedAt); since < 0 || since > time.Minute {
		t.Errorf("revoked %v ago", since)
	}
	if l.look(reconciler.TaskSubject(id1)).HoldUntil.IsZero() {
		t.Error("the record is not held")
	}
	if got := l.bury(burial(reconciler.Deleted, false))[0]; got.Status != reconciler.Held {
		t.Errorf("%+v", got)
	}
	if got := len(b.sweep()); got != 2 {
		t.Errorf("%d messages", got)
	}
	again, err := l.Restore(t.Context(), []string{id1}, time.Hour)
	l.ok(err)
	if len(again) != 1 || len(again[0].Keys) != 0 || time.Until(again[0].HoldUntil) > 2*time.Minute {
		t.Errorf("a second time: %+v", again)
	}
	// A record without anything to restore is not held.
	l.do("del", record1)
	l.bury(burial(reconciler.Deleted, false))
	restored, err = l.Restore(t.Context(), []string{id1}, time.Minute)
	l.ok(err)
	for _, r := range restored {
		if len(r.Keys) > 0 {
			t.Errorf("%+v", r)
		}
	}
}

// A record tells that a message was taken out of a queue, until its row lives again.
func TestARecordTellsWhatWasTaken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	task := reconciler.TaskSubject(id1)
	bury := func(b reconciler.Burial) reconciler.Buried {
		b.Task = task
		b.Record = reconciler.Record{Evidence: reconciler.Deleted, Table: "public.scan_tasks", Key: "a\nb"}
		return l.bury(b)[0]
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
	l.revive(task)
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
