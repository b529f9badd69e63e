package reconciler

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var (
	argued    = Binding{Schema: "public", Table: "logs", Key: "id", Args: []int{0}, Names: []string{"scan"}}
	both      = Binding{Schema: "public", Table: "logs", Key: "id", CeleryID: true, Args: []int{0}, Names: []string{"scan"}}
	kwargued  = Binding{Schema: "public", Table: "jobs", Key: "id", Kwargs: []string{"job"}, Names: []string{"build"}}
	exclusive = Binding{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true, Exclusive: true}
)

func queued(name, tag string) Artifact {
	return messageArtifact(&Message{ID: "1", Name: name, Place: Place{Kind: QueuedMessage, List: "celery", Tag: tag}})
}

func unacked(name, tag string) Artifact {
	return messageArtifact(&Message{ID: "1", Name: name, Place: Place{Kind: UnackedMessage, List: "celery", Tag: tag}})
}

func left(a Artifact) Artifact {
	a.Left = true
	return a
}

func holding(artifacts ...Artifact) func(*Situation) {
	return func(s *Situation) { s.Found.Artifacts = artifacts }
}

func boundBy(bindings ...Binding) func(*Situation) {
	return func(s *Situation) { s.Bindings = bindings }
}

// sets are candidates, keyed and argued.
func sets(candidates, keyed, argued BindingSet) func(*Situation) {
	return func(s *Situation) { s.Row.Candidates, s.Row.Keyed, s.Row.Argued = candidates, keyed, argued }
}

func mayRun(s *Situation) { s.MayRun = true }

func remembered(s *Situation) { s.Remembered = true }

