package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var errStore = errors.New("connection lost")

// world is a broker, the records and the rows in memory, as small as they can be to
// do what the real ones do. Any one call may fail, before or after its effect.
type world struct {
	*testing.T
	*Reconciler
	clock   time.Time
	broker  []Message
	records map[Subject]*worldRecord
	results map[Subject]Artifact
	rows    map[RowRef]bool
	running []Transaction
	// position is how far replication has been read.
	position LSN

	revoked           map[string]int
	removed           map[ArtifactKind]int
	revived, released []Subject

	calls []string
	// fails is the index of the call that fails, -1 for none; after: its effect is
	// there all the same.
	fails int
	after bool
	// before is done once, before the next call of that name.
	before map[string]func()
	// says is what Bury ("bury"), Pull ("pull") or Remove ("remove") answer to everything.
	says map[string]RemoveStatus
}

type worldRecord struct {
	evidence                Evidence
	revoked, ended, revived bool
	hold                    time.Time
	table, key              string
	count                   map[ArtifactKind]int
	heard                   *int
}

func newWorld(t *testing.T, bindings ...Binding) *world {
	w := &world{
		T: t, clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), fails: -1, position: 100,
		records: map[Subject]*worldRecord{}, results: map[Subject]Artifact{}, rows: map[RowRef]bool{}, revoked: map[string]int{},
		removed: map[ArtifactKind]int{}, before: map[string]func(){}, says: map[string]RemoveStatus{},
	}
	w.start(bindings...)
	return w
}

// start is a new process.
func (w *world) start(bindings ...Binding) {
	now := func() time.Time { return w.clock }
	r, err := New(Options{
		Bindings: bindings, Policy: policy, Artifacts: w, Rows: worldRows{w}, Messages: w,
		Guard: NewGuard(policy, nil, now), Memory: NewMemory(1000), Log: slog.New(slog.DiscardHandler), Now: now,
	})
	require.NoError(w, err)
	r.firstPass.Store(true)
	w.Reconciler = r
}

// once is one attempt. What it claims to have removed has been.
func (w *world) once(works ...*Work) ([]Verdict, error) {
	w.Helper()
	before := maps.Clone(w.removed)
	verdicts, err := w.Reconcile(w.Context(), Term{Epoch: 1, Position: func() LSN { return w.position }}, works)
	claimed := map[ArtifactKind]int{}
	for _, v := range verdicts {
		for kind, n := range v.Removed {
			claimed[kind] += n
		}
	}
	for kind, n := range claimed {
		require.LessOrEqual(w, n, w.removed[kind]-before[kind], "claims more %s than were removed", kind)
	}
	return verdicts, err
}

// settle makes attempts until nothing comes back, and gives the last verdict of each.
func (w *world) settle(works ...*Work) []Verdict {
	w.Helper()
	last := make([]Verdict, len(works))
	todo := make([]int, len(works))
	for i := range todo {
		todo[i] = i
	}
	for range 30 {
		var batch []*Work
		for _, i := range todo {
			batch = append(batch, works[i])
		}
		verdicts, err := w.once(batch...)
		require.NoError(w, err)
		var again []int
		wait := time.Hour
		for j, i := range todo {
			last[i] = verdicts[j]
			if after, comes := verdicts[j].Again(); comes {
				again, wait = append(again, i), min(wait, after)
			}
		}
		if len(again) == 0 {
			return last
		}
		todo, w.clock = again, w.clock.Add(wait)
	}
	w.Fatalf("does not settle: %+v", last)
	return nil
}

func (w *world) deletion(binding int, key string) Deletion {
	return Deletion{Binding: binding, Key: key, Commit: &Commit{XID: 5, Time: w.clock}}
}

// task is the work of a deleted task's messages, row that of a deleted row's.
func (w *world) task(id string) *Work {
	w.Memory.Add(TaskSubject(id))
	return &Work{Subject: TaskSubject(id).Messages(), Trigger: ByDelete, Deletions: []Deletion{w.deletion(0, id)}}
}

func (w *world) row(binding int, key string) *Work {
	w.Memory.Add(RowSubject(binding, key))
	return &Work{Subject: RowSubject(binding, key).Messages(), Trigger: ByDelete, Deletions: []Deletion{w.deletion(binding, key)}}
}

