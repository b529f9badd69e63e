package reconciler

import (
	"fmt"
	"time"
)

// Outcome is how a reconciliation ended; it is a label of the metrics.
type Outcome string

// The outcomes.
const (
	// OutcomeRemoved: artifacts were removed.
	OutcomeRemoved Outcome = "removed"
	// OutcomeKept: the row exists, or the artifact is another task's.
	OutcomeKept Outcome = "kept"
	// OutcomeNoop: there was nothing to remove.
	OutcomeNoop Outcome = "noop"
	// OutcomeDeferred: too early to tell; it comes back.
	OutcomeDeferred Outcome = "deferred"
	// OutcomeGuarded: an orphan that the guard holds.
	OutcomeGuarded Outcome = "guarded"
	// OutcomeReported: an orphan, or what may be one, that a rule lets us only report.
	OutcomeReported Outcome = "reported"
	// OutcomeError: a store did not answer; it comes back.
	OutcomeError Outcome = "error"
)

// HeldBy says what holds a removal.
type HeldBy string

// What may hold a removal.
const (
	HeldByNothing      HeldBy = ""
	HeldByGrace        HeldBy = "grace"
	HeldByTransactions HeldBy = "transactions"
	HeldByReplication  HeldBy = "replication"
	HeldByFirstPass    HeldBy = "first_pass"
	HeldByCommit       HeldBy = "commit"
	HeldByGuard        HeldBy = "guard"
	HeldByUnknown      HeldBy = "unknown"
	HeldByPolicy       HeldBy = "policy"
	HeldByPause        HeldBy = "pause"
	HeldByRestore      HeldBy = "restore"
	HeldByChord        HeldBy = "chord"
	HeldByChange       HeldBy = "change"
	HeldByError        HeldBy = "error"
)

// Situation is all that a decision depends on.
type Situation struct {
	Bindings []Binding
	Policy   Policy
	Subject  Subject
	Row      RowState
	Found    Found

	// Deletions seen in the log, with whether each is visible to our snapshot.
	Deletions []Deletion
	Visible   bool
	// Fresh: the artifacts are as they were at the first look after the newest of
	// Deletions was seen.
	Fresh bool
	// Prompt: Deletions were committed just now, and nothing of the row was removed
	// before. Later, as with a backlog or a replay, the row may be on its way in again.
	Prompt bool
	// Remembered: an earlier deletion of this row is known.
	Remembered bool

	// Attempts is how often it was looked at before.
	Attempts int
	// Age is for how long the artifacts have been seen as they are now.
	Age time.Duration
	// Fence is the state of the fence around the first look at them; Behind:
	// replication has not passed it.
	Fence  FenceState
	Behind bool
	// FirstPass: a whole pass has been judged in this term, so that the guard
	// and the signs of other tasks are known.
	FirstPass bool
	// Foreign: a task was seen here whose name is in no binding.
	Foreign bool
	// Guard holds evidence absent. GuardAll: it is not even known to be the same
	// database, so that no earlier deletion counts either. Accepted: an operator
	// let this one pass.
	Guard    string
	GuardAll bool
	Accepted bool
	// MayRun: it has not ended as far as we know, and was not revoked before. Only
	// messages are looked at for that.
	MayRun bool
}

// FenceState is how far a fence has come.
type FenceState uint8

// The states of a fence.
const (
	// NoFence: none has been taken yet.
	NoFence FenceState = iota
	// FenceOpen: transactions of then are still open.
	FenceOpen
	// FencePassed: they have ended.
	FencePassed
)

// Decision is what to do.
type Decision struct {
	Outcome  Outcome
	HeldBy   HeldBy
	Evidence Evidence
	// Remove are the artifacts to remove, where Outcome is OutcomeRemoved.
	Remove []Artifact
	// Revoke: workers may have it in their hands, and are told to drop it. Held: they
	// have, for sure.
	Revoke, Held bool
	// After is when to come back, where Outcome is OutcomeDeferred.
	After time.Duration
	// Reason is for people.
	Reason string
}