func TestDecideWhoseItIs(t *testing.T) {
	foreign := func(s *Situation) { s.Foreign = true }
	recorded := func(s *Situation) { s.Found.Deleted = true }
	for _, c := range []struct {
		name    string
		in      Situation
		outcome Outcome
		heldBy  HeldBy
	}{
		{"R7 absent, no names", orphan(holding(queued("scan", "a"))), OutcomeReported, HeldByUnknown},
		{"R7 absent, no names, exclusive", orphan(boundBy(exclusive), holding(queued("scan", "a"))), OutcomeReported, HeldByUnknown},
		{"R7 absent, a listed name", orphan(boundBy(named), holding(queued("scan", "a"))), OutcomeRemoved, ""},
		{"R7 absent, a listed name, unacked", orphan(boundBy(named), holding(unacked("scan", "a"))), OutcomeRemoved, ""},
		{"R7 absent, another name", orphan(boundBy(named), holding(queued("mail", "a"))), OutcomeKept, ""},
		{"R7 absent, no name told", orphan(boundBy(named), holding(queued("", "a"))), OutcomeReported, HeldByUnknown},
		{"R7 absent, no name told, exclusive", orphan(boundBy(exclusive), holding(queued("", "a"))), OutcomeReported, HeldByUnknown},
		{"R7 absent, listed by one of two", orphan(boundBy(scans, named), sets(3, 3, 0), holding(queued("scan", "a"))), OutcomeRemoved, ""},
		{"R7 absent, listed by one of which it cannot be", orphan(boundBy(scans, named), sets(1, 1, 0), holding(queued("scan", "a"))), OutcomeReported, HeldByUnknown},
		{"R7 absent, by a column, listed", orphan(boundBy(colName), sets(1, 0, 0), holding(queued("build", "a"))), OutcomeRemoved, ""},
		{"R7 deleted, no names", orphan(deleted, holding(queued("scan", "a"))), OutcomeRemoved, ""},
		{"R7 remembered, no names", orphan(remembered, holding(queued("scan", "a"))), OutcomeRemoved, ""},
		{"R7 recorded, no names", orphan(recorded, holding(queued("scan", "a"))), OutcomeRemoved, ""},
		{"R7 deleted, another name", orphan(deleted, boundBy(named), holding(queued("mail", "a"))), OutcomeKept, ""},
		{"R7 remembered, another name", orphan(remembered, boundBy(named), holding(queued("mail", "a"))), OutcomeKept, ""},
		{"R5 a message is guarded", orphan(boundBy(named), holding(queued("scan", "a")), func(s *Situation) { s.Guard = "tripped" }), OutcomeGuarded, HeldByGuard},
		{"R4 a message waits", orphan(boundBy(named), holding(queued("scan", "a")), func(s *Situation) { s.Age = time.Second }), OutcomeDeferred, HeldByGrace},

		{"args: no name and no argument", orphan(boundBy(argued), sets(0, 0, 0)), OutcomeReported, HeldByUnknown},
		{"args: its name, no argument", orphan(boundBy(argued), sets(0, 0, 0), holding(resultOf("scan"))), OutcomeReported, HeldByUnknown},
		{"args: another name", orphan(boundBy(argued), sets(0, 0, 0), holding(resultOf("mail"))), OutcomeKept, ""},
		{"args: argued", orphan(boundBy(argued), sets(1, 1, 1), holding(resultOf("scan"))), OutcomeRemoved, ""},
		{"args: argued, a message", orphan(boundBy(argued), sets(1, 1, 1), holding(queued("scan", "a"))), OutcomeRemoved, ""},
		{"args: argued, no name", orphan(boundBy(argued), sets(1, 1, 1)), OutcomeRemoved, ""},
		{"args: argued, no name among other tasks", orphan(boundBy(argued), sets(1, 1, 1), foreign), OutcomeReported, HeldByUnknown},
		{"args: no name, though its id is a key", orphan(boundBy(scans, argued), sets(1, 1, 0)), OutcomeReported, HeldByUnknown},
		{"args: its name, though its id is a key", orphan(boundBy(scans, argued), sets(1, 1, 0), holding(resultOf("scan"))), OutcomeReported, HeldByUnknown},
		{"args: another's name, and its id is a key", orphan(boundBy(scans, argued), sets(1, 1, 0), holding(resultOf("mail"))), OutcomeRemoved, ""},
		{"args: no name, exclusive by id", orphan(boundBy(exclusive, argued), sets(1, 1, 0)), OutcomeReported, HeldByUnknown},
		{"args: no name, argued in one of two", orphan(boundBy(argued, kwargued), sets(1, 1, 1)), OutcomeReported, HeldByUnknown},
		{"args: named, argued in one of two", orphan(boundBy(argued, kwargued), sets(1, 1, 1), holding(resultOf("scan"))), OutcomeRemoved, ""},
		{"args: deleted, no name", orphan(deleted, boundBy(argued), sets(0, 0, 0)), OutcomeRemoved, ""},
		{"args: deleted, another name", orphan(deleted, boundBy(argued), sets(0, 0, 0), holding(resultOf("mail"))), OutcomeKept, ""},
		{"args: a deletion in another table", orphan(deleted, boundBy(argued, kwargued), sets(0, 0, 0), holding(resultOf("build"))), OutcomeReported, HeldByUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Decide(c.in)
			require.Equal(t, c.outcome, d.Outcome, d.Reason)
			require.Equal(t, c.heldBy, d.HeldBy, d.Reason)
			require.Equal(t, c.outcome == OutcomeRemoved, len(d.Remove) > 0)
		})
	}
}