// put puts messages into the broker: "kind task/tag name refs", where a ref is
// written binding:key.
func (w *world) put(messages ...string) {
	for _, text := range messages {
		words := strings.Fields(text)
		id, tag, _ := strings.Cut(words[1], "/")
		m := Message{ID: id, Name: words[2], Place: Place{Kind: ArtifactKind(words[0]), List: "celery", Tag: id + tag, Envelope: "e"}}
		for _, ref := range words[3:] {
			var r RowRef
			_, err := fmt.Sscanf(strings.Replace(ref, ":", " ", 1), "%d %s", &r.Binding, &r.Key)
			require.NoError(w, err)
			m.Refs = append(m.Refs, r)
		}
		w.broker = append(w.broker, m)
	}
}

// holds are the tags of the messages that are left.
func (w *world) holds() []string {
	tags := []string{}
	for _, m := range w.broker {
		tags = append(tags, m.Place.Tag)
	}
	return tags
}

// popped moves a message from its queue into a worker's hands.
func (w *world) popped(tag string) {
	for i := range w.broker {
		if w.broker[i].Place.Tag == tag {
			w.broker[i].Place.Kind = UnackedMessage
		}
	}
}

// vanishes: a worker has just popped a message, and not noted yet that it holds it.
func (w *world) vanishes(tag string) {
	w.broker = slices.DeleteFunc(w.broker, func(m Message) bool { return m.Place.Tag == tag })
}

// sweeps is how many there were.
func (w *world) sweeps() int { return strings.Count(strings.Join(w.calls, " "), "sweep") }

// call does a call of a store, unless it is the one that fails.
func (w *world) call(name string, effect func()) error {
	if f := w.before[name]; f != nil {
		delete(w.before, name)
		f()
	}
	failing := len(w.calls) == w.fails
	w.calls = append(w.calls, name)
	if !failing || w.after {
		effect()
	}
	if failing {
		return errStore
	}
	return nil
}

func (w *world) Look(_ context.Context, ls []Look) (found []Found, err error) {
	return found, w.call("artifacts", func() {
		found = make([]Found, len(ls))
		for i, l := range ls {
			if a, ok := w.results[l.Subject]; ok {
				found[i].Artifacts = []Artifact{a}
			}
			if r := w.records[l.Subject]; r != nil {
				found[i].Deleted, found[i].Revoked, found[i].Ended = r.evidence == Deleted && !r.revived, r.revoked, r.ended
				found[i].Taken = r.count[QueuedMessage] > 0 && !r.revived
				found[i].HoldUntil, found[i].Table, found[i].Key = r.hold, r.table, r.key
			}
		}
	})
}

func (w *world) Remove(_ context.Context, epoch uint64, removals []Removal) (out []RemoveResult, err error) {
	return out, w.call("remove", func() {
		require.EqualValues(w, 1, epoch)
		for _, m := range removals {
			answer := RemoveResult{Status: Removed, Count: map[ArtifactKind]int{}}
			if s := w.says["remove"]; s != "" {
				answer.Status = s
			} else if a, ok := w.results[m.Subject]; ok {
				require.Equal(w, []Artifact{a}, m.Artifacts)
				delete(w.results, m.Subject)
				w.removed[a.Kind]++
				answer.Count[a.Kind]++
			}
			out = append(out, answer)
		}
	})
}

func (w *world) Bury(_ context.Context, epoch uint64, bs []Burial) (out []Buried, err error) {
	name := "bury"
	switch {
	case bs[0].Count != nil:
		name = "count"
	case bs[0].Heard != nil:
		name = "heard"
	}
	return out, w.call(name, func() {
		if name == "bury" {
			require.EqualValues(w, 1, epoch)
		}
		for _, b := range bs {
			require.Equal(w, Task, b.Task.Kind)
			if s := w.says["bury"]; s != "" && name == "bury" {
				out = append(out, Buried{Status: s})
				continue
			}
			out = append(out, w.bury(b))
		}
	})
}

func (w *world) bury(b Burial) Buried {
	r := w.records[b.Task]
	if r == nil {
		r = &worldRecord{evidence: b.Record.Evidence, ended: b.Record.Ended, table: b.Record.Table, key: b.Record.Key, count: map[ArtifactKind]int{}}
	}
	if r.hold.After(w.clock) && b.Count == nil && b.Heard == nil {
		return Buried{Status: Held}
	}
	if b.Heard != nil {
		r.heard = b.Heard
	}
	w.records[b.Task] = r
	for kind, n := range b.Count {
		r.count[kind] += n
	}
	if b.Count != nil {
		return Buried{Status: Removed}
	}
	r.revived = false
	if r.evidence == "" || b.Record.Evidence == Deleted {
		r.evidence = b.Record.Evidence
	}
	grant := b.Revoke && !r.revoked
	r.revoked = r.revoked || grant
	return Buried{Status: Removed, Revoke: grant}
}

