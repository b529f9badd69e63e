package celery_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// model is what one task's result must be after any sequence of steps.
type model struct {
	live, undo     string // values, "" for none
	liveTTL        bool
	undoTTL        bool
	held, recorded bool
	deleted        bool
	removed        int
}

// TestModel drives Look, Remove, Restore and writers in random order against the
// model: a changed value is never removed, the first removed value comes back, a
// newer one is never overwritten.
func TestModel(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		ctx := context.Background()
		fatal := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		const n = 2
		var models [n]model
		var looked [n][]reconciler.Artifact
		var lookedAt [n]string
		id := func(i int) string { return fmt.Sprintf("run%d-%d", run, i) }
		key := func(i int) string { return l.Keys.ResultKey(id(i)) }
		writes := 0
		pick := rapid.IntRange(0, n-1)
		paused := false
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				i := pick.Draw(rt, "task")
				writes++
				models[i].live, models[i].liveTTL = fmt.Sprint("v", writes%3), rapid.Bool().Draw(rt, "ttl")
				ttl := time.Duration(0)
				if models[i].liveTTL {
					ttl = 20 * time.Hour
				}
				fatal(l.client.Set(ctx, key(i), models[i].live, ttl).Err())
			},
			"delete": func(rt *rapid.T) {
				i := pick.Draw(rt, "task")
				models[i].live = ""
				fatal(l.client.Del(ctx, key(i)).Err())
			},
			"look": func(rt *rapid.T) {
				i := pick.Draw(rt, "task")
				found, err := l.Look(ctx, []reconciler.Look{{Subject: reconciler.TaskSubject(id(i))}})
				fatal(err)
				looked[i], lookedAt[i] = found[0].Artifacts, models[i].live
				if found[0].Deleted != models[i].deleted || found[0].HoldUntil.IsZero() == models[i].held || len(looked[i]) == 1 != (models[i].live != "") {
					rt.Fatalf("look %+v, model %+v", found[0], models[i])
				}
			},
			"remove": func(rt *rapid.T) {
				i := pick.Draw(rt, "task")
				m := &models[i]
				epoch := l.epoch - uint64(rapid.IntRange(0, 1).Draw(rt, "stale"))
				evidence := rapid.SampledFrom([]reconciler.Evidence{reconciler.Absent, reconciler.Deleted}).Draw(rt, "evidence")
				results, err := l.Remove(ctx, epoch, []reconciler.Removal{{Subject: reconciler.TaskSubject(id(i)), Artifacts: looked[i], Record: reconciler.Record{Evidence: evidence}}})
				fatal(err)
				want, count := reconciler.Removed, 0
				switch {
				case epoch != l.epoch:
					want = reconciler.Stale
				case paused:
					want = reconciler.Paused
				case m.held:
					want = reconciler.Held
				case len(looked[i]) == 0 || m.live == "":
				case m.live != lookedAt[i]:
					want = reconciler.Changed
				default:
					count = 1
					if m.undo == "" {
						m.undo, m.undoTTL = m.live, m.liveTTL
					}
					m.live, m.recorded = "", true
					m.deleted = m.deleted || evidence == reconciler.Deleted
					m.removed++
				}
				if results[0].Status != want || results[0].Count[reconciler.ResultKey] != count {
					rt.Fatalf("%+v, want %s of %d, model %+v", results[0], want, count, *m)
				}
			},
			"restore": func(rt *rapid.T) {
				i := pick.Draw(rt, "task")
				m := &models[i]
				restored, err := l.Restore(ctx, []string{id(i)}, time.Hour)
				fatal(err)
				if len(restored) == 1 != m.recorded {
					rt.Fatalf("%+v, model %+v", restored, *m)
				}
				if m.undo == "" {
					if len(restored) == 1 && len(restored[0].Keys) > 0 {
						rt.Fatalf("%+v, model %+v", restored, *m)
					}
					return
				}
				want := "restored"
				if m.live != "" {
					want = "exists"
				} else {
					m.live, m.liveTTL, m.undo = m.undo, m.undoTTL, ""
				}
				if m.held = true; len(restored[0].Keys) != 1 || restored[0].Keys[0].Status != want {
					rt.Fatalf("%+v, want %s", restored, want)
				}
			},
			"hold ends": func(rt *rapid.T) {
				i := pick.Draw(rt, "task")
				if models[i].held {
					models[i].held = false
					fatal(l.client.HDel(ctx, "orphanwatch:record:task:"+id(i), "hold_until").Err())
				}
			},
			"pause": func(rt *rapid.T) {
				if paused = !paused; paused {
					fatal(l.Pause(ctx, "test"))
				} else {
					fatal(l.Resume(ctx))
				}
			},
			"": func(rt *rapid.T) {
				for i, m := range models {
					for k, want := range map[string]struct {
						value string
						ttl   bool
					}{key(i): {m.live, m.liveTTL}, "orphanwatch:undo:" + key(i): {m.undo, true}} {
						value, _ := l.client.Get(ctx, k).Result()
						ttl, err := l.client.TTL(ctx, k).Result()
						fatal(err)
						if value != want.value || value != "" && ttl > 0 != want.ttl {
							rt.Fatalf("%s is %q (%v), model %+v", k, value, ttl, m)
						}
					}
					entries, err := l.History(ctx, id(i))
					fatal(err)
					if len(entries) == 1 != m.recorded || m.recorded && entries[0].Count[reconciler.ResultKey] != m.removed {
						rt.Fatalf("history %+v, model %+v", entries, m)
					}
				}
			},
		})
		if paused {
			fatal(l.Resume(ctx))
		}
	})
}