// R9: whom a revoke is for.
func TestDecideRevokes(t *testing.T) {
	policyOf := func(r Remove) func(*Situation) { return func(s *Situation) { s.Policy.Remove = r } }
	guarded := func(s *Situation) { s.Guard = "tripped" }
	weak := boundBy(named)
	for _, c := range []struct {
		name    string
		in      Situation
		outcome Outcome
		heldBy  HeldBy
		remove  int
		revoke  bool
		held    bool
	}{
		{"queued: taking it out is enough", orphan(deleted, mayRun, holding(queued("scan", "a"))), OutcomeRemoved, "", 1, false, false},
		{"queued twice", orphan(deleted, mayRun, holding(queued("scan", "a"), queued("scan", "b"))), OutcomeRemoved, "", 2, false, false},
		{"unacked", orphan(deleted, mayRun, holding(unacked("scan", "a"))), OutcomeRemoved, "", 1, true, true},
		{"unacked, ended or revoked before", orphan(deleted, holding(unacked("scan", "a"))), OutcomeRemoved, "", 1, false, true},
		{"unacked and queued", orphan(deleted, mayRun, holding(queued("scan", "a"), unacked("scan", "b"))), OutcomeRemoved, "", 2, true, true},
		{"unacked, on evidence absent", orphan(weak, mayRun, holding(unacked("scan", "a"))), OutcomeRemoved, "", 1, true, true},
		{"unacked, remembered", orphan(remembered, mayRun, holding(unacked("scan", "a"))), OutcomeRemoved, "", 1, true, true},
		{"unacked, not yet", orphan(weak, mayRun, holding(unacked("scan", "a")), func(s *Situation) { s.Age = 0 }), OutcomeDeferred, HeldByGrace, 0, false, false},
		{"unacked, guarded", orphan(weak, mayRun, holding(unacked("scan", "a")), guarded), OutcomeGuarded, HeldByGuard, 0, false, false},
		{"unacked, shadow mode", orphan(deleted, mayRun, holding(unacked("scan", "a")), policyOf(RemoveNone)), OutcomeReported, HeldByPolicy, 0, false, false},
		{"unacked, absent, policy deleted", orphan(weak, mayRun, holding(unacked("scan", "a")), policyOf(RemoveDeleted)), OutcomeReported, HeldByPolicy, 0, false, false},
		{"unacked, the row exists", orphan(deleted, mayRun, holding(unacked("scan", "a")), func(s *Situation) { s.Row.Exists = true }), OutcomeKept, "", 0, false, false},
		{"unacked, another task's", orphan(deleted, mayRun, weak, holding(unacked("mail", "a"))), OutcomeKept, "", 0, false, false},
		{"a chord's member", orphan(deleted, mayRun, holding(left(queued("scan", "a")))), OutcomeReported, HeldByChord, 0, true, true},
		{"a chord's member, revoked before", orphan(deleted, holding(left(queued("scan", "a")))), OutcomeReported, HeldByChord, 0, false, true},
		{"a chord's member and another message", orphan(deleted, mayRun, holding(left(queued("scan", "a")), queued("scan", "b"))), OutcomeRemoved, "", 1, true, true},
		{"a chord's member, not yet", orphan(weak, mayRun, holding(left(queued("scan", "a"))), func(s *Situation) { s.Age = 0 }), OutcomeDeferred, HeldByGrace, 0, false, false},
		{"nothing seen after a deletion", orphan(deleted, mayRun, holding()), OutcomeNoop, "", 0, true, false},
		{"nothing seen, ended or revoked before", orphan(deleted, holding()), OutcomeNoop, "", 0, false, false},
		{"nothing seen, remembered only", orphan(remembered, mayRun, holding()), OutcomeNoop, "", 0, false, false},
		{"nothing seen, no deletion", orphan(mayRun, holding()), OutcomeNoop, "", 0, false, false},
		{"nothing seen, not visible yet", orphan(deleted, mayRun, holding(), func(s *Situation) { s.Row.Exists, s.Visible = true, false }), OutcomeDeferred, HeldByCommit, 0, false, false},
		{"nothing seen, inserted again", orphan(deleted, mayRun, holding(), func(s *Situation) { s.Row.Exists = true }), OutcomeKept, "", 0, false, false},
		{"nothing seen, late", orphan(deleted, mayRun, holding(), func(s *Situation) { s.Prompt = false }), OutcomeDeferred, HeldByTransactions, 0, false, false},
		{"nothing seen, shadow mode", orphan(deleted, mayRun, holding(), policyOf(RemoveNone)), OutcomeReported, HeldByPolicy, 0, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Decide(c.in)
			require.Equal(t, c.outcome, d.Outcome, d.Reason)
			require.Equal(t, c.heldBy, d.HeldBy, d.Reason)
			require.Len(t, d.Remove, c.remove)
			require.Equal(t, c.revoke, d.Revoke, "revoke")
			require.Equal(t, c.held, d.Held, "held")
			for _, a := range d.Remove {
				require.False(t, a.Left)
			}
		})
	}
}

func drawArtifacts(t *rapid.T) (out []Artifact) {
	for range rapid.IntRange(0, 3).Draw(t, "artifacts") {
		name := rapid.SampledFrom([]string{"", "scan", "build", "mail"}).Draw(t, "name")
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			out = append(out, resultOf(name))
		case 1:
			out = append(out, queued(name, "q"))
		case 2:
			out = append(out, unacked(name, "u"))
		default:
			out = append(out, left(queued(name, "c")))
		}
	}
	return out
}

