package celery_test

import (
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func TestControl(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()

	for _, tt := range []struct{ atLeast, want uint64 }{{0, 2}, {1, 3}, {100, 101}, {99, 102}, {9_007_199_254_740_993, 9_007_199_254_740_994}, {0, 9_007_199_254_740_995}} {
		if got, err := l.ClaimEpoch(ctx, tt.atLeast); err != nil || got != tt.want {
			t.Errorf("claim %d: %d, %v, want %d", tt.atLeast, got, err, tt.want)
		}
	}
	const newest = 9_007_199_254_740_995
	if epoch, err := l.Epoch(ctx); err != nil || epoch != newest {
		t.Errorf("epoch %d, %v", epoch, err)
	}

	l.ok(l.Pause(ctx, "anna"))
	l.ok(l.Pause(ctx, "bert"))
	state, err := l.State(ctx)
	l.ok(err)
	if !state.Paused || state.PausedBy != "anna" || time.Since(state.PausedSince) > time.Minute {
		t.Errorf("%+v", state)
	}
	l.ok(l.Resume(ctx))
	l.ok(l.AcceptAbsent(ctx))
	state, err = l.State(ctx)
	l.ok(err)
	if state.Paused || state.PausedBy != "" || state.Accept == "" || state.Resync == "" {
		t.Errorf("%+v", state)
	}
	var wg sync.WaitGroup
	taken := make(chan string, 8)
	for range 8 {
		wg.Go(func() {
			token, err := l.TakeAccept(ctx, newest)
			if err != nil {
				t.Error(err)
			}
			if token != "" {
				taken <- token
			}
		})
	}
	wg.Wait()
	if len(taken) != 1 || <-taken != state.Accept {
		t.Errorf("the token was taken %d times", len(taken))
	}
	if token, err := l.TakeResync(ctx, newest); err != nil || token != state.Resync {
		t.Errorf("%q, %v", token, err)
	}

	if stored, err := l.RecordIdentity(ctx, "1/db"); err != nil || stored != "1/db" {
		t.Errorf("%q, %v", stored, err)
	}
	if stored, err := l.RecordIdentity(ctx, "2/db"); err != nil || stored != "1/db" {
		t.Errorf("%q, %v", stored, err)
	}
	l.ok(l.SetIdentity(ctx, newest, "2/db"))
	l.ok(l.SaveGuard(ctx, newest, []byte(`{"tripped":true}`)))
	if guard, err := l.LoadGuard(ctx); err != nil || string(guard) != `{"tripped":true}` {
		t.Errorf("%s, %v", guard, err)
	}
	if state, err = l.State(ctx); err != nil || state.Identity != "2/db" || len(state.Guard) == 0 {
		t.Errorf("%+v, %v", state, err)
	}
	l.ok(l.SaveGuard(ctx, newest, nil))
	if guard, err := l.LoadGuard(ctx); err != nil || guard != nil {
		t.Errorf("%s, %v", guard, err)
	}

	l.ok(l.PublishStatus(ctx, "a:1", []byte("{}"), time.Minute))
	l.ok(l.PublishStatus(ctx, "b:2", []byte("[]"), time.Minute))
	l.do("del", "orphanwatch:status:b:2")
	if all, err := l.ReadStatus(ctx); err != nil || len(all) != 1 || string(all["a:1"]) != "{}" {
		t.Errorf("%q, %v", all, err)
	}
}

// A leader that was stopped between reading the orders and taking them, and was replaced
// meanwhile: the orders and the guard are its successor's.
func TestAReplacedLeaderWritesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	epoch, err := l.ClaimEpoch(ctx, 0)
	l.ok(err)
	l.ok(l.AcceptAbsent(ctx))
	l.ok(l.AskResync(ctx))
	l.ok(l.SaveGuard(ctx, epoch, []byte(`{"reason":"it is empty"}`)))
	l.ok(l.SetIdentity(ctx, epoch, "1/db"))
	before := l.dumps()
	for name, write := range map[string]func(epoch uint64) error{
		"accept":       func(epoch uint64) error { _, err := l.TakeAccept(ctx, epoch); return err },
		"resync":       func(epoch uint64) error { _, err := l.TakeResync(ctx, epoch); return err },
		"guard":        func(epoch uint64) error { return l.SaveGuard(ctx, epoch, []byte("{}")) },
		"guard, armed": func(epoch uint64) error { return l.SaveGuard(ctx, epoch, nil) },
		"identity":     func(epoch uint64) error { return l.SetIdentity(ctx, epoch, "2/db") },
	} {
		if err := write(epoch - 1); !errors.Is(err, reconciler.ErrStale) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !maps.Equal(before, l.dumps()) {
		t.Error("it was changed")
	}
}
