package celery_test

import (
	"sync"
	"testing"
	"time"
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
	if epoch, err := l.Epoch(ctx); err != nil || epoch != 9_007_199_254_740_995 {
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
			token, err := l.TakeAccept(ctx)
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
	if token, err := l.TakeResync(ctx); err != nil || token != state.Resync {
		t.Errorf("%q, %v", token, err)
	}

	if stored, err := l.RecordIdentity(ctx, "1/db"); err != nil || stored != "1/db" {
		t.Errorf("%q, %v", stored, err)
	}
	if stored, err := l.RecordIdentity(ctx, "2/db"); err != nil || stored != "1/db" {
		t.Errorf("%q, %v", stored, err)
	}
	l.ok(l.SetIdentity(ctx, "2/db"))
	l.ok(l.SaveGuard(ctx, []byte(`{"tripped":true}`)))
	if guard, err := l.LoadGuard(ctx); err != nil || string(guard) != `{"tripped":true}` {
		t.Errorf("%s, %v", guard, err)
	}
	if state, err = l.State(ctx); err != nil || state.Identity != "2/db" || len(state.Guard) == 0 {
		t.Errorf("%+v, %v", state, err)
	}
	l.ok(l.SaveGuard(ctx, nil))
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
