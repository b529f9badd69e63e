package celery_test

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// What a removal is based on is good for RowsGood, by the server's clock; without a
// time it is good for ever.
func TestALateRemovalIsRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	task := reconciler.TaskSubject(id1)
	removal := func(looked time.Time) reconciler.RemoveStatus {
		l.do("set", key1, "value")
		found, err := l.Look(t.Context(), []reconciler.Look{{Subject: task}})
		l.ok(err)
		results, err := l.Remove(t.Context(), l.epoch, []reconciler.Removal{{
			Subject: task, Artifacts: found[0].Artifacts, Looked: looked, Record: reconciler.Record{Evidence: reconciler.Deleted},
		}})
		l.ok(err)
		return results[0].Status
	}
	if s := removal(time.Now().Add(-reconciler.RowsGood - time.Second)); s != reconciler.Late {
		t.Error(s)
	}
	if l.client.Exists(t.Context(), key1).Val() != 1 || l.client.Exists(t.Context(), "orphanwatch:record:task:"+id1).Val() != 0 {
		t.Error("a late removal has done something")
	}
	for _, looked := range []time.Time{time.Now(), {}} {
		if s := removal(looked); s != reconciler.Removed {
			t.Error(looked, s)
		}
	}
}

func TestALatePullIsRefused(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	l.run("rpush celery @a @b", "hset unacked tag-c &c", "zadd unacked_index 1 tag-c")
	messages := l.sweep()
	if len(messages) != 3 {
		t.Fatal(messages)
	}
	for _, message := range messages {
		pull := pullOf(message)
		before := l.state()
		for _, looked := range []time.Time{time.Now().Add(-reconciler.RowsGood - time.Second), time.Now()} {
			pull.Looked = looked
			statuses, err := l.Pull(t.Context(), l.epoch, []reconciler.Pull{pull})
			l.ok(err)
			want := reconciler.Removed
			if time.Since(looked) > reconciler.RowsGood {
				want = reconciler.Late
				l.wantState(before...)
			}
			if statuses[0] != want {
				t.Errorf("%s: %v, want %v", message.Place.Kind, statuses, want)
			}
		}
	}
}

// No record says that a row was deleted which was read too long ago: it may be there
// again, and its task would never be revoked when it is deleted for good.
func TestALateRecordIsRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	b := burial(reconciler.Deleted, true)
	b.Looked = time.Now().Add(-reconciler.RowsGood - time.Second)
	before := l.dumps()
	if answer := l.bury(b)[0]; answer.Status != reconciler.Late || answer.Revoke {
		t.Errorf("%+v", answer)
	}
	if !maps.Equal(before, l.dumps()) {
		t.Error("a record was written")
	}
	b.Looked = time.Now()
	if answer := l.bury(b)[0]; answer.Status != reconciler.Removed || !answer.Revoke {
		t.Errorf("%+v", answer)
	}
}

// A copy that was stopped, and goes on, does not take back what was recorded meanwhile:
// neither one that was replaced, nor an operator's command on an old look.
func TestAnOldLookTakesNothingBack(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	task := reconciler.TaskSubject(id1)
	l.do("set", key1, "value")
	l.want(l.remove(l.removal(task))[0], "removed results=1")
	before := l.dumps()
	old, newer := time.Now().Add(-time.Minute), time.Now().Add(time.Second)
	revive := func(epoch uint64, looked time.Time) ([]bool, error) {
		return l.Revive(t.Context(), epoch, []reconciler.Revival{{Subject: task, Looked: looked}, {Subject: reconciler.TaskSubject("unknown"), Looked: looked}})
	}
	if _, err := revive(l.epoch-1, newer); !errors.Is(err, reconciler.ErrStale) {
		t.Error(err)
	}
	late, err := revive(l.epoch, old)
	l.ok(err)
	if !late[0] || late[1] {
		t.Error(late)
	}
	if !maps.Equal(before, l.dumps()) {
		t.Error("it was taken back")
	}
	l.revive(task)
	if l.look(task).Deleted {
		t.Error("a row that exists is thought to be deleted")
	}
	l.do("set", key1, "again")
	l.want(l.remove(l.removal(task))[0], "removed results=1")
	if late, err := revive(l.epoch, old); err != nil || !late[0] || !l.look(task).Deleted {
		t.Error(late, err)
	}
}

// A revoke reaches all workers, and cannot be taken back: a copy that does not lead any
// more publishes none, and none is published on an old look at the rows, or in a pause.
func TestAStaleOrLateRevokeIsRefused(t *testing.T) {
	t.Parallel()
	l := newBrokerLab(t)
	ctx := t.Context()
	worker := l.client.Subscribe(ctx, l.ControlChannel())
	defer worker.Close()
	_, err := worker.Receive(ctx)
	l.ok(err)
	revoke := func(epoch uint64, looked time.Time) error {
		_, _, err := l.Revoke(ctx, epoch, looked, []string{"task"})
		return err
	}
	if err := revoke(l.epoch-1, time.Now()); !errors.Is(err, reconciler.ErrStale) {
		t.Error(err)
	}
	if err := revoke(l.epoch, time.Now().Add(-reconciler.RowsGood-time.Second)); !errors.Is(err, reconciler.ErrLate) {
		t.Error(err)
	}
	if n := len(worker.Channel()); n != 0 {
		t.Errorf("%d were published", n)
	}
	l.ok(l.client.HSet(ctx, "orphanwatch:control", "paused", 1).Err())
	if err := revoke(l.epoch, time.Now()); !errors.Is(err, reconciler.ErrPaused) {
		t.Error(err)
	}
	l.ok(l.client.HDel(ctx, "orphanwatch:control", "paused").Err())
	l.ok(revoke(l.epoch, time.Now()))
	<-worker.Channel()
	select {
	case m := <-worker.Channel():
		t.Errorf("one more was published: %s", m.Payload)
	default:
	}
}