func (w *world) Revive(_ context.Context, epoch uint64, revivals []Revival) (late []bool, err error) {
	late = make([]bool, len(revivals))
	err = w.call("revive", func() {
		require.EqualValues(w, 1, epoch)
		if w.says["revive"] == Late {
			late[0] = true
			return
		}
		for _, v := range revivals {
			require.NotZero(w, v.Looked)
			w.revived = append(w.revived, v.Subject)
			if r := w.records[v.Subject]; r != nil {
				r.revived, r.hold = true, time.Time{}
			}
		}
	})
	return late, err
}

func (w *world) Sweep(_ context.Context, yield func([]Message) error) error {
	var err error
	return firstOf(w.call("sweep", func() { err = yield(slices.Clone(w.broker)) }), &err)
}

func firstOf(err error, other *error) error {
	if err != nil {
		return err
	}
	return *other
}

func (w *world) Pull(_ context.Context, epoch uint64, pulls []Pull) (out []RemoveStatus, err error) {
	return out, w.call("pull", func() {
		require.EqualValues(w, 1, epoch)
		for _, p := range pulls {
			require.NotNil(w, w.records[p.Subject], "the record comes first")
			if s := w.says["pull"]; s != "" {
				out = append(out, s)
				continue
			}
			at := slices.IndexFunc(w.broker, func(m Message) bool {
				return m.Place.Tag == p.Message.Place.Tag && m.Place.Kind == p.Message.Place.Kind
			})
			if at < 0 {
				out = append(out, Changed)
				continue
			}
			w.removed[w.broker[at].Place.Kind]++
			w.broker = slices.Delete(w.broker, at, at+1)
			out = append(out, Removed)
		}
	})
}

func (w *world) Revoke(_ context.Context, _ uint64, _ time.Time, ids []string) (int, int, error) {
	if slices.Contains(ids, "") { // the real one refuses it, too
		return 0, 0, errors.New("an id is empty")
	}
	if w.says["revoke"] == Paused {
		return 0, 0, ErrPaused
	}
	return 1, 1, w.call("revoke", func() {
		for _, id := range ids {
			w.revoked[id]++
		}
	})
}

func (w *world) Release(_ context.Context, epoch uint64, revivals []Revival) (late []bool, err error) {
	return make([]bool, len(revivals)), w.call("release", func() {
		require.EqualValues(w, 1, epoch)
		for _, v := range revivals {
			w.released = append(w.released, v.Subject)
		}
	})
}

// worldRows are keys of any text.
type worldRows struct{ *world }

func (w worldRows) Look(_ context.Context, ls []Look) (answer RowLook, err error) {
	return answer, w.call("rows", func() {
		answer = RowLook{Snapshot: Snapshot{Xmin: 100, Xmax: 100, At: w.clock}, States: make([]RowState, len(ls))}
		for i, l := range ls {
			s := &answer.States[i]
			for b, binding := range w.Bindings {
				if l.Subject.Kind == Task && binding.CeleryID || l.Subject.Kind == Row && l.Subject.Binding == b {
					s.Candidates, s.Keyed = s.Candidates.With(b), s.Keyed.With(b)
					s.Exists = s.Exists || w.rows[RowRef{b, l.Subject.ID}] || l.Spelling != "" && w.rows[RowRef{b, l.Spelling}]
				}
			}
			for _, ref := range l.Refs {
				s.Candidates, s.Keyed, s.Argued = s.Candidates.With(ref.Binding), s.Keyed.With(ref.Binding), s.Argued.With(ref.Binding)
				s.Exists = s.Exists || w.rows[ref]
			}
		}
	})
}

func (w worldRows) Running(context.Context) (r Running, err error) {
	return r, w.call("running", func() { r = Running{Asked: w.clock, At: w.position, Virtual: w.running} })
}

func (w worldRows) EmptyTables(context.Context) (BindingSet, error) {
	return 0, w.call("empty", func() {})
}
func (w worldRows) Reset() {}
