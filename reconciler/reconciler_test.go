package reconciler

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// failing are both stores, with any one call failing. What the stores do is tested
// on real servers; this is about what is claimed when they fail half-way.
type failing struct {
	fail    string
	removed int
}

var errStore = errors.New("connection lost")

func (f *failing) err(call string) error {
	if f.fail == call {
		return errStore
	}
	return nil
}

func (f *failing) Look(_ context.Context, ls []Look) ([]Found, error) {
	out := make([]Found, len(ls))
	for i := range out {
		out[i].Artifacts = []Artifact{result}
	}
	return out, f.err("artifacts")
}

func (f *failing) Remove(_ context.Context, _ uint64, rs []Removal) ([]RemoveResult, error) {
	if err := f.err("remove"); err != nil {
		return nil, err
	}
	f.removed += len(rs)
	out := make([]RemoveResult, len(rs))
	for i := range out {
		out[i] = RemoveResult{Status: Removed, Count: map[ArtifactKind]int{ResultKey: 1}}
		if f.fail == "stale" {
			out[i] = RemoveResult{Status: Stale}
		}
	}
	return out, nil
}

func (f *failing) Bury(_ context.Context, _ uint64, bs []Burial) ([]Buried, error) {
	out := make([]Buried, len(bs))
	for i, b := range bs {
		out[i] = Buried{Status: Removed, Revoke: b.Revoke}
	}
	return out, f.err("bury")
}

func (f *failing) Revive(context.Context, []Subject) error { return f.err("revive") }

type failingRows struct{ *failing }

func (f failingRows) Look(_ context.Context, ls []Look) (RowLook, error) {
	states := make([]RowState, len(ls))
	for i := range states {
		states[i] = RowState{Candidates: 1, Keyed: 1}
	}
	return RowLook{Snapshot: Snapshot{Xmin: 100, Xmax: 100, At: time.Now()}, States: states}, f.err("rows")
}

func (f failingRows) Running(context.Context) (Running, error) { return Running{}, f.err("running") }

func (f failingRows) EmptyTables(context.Context) (BindingSet, error) {
	return 0, f.err("empty")
}
func (f failingRows) Reset() {}

// Whatever fails, what was not removed is not said to be: it comes back.
func TestNothingIsClaimedThatWasNotDone(t *testing.T) {
	for _, fail := range []string{"", "artifacts", "rows", "running", "empty", "remove", "stale", "revive"} {
		t.Run("fails: "+fail, func(t *testing.T) {
			f := &failing{fail: fail}
			r, err := New(Options{
				Bindings: []Binding{scans}, Policy: policy, Artifacts: f, Rows: failingRows{f},
				Guard: NewGuard(policy, nil, time.Now), Memory: NewMemory(100), Log: slog.New(slog.DiscardHandler),
			})
			require.NoError(t, err)
			r.firstPass.Store(true)
			strong := &Work{Subject: TaskSubject("a"), Trigger: ByDelete, Deletions: []Deletion{{Key: "a", Commit: &Commit{XID: 5, Time: time.Now()}}}}
			weak := &Work{Subject: TaskSubject("b"), Trigger: ByEvent}
			verdicts, err := r.Reconcile(t.Context(), Term{Position: func() LSN { return 0 }}, []*Work{strong, weak})
			require.Equal(t, fail == "stale", errors.Is(err, ErrStale))
			if fail == "stale" {
				require.NotEqual(t, OutcomeRemoved, verdicts[0].Outcome)
				return
			}
			_, again := verdicts[0].Again()
			require.Equal(t, f.removed == 0, again, "%+v", verdicts[0])
			_, again = verdicts[1].Again()
			require.True(t, again, "%+v", verdicts[1])
		})
	}
}