// Whatever the situation of messages, the rules hold.
func TestDecideNeverBreaksARuleOfMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Mostly all lets it go: else what must hold it is seldom the only thing.
		flag := func(name string, usual bool) bool {
			return rapid.SampledFrom([]bool{usual, usual, usual, usual, !usual}).Draw(t, name)
		}
		set := func(name string) BindingSet { return BindingSet(rapid.Uint64Range(0, 7).Draw(t, name)) }
		b := rapid.SampledFrom([]Binding{scans, named, column, colName, argued, kwargued, exclusive})
		s := Situation{
			Bindings: rapid.SliceOfN(b, 1, 3).Draw(t, "bindings"), Policy: policy, Subject: TaskSubject("1"),
			Row:     RowState{Exists: flag("exists", false), Candidates: set("candidates")},
			Found:   Found{Artifacts: drawArtifacts(t), Deleted: flag("recorded", false)},
			Visible: flag("visible", true), Remembered: flag("remembered", false), MayRun: flag("may run", true),
			Age:   policy.Grace,
			Fence: rapid.SampledFrom([]FenceState{FencePassed, FencePassed, FencePassed, FenceOpen, NoFence}).Draw(t, "fence"), Behind: flag("behind", false),
			FirstPass: flag("pass", true), Foreign: flag("foreign", false), GuardAll: flag("all", false), Accepted: flag("accepted", false),
		}
		if flag("young", false) {
			s.Age = time.Duration(rapid.Int64Range(0, int64(policy.Grace)).Draw(t, "age"))
		}
		if flag("guard", false) {
			s.Guard = "tripped"
		}
		s.Row.Keyed = s.Row.Candidates & set("keyed")
		s.Row.Argued = s.Row.Keyed & set("argued")
		s.Policy.Remove = rapid.SampledFrom([]Remove{RemoveAll, RemoveAll, RemoveDeleted, RemoveNone}).Draw(t, "remove")
		if flag("deleted", false) {
			s.Deletions = []Deletion{{Binding: rapid.IntRange(0, len(s.Bindings)-1).Draw(t, "in"), Commit: &Commit{}}}
			s.Fresh, s.Prompt = flag("fresh", true), flag("prompt", true)
		}
		d := Decide(s)
		strong := len(s.Deletions) > 0 || s.Remembered || s.Found.Deleted
		acts := len(d.Remove) > 0 || d.Revoke
		inHand := false
		for _, a := range s.Found.Artifacts {
			inHand = inHand || a.Kind == UnackedMessage || a.Left
		}
		switch {
		case len(d.Remove) > 0 && d.Outcome != OutcomeRemoved:
			t.Fatalf("names what to remove, but it is %s", d.Outcome)
		case acts && s.Row.Exists:
			t.Fatal("R1: acts on a living row")
		case acts && s.Policy.Remove == RemoveNone:
			t.Fatal("policy.remove none")
		case acts && !strong && (s.Policy.Remove == RemoveDeleted || !s.Accepted && (s.Guard != "" || !s.FirstPass)):
			t.Fatal("weak: policy, guard, or before the first pass")
		case acts && !strong && (s.Age < s.Policy.Grace || s.Fence != FencePassed || s.Behind):
			t.Fatal("R4: too early")
		case d.Revoke && len(s.Deletions) == 0 && !inHand:
			t.Fatal("R9: revokes what nobody can have")
		case d.Revoke && !s.MayRun:
			t.Fatal("R9: revokes what cannot run")
		}
		for _, a := range d.Remove {
			switch {
			case ForeignName(s.Bindings, a.Name):
				t.Fatal("R6: another task's")
			case a.Left:
				t.Fatal("a chord needs it")
			case a.Message != nil && !strong:
				listed := false
				for i, b := range s.Bindings {
					listed = listed || s.Row.Candidates.Has(i) && len(b.Names) > 0 && b.HasName(a.Name)
				}
				if !listed || a.Name == "" {
					t.Fatal("R7: a message of no listed name")
				}
			}
		}
	})
}