// retry says how soon to look again at what waits for others. Short at first: most waits are for what ends in milliseconds.
func retry(from, to time.Duration, attempts int) time.Duration {
	return min(from<<min(attempts, 16), to)
}

// Decide is the whole judgement: no clock, no store, no state.
func Decide(s Situation) Decision {
	// What is in no key may still be in a worker's hands; only a deletion speaks of that.
	unseen := len(s.Found.Artifacts) == 0
	if unseen && (!s.MayRun || len(s.Deletions) == 0) {
		return Decision{Outcome: OutcomeNoop, Reason: "nothing of it is there"}
	}
	if s.Row.Exists {
		if len(s.Deletions) > 0 && !s.Visible {
			// The log is sent before the commit is visible, by microseconds or for as
			// long as a synchronous standby takes: the row only seems to live.
			return Decision{
				Outcome: OutcomeDeferred, HeldBy: HeldByCommit, After: retry(time.Millisecond, 2*time.Second, s.Attempts), Evidence: Deleted,
				Reason: "the deleting transaction is not visible yet",
			}
		}
		return Decision{Outcome: OutcomeKept, Reason: "the row exists"}
	}
	ours, unknown := attributable(s)
	if len(ours) == 0 && !unseen {
		if unknown > 0 {
			return Decision{
				Outcome: OutcomeReported, HeldBy: HeldByUnknown, Evidence: Absent,
				Reason: "no row, but nothing tells that this is a task of a bound table (names, exclusive)",
			}
		}
		return Decision{Outcome: OutcomeKept, Reason: "another task's"}
	}
	d := Decision{Outcome: OutcomeRemoved, Evidence: evidence(s)}
	if held := hold(s, d.Evidence); held.HeldBy != HeldByNothing {
		held.Evidence = d.Evidence
		return held
	}
	d.Reason = "the row was deleted"
	if d.Evidence == Absent {
		d.Reason = "no such row"
	}
	left := 0
	for _, a := range ours {
		if a.Left {
			left++
			continue
		}
		d.Remove = append(d.Remove, a)
		d.Held = d.Held || a.Kind == UnackedMessage
	}
	// R9: not one whose only message we take out of a queue.
	d.Revoke = s.MayRun && (d.Held || left > 0 || unseen)
	d.Held = d.Held || left > 0
	switch {
	case unseen:
		d.Outcome, d.Reason = OutcomeNoop, "nothing of it is there, but it may run"
	case len(d.Remove) == 0:
		d.Outcome, d.HeldBy = OutcomeReported, HeldByChord
		d.Reason = "revoked, and left where it is: its chord ends with an error when a worker meets it"
	}
	return d
}

func evidence(s Situation) Evidence {
	if len(s.Deletions) > 0 || s.Remembered || s.Found.Deleted {
		return Deleted
	}
	return Absent
}

// hold gives the first rule that keeps an orphan from being removed now.
func hold(s Situation, e Evidence) Decision {
	if s.Policy.Remove == RemoveNone || (s.Policy.Remove == RemoveDeleted && e == Absent) {
		return Decision{
			Outcome: OutcomeReported, HeldBy: HeldByPolicy,
			Reason: fmt.Sprintf("an orphan, evidence %s, but policy.remove is %s", e, s.Policy.Remove),
		}
	}
	if s.Fresh && s.Prompt {
		return Decision{} // R3: what is there at the first look goes at once
	}
	if len(s.Deletions) == 0 && s.Guard != "" && s.GuardAll && !s.Accepted {
		return Decision{Outcome: OutcomeGuarded, HeldBy: HeldByGuard, Reason: s.Guard}
	}
	if e == Absent && !s.Accepted {
		if !s.FirstPass {
			return Decision{
				Outcome: OutcomeDeferred, HeldBy: HeldByFirstPass, After: retry(100*time.Millisecond, 5*time.Second, s.Attempts),
				Reason: "the first pass over both stores has not been judged yet",
			}
		}
		if s.Guard != "" {
			return Decision{Outcome: OutcomeGuarded, HeldBy: HeldByGuard, Reason: s.Guard}
		}
	}
	return gate(s, e)
}

