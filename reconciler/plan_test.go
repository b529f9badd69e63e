package reconciler

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var (
	scans   = Binding{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true}
	named   = Binding{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true, Names: []string{"scan"}}
	column  = Binding{Schema: "public", Table: "builds", Key: "id", Columns: []string{"task_id"}}
	colName = Binding{Schema: "public", Table: "builds", Key: "id", Columns: []string{"task_id"}, Names: []string{"build"}}
	policy  = Policy{Remove: RemoveAll, Grace: 5 * time.Second, InflightLimit: 10 * time.Minute, MaxAbsentRatio: 0.5, MinSample: 50}
	result  = Artifact{Kind: ResultKey, Key: "celery-task-meta-1", Stamp: Stamp{Len: 2, Head: "{}"}}
)

func resultOf(name string) Artifact {
	a := result
	a.Name = name
	return a
}

// orphan is a result without a row that everything lets go.
func orphan(change ...func(*Situation)) Situation {
	s := Situation{
		Bindings: []Binding{scans}, Policy: policy, Subject: TaskSubject("1"),
		Row:   RowState{Candidates: 1, Keyed: 1},
		Found: Found{Artifacts: []Artifact{result}},
		Age:   time.Minute, Fence: FencePassed, FirstPass: true,
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func deleted(s *Situation) {
	s.Deletions = []Deletion{{Commit: &Commit{XID: 7}}}
	s.Visible, s.Fresh, s.Prompt = true, true, true
	s.Age, s.Fence, s.FirstPass = 0, NoFence, false
}

func TestDecide(t *testing.T) {
	exists := func(s *Situation) { s.Row.Exists = true }
	bindings := func(b ...Binding) func(*Situation) { return func(s *Situation) { s.Bindings = b } }
	name := func(n string) func(*Situation) {
		return func(s *Situation) { s.Found.Artifacts = []Artifact{resultOf(n)} }
	}
	message := func(n string) func(*Situation) {
		return func(s *Situation) {
			s.Found.Artifacts = []Artifact{messageArtifact(&Message{ID: "1", Name: n, Place: Place{Kind: QueuedMessage, Tag: "t"}})}
		}
	}
	exclusive := func(b Binding) Binding {
		b.Exclusive = true
		return b
	}
	unkeyed := func(s *Situation) { s.Row.Keyed = 0 }
	for _, c := range []struct {
		name    string
		in      Situation
		outcome Outcome
		heldBy  HeldBy
	}{
		{"nothing there", orphan(func(s *Situation) { s.Found.Artifacts = nil }), OutcomeNoop, ""},
		{"R1 the row exists", orphan(exists), OutcomeKept, ""},
		{"R1 deleted and inserted again", orphan(deleted, exists), OutcomeKept, ""},
		{"R3 the commit waits for a standby", orphan(deleted, exists, func(s *Situation) { s.Visible = false }), OutcomeDeferred, HeldByCommit},
		{"R3 at once", orphan(deleted), OutcomeRemoved, ""},
		{"R3 what came later is gated", orphan(deleted, func(s *Situation) { s.Fresh = false }), OutcomeDeferred, HeldByGrace},
		{"R3 a late first look waits for what runs", orphan(deleted, func(s *Situation) { s.Prompt = false }), OutcomeDeferred, HeldByTransactions},
		{"R3 a late first look, transactions are open", orphan(deleted, func(s *Situation) { s.Prompt, s.Fence = false, FenceOpen }), OutcomeDeferred, HeldByTransactions},
		{"R3 a late first look, nothing runs", orphan(deleted, func(s *Situation) { s.Prompt, s.Fence = false, FencePassed }), OutcomeRemoved, ""},
		{"R3 a deletion does not wait for replication", orphan(deleted, func(s *Situation) {
			s.Fresh, s.Age, s.Fence, s.Behind = false, time.Minute, FencePassed, true
		}), OutcomeRemoved, ""},
		{"R3 what came later passes the guard", orphan(deleted, func(s *Situation) {
			s.Fresh, s.Age, s.Fence, s.Guard = false, time.Minute, FencePassed, "tripped"
		}), OutcomeRemoved, ""},
		{"R3 a remembered deletion passes the guard", orphan(func(s *Situation) { s.Remembered, s.Guard = true, "tripped" }), OutcomeRemoved, ""},
		{"R3 a recorded deletion passes the guard", orphan(func(s *Situation) { s.Found.Deleted, s.Guard = true, "tripped" }), OutcomeRemoved, ""},
		{"R4 all passed", orphan(), OutcomeRemoved, ""},
		{"R4 grace", orphan(func(s *Situation) { s.Age = time.Second }), OutcomeDeferred, HeldByGrace},
		{"R4 no fence", orphan(func(s *Situation) { s.Fence = NoFence }), OutcomeDeferred, HeldByGrace},
		{"R4 open transactions", orphan(func(s *Situation) { s.Fence = FenceOpen }), OutcomeDeferred, HeldByTransactions},
		{"R4 open for too long", orphan(func(s *Situation) { s.Fence, s.Age = FenceOpen, time.Hour }), OutcomeRemoved, ""},
		{"R4 no limit", orphan(func(s *Situation) { s.Fence, s.Age, s.Policy.InflightLimit = FenceOpen, time.Hour, 0 }), OutcomeDeferred, HeldByTransactions},
		{"R4 replication behind", orphan(func(s *Situation) { s.Behind, s.Age = true, time.Hour }), OutcomeDeferred, HeldByReplication},
		{"R5 guard", orphan(func(s *Situation) { s.Guard = "tripped" }), OutcomeGuarded, HeldByGuard},
		{"R5 accepted", orphan(func(s *Situation) { s.Guard, s.Accepted = "tripped", true }), OutcomeRemoved, ""},
		{"R5 never stops deleted", orphan(deleted, func(s *Situation) { s.Guard = "tripped" }), OutcomeRemoved, ""},
		{"R5 another database: no memory counts", orphan(func(s *Situation) {
			s.Guard, s.GuardAll, s.Remembered, s.Found.Deleted = "tripped", true, true, true
		}), OutcomeGuarded, HeldByGuard},
		{"R5 another database: its deletes count", orphan(deleted, func(s *Situation) { s.Guard, s.GuardAll = "tripped", true }), OutcomeRemoved, ""},
		{"R5 not judged yet", orphan(func(s *Situation) { s.FirstPass = false }), OutcomeDeferred, HeldByFirstPass},
		{"R6 no binding can hold the id", orphan(func(s *Situation) { s.Row = RowState{} }), OutcomeKept, ""},
		{"R6 another name", orphan(bindings(named), name("mail")), OutcomeKept, ""},
		{"R6 another name, even deleted", orphan(deleted, bindings(named), name("mail")), OutcomeKept, ""},
		{"R6 our name", orphan(bindings(named), name("scan")), OutcomeRemoved, ""},
		{"R6 no name, no other tasks", orphan(bindings(named)), OutcomeRemoved, ""},
		{"R6 no name among other tasks", orphan(bindings(named), func(s *Situation) { s.Foreign = true }), OutcomeReported, HeldByUnknown},
		{"R6 exclusive", orphan(func(s *Situation) {
			b := named
			b.Exclusive = true
			s.Bindings, s.Foreign = []Binding{b}, true
		}), OutcomeRemoved, ""},
		{"R6 no name among other tasks, deleted", orphan(deleted, bindings(named), func(s *Situation) { s.Foreign = true }), OutcomeRemoved, ""},
		{"R6 exclusive, and its row may be in its arguments", orphan(bindings(exclusive(both)), func(s *Situation) { s.Foreign = true }), OutcomeReported, HeldByUnknown},
		{"R6 exclusive, and its row may be in its arguments, our name", orphan(bindings(exclusive(both)), name("scan")), OutcomeReported, HeldByUnknown},
		{"R6 exclusive, and its row is in its arguments", orphan(bindings(exclusive(both)), func(s *Situation) { s.Row.Argued = 1 }), OutcomeRemoved, ""},
		{"R7 a message", orphan(bindings(named), message("scan")), OutcomeRemoved, ""},
		{"R7 a message, no names", orphan(message("scan")), OutcomeReported, HeldByUnknown},
		{"R7 a message without a name", orphan(bindings(named), message("")), OutcomeReported, HeldByUnknown},
		{"R7 a message without a name, exclusive", orphan(bindings(exclusive(named)), message("")), OutcomeReported, HeldByUnknown},
		{"R7 a message without a name, deleted", orphan(deleted, bindings(named), message("")), OutcomeRemoved, ""},
		{"column: absence alone says nothing", orphan(bindings(column), unkeyed), OutcomeReported, HeldByUnknown},
		{"column: absence with any name says nothing", orphan(bindings(column), unkeyed, name("x")), OutcomeReported, HeldByUnknown},
		{"column: a listed name", orphan(bindings(colName), unkeyed, name("build")), OutcomeRemoved, ""},
		{"column: deleted", orphan(deleted, bindings(column), unkeyed), OutcomeRemoved, ""},
		{"policy deleted", orphan(func(s *Situation) { s.Policy.Remove = RemoveDeleted }), OutcomeReported, HeldByPolicy},
		{"policy deleted, deleted", orphan(deleted, func(s *Situation) { s.Policy.Remove = RemoveDeleted }), OutcomeRemoved, ""},
		{"policy none, deleted", orphan(deleted, func(s *Situation) { s.Policy.Remove = RemoveNone }), OutcomeReported, HeldByPolicy},
		{"companion", orphan(func(s *Situation) {
			s.Subject = RowSubject(0, "1")
			s.Found.Artifacts = []Artifact{{Kind: CompanionKey, Key: "task_created:1"}}
		}), OutcomeRemoved, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Decide(c.in)
			require.Equal(t, c.outcome, d.Outcome, d.Reason)
			require.Equal(t, c.heldBy, d.HeldBy, d.Reason)
			require.NotEmpty(t, d.Reason)
			require.Equal(t, c.outcome == OutcomeRemoved, len(d.Remove) > 0)
		})
	}
}

// Whatever the situation, the rules hold.
func TestDecideNeverBreaksARule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SampledFrom([]Binding{scans, named, column, colName})
		s := Situation{
			Bindings: rapid.SliceOfN(b, 1, 3).Draw(t, "bindings"), Policy: policy,
			Subject: TaskSubject("1"),
			Row: RowState{
				Exists:     rapid.Bool().Draw(t, "exists"),
				Candidates: BindingSet(rapid.Uint64Range(0, 7).Draw(t, "candidates")),
			},
			Visible: rapid.Bool().Draw(t, "visible"), Fresh: rapid.Bool().Draw(t, "fresh"),
			Remembered: rapid.Bool().Draw(t, "remembered"),
			Age:        time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "age")),
			Fence:      FenceState(rapid.Uint8Range(0, 2).Draw(t, "fence")),
			Prompt:     rapid.Bool().Draw(t, "prompt"), Behind: rapid.Bool().Draw(t, "behind"),
			GuardAll:  rapid.Bool().Draw(t, "all"),
			FirstPass: rapid.Bool().Draw(t, "pass"), Foreign: rapid.Bool().Draw(t, "foreign"),
			Accepted: rapid.Bool().Draw(t, "accepted"),
			Guard:    rapid.SampledFrom([]string{"", "tripped"}).Draw(t, "guard"),
		}
		s.Policy.Remove = rapid.SampledFrom([]Remove{RemoveAll, RemoveDeleted, RemoveNone}).Draw(t, "remove")
		s.Row.Keyed = s.Row.Candidates & BindingSet(rapid.Uint64Range(0, 7).Draw(t, "keyed"))
		for range rapid.IntRange(0, 2).Draw(t, "artifacts") {
			s.Found.Artifacts = append(s.Found.Artifacts, resultOf(rapid.SampledFrom([]string{"", "scan", "mail"}).Draw(t, "name")))
		}
		if rapid.Bool().Draw(t, "deleted") {
			s.Deletions = []Deletion{{Commit: &Commit{}}}
		}
		s.Fresh = s.Fresh && len(s.Deletions) > 0
		d := Decide(s)
		if d.Outcome == OutcomeDeferred && d.After < 0 {
			t.Fatalf("comes back in the past: %+v", d)
		}
		if d.Outcome != OutcomeRemoved {
			return
		}
		strong := len(s.Deletions) > 0 || s.Remembered
		prompt := s.Fresh && s.Prompt
		switch {
		case s.Row.Exists:
			t.Fatal("R1: removes of a living row")
		case s.Policy.Remove == RemoveNone || (s.Policy.Remove == RemoveDeleted && !strong):
			t.Fatal("policy.remove")
		case !prompt && (s.Fence == NoFence || (!s.Fresh && s.Age < s.Policy.Grace)):
			t.Fatal("R4: too early")
		case !strong && s.Behind:
			t.Fatal("R4: replication is behind")
		case !prompt && s.Fence == FenceOpen && s.Age < s.Policy.InflightLimit:
			t.Fatal("R4: transactions are open")
		case len(s.Deletions) == 0 && s.Guard != "" && s.GuardAll && !s.Accepted:
			t.Fatal("R5: another database")
		case !strong && !s.Accepted && (s.Guard != "" || !s.FirstPass):
			t.Fatal("R5: past the guard")
		case !strong && s.Row.Candidates == 0:
			t.Fatal("R6: no binding")
		}
		for _, a := range d.Remove {
			if ForeignName(s.Bindings, a.Name) {
				t.Fatal("R6: another task's")
			}
		}
	})
}