// gate is R4. What is unchanged since its deletion was seen needs no grace: only
// what runs now can be inserting its row again. And a deletion that is known needs
// no word of replication, which may be waiting for this very entry to finish.
func gate(s Situation, e Evidence) Decision {
	switch {
	case s.Fence == NoFence && s.Fresh:
		return Decision{Outcome: OutcomeDeferred, HeldBy: HeldByTransactions, Reason: "its row may be on its way in again"}
	case s.Fence == NoFence || (s.Age < s.Policy.Grace && !s.Fresh):
		return Decision{
			Outcome: OutcomeDeferred, HeldBy: HeldByGrace, After: max(s.Policy.Grace-s.Age, 0),
			Reason: "seen too recently: its row may still be on its way",
		}
	case s.Fence == FenceOpen && (s.Policy.InflightLimit == 0 || s.Age < s.Policy.InflightLimit):
		return Decision{
			Outcome: OutcomeDeferred, HeldBy: HeldByTransactions, After: retry(20*time.Millisecond, 2*time.Second, s.Attempts),
			Reason: "transactions that ran when it was seen are still open, and may be inserting its row",
		}
	case s.Behind && e == Absent:
		return Decision{
			Outcome: OutcomeDeferred, HeldBy: HeldByReplication, After: retry(20*time.Millisecond, 2*time.Second, s.Attempts),
			Reason: "replication has not passed the moment when it was seen",
		}
	}
	return Decision{}
}

// attributable tells the artifacts that are a bound task's, by R6, and counts those
// of which nothing tells whose they are.
func attributable(s Situation) (ours []Artifact, unknown int) {
	deletedIn := BindingSet(0)
	for _, d := range s.Deletions {
		deletedIn = deletedIn.With(d.Binding)
	}
	for _, a := range s.Found.Artifacts {
		known, mine := attributed(s, a, deletedIn)
		switch {
		case mine:
			ours = append(ours, a)
		case !known:
			unknown++
		}
	}
	return ours, unknown
}

func attributed(s Situation, a Artifact, deletedIn BindingSet) (known, mine bool) {
	if s.Subject.Kind == Row {
		// The pattern of a companion key is a namespace of its own.
		return true, s.Row.Candidates.Has(s.Subject.Binding) || deletedIn.Has(s.Subject.Binding)
	}
	known = a.Name != "" || s.Row.Candidates == 0
	open := false // its arguments would lead to a row, and nothing tells them
	for i, b := range s.Bindings {
		open = open || b.ByArgument() && !s.Row.Argued.Has(i) && (a.Name == "" || b.HasName(a.Name))
	}
	known = known && !open
	for i, b := range s.Bindings {
		switch {
		case deletedIn.Has(i), s.Remembered || s.Found.Deleted:
			// The id was in a table and was deleted: proof, unless the name says otherwise.
			if a.Name == "" || b.HasName(a.Name) {
				return true, true
			}
		case !s.Row.Candidates.Has(i):
		case open && !b.Exclusive:
		case a.Message != nil && (len(b.Names) == 0 || a.Name == ""):
			known = false // R7: absence is no evidence for a message of no listed name
		case a.Name != "":
			// An id that is in no column says nothing by itself: every other task's is not either.
			if b.HasName(a.Name) && (s.Row.Keyed.Has(i) || len(b.Names) > 0 || b.Exclusive) {
				return true, true
			}
			if b.HasName(a.Name) {
				known = false
			}
		case b.Exclusive:
			return true, true
		case s.Row.Keyed.Has(i) && (len(b.Names) == 0 || !s.Foreign):
			return true, true
		}
	}
	return known, false
}

// ForeignName tells whether a task of that name is a sign of other tasks in the
// same place: it can belong to no binding.
func ForeignName(bindings []Binding, name string) bool {
	if name == "" {
		return false
	}
	for _, b := range bindings {
		if b.HasName(name) {
			return false
		}
	}
	return true
}
