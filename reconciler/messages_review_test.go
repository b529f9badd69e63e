package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

// lab is both stores in memory: messages, records and living rows.
type lab struct {
	testing.TB
	*Reconciler

	messages []Message
	records  map[Subject]Found
	living   map[string]bool // by the row's key
	revoked  []string
	pulled   []string
	looks    int
	sweeps   int
	// onLook is called before each look at rows, with its number.
	onLook func(n int)
	// popped are ids whose messages a worker takes just before they are pulled.
	popped map[string]bool
	xmax   uint64
	// running are open transactions.
	running []Transaction
}

func newLab(t testing.TB, bindings ...Binding) *lab {
	l := &lab{TB: t, records: map[Subject]Found{}, living: map[string]bool{}, popped: map[string]bool{}, xmax: 100}
	r, err := New(Options{
		Bindings: bindings, Policy: policy, Artifacts: labArtifacts{l}, Rows: labRows{l}, Messages: labMessages{l},
		FindQueues: func(context.Context) error { return nil },
		Guard:      NewGuard(policy, nil, time.Now), Memory: NewMemory(1000), Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	l.Reconciler = r
	r.firstPass.Store(true)
	return l
}

func (l *lab) queue(id, name string, refs ...RowRef) {
	l.messages = append(l.messages, Message{
		ID: id, Name: name, Refs: refs, Place: Place{Kind: QueuedMessage, List: "celery", Tag: "tag-" + id, Envelope: "{" + id + "}"},
	})
}

func (l *lab) hold(id, name string, refs ...RowRef) {
	l.queue(id, name, refs...)
	l.messages[len(l.messages)-1].Place.Kind = UnackedMessage
}

func (l *lab) deleted(binding int, key string) Deletion {
	return Deletion{Binding: binding, Key: key, Commit: &Commit{XID: 5, Time: time.Now()}}
}

func (l *lab) run(works ...*Work) []Verdict {
	l.Helper()
	verdicts, err := l.Reconcile(l.Context(), Term{Position: func() LSN { return 1 << 40 }}, works)
	require.NoError(l, err)
	return verdicts
}

type labRows struct{ *lab }

func (l labRows) Look(_ context.Context, ls []Look) (RowLook, error) {
	l.looks++
	if l.onLook != nil {
		l.onLook(l.looks)
	}
	states := make([]RowState, len(ls))
	for i, look := range ls {
		for b, binding := range l.Bindings {
			if binding.CeleryID && look.Subject.Kind == Task {
				states[i].Candidates = states[i].Candidates.With(b)
				states[i].Keyed = states[i].Keyed.With(b)
				states[i].Exists = states[i].Exists || l.living[look.Subject.ID] || l.living[look.Spelling]
			}
			if look.Subject.Kind == Row && look.Subject.Binding == b {
				states[i].Candidates = states[i].Candidates.With(b)
				states[i].Exists = states[i].Exists || l.living[look.Subject.ID]
			}
			for _, ref := range look.Refs {
				if ref.Binding == b {
					states[i].Candidates = states[i].Candidates.With(b)
					states[i].Keyed = states[i].Keyed.With(b)
					states[i].Argued = states[i].Argued.With(b)
					states[i].Exists = states[i].Exists || l.living[ref.Key]
				}
			}
		}
	}
	return RowLook{Snapshot: Snapshot{Xmin: l.xmax, Xmax: l.xmax, At: time.Now()}, States: states}, nil
}

func (l labRows) Running(context.Context) (Running, error) {
	return Running{Asked: time.Now(), Virtual: l.running}, nil
}

func (l labRows) EmptyTables(context.Context) (BindingSet, error) { return 0, nil }
func (l labRows) Reset()                                          {}

type labArtifacts struct{ *lab }

func (l labArtifacts) Look(_ context.Context, ls []Look) ([]Found, error) {
	out := make([]Found, len(ls))
	for i, look := range ls {
		out[i] = l.records[look.Subject]
	}
	return out, nil
}

func (l labArtifacts) Remove(context.Context, uint64, []Removal) ([]RemoveResult, error) {
	return nil, errors.New("no results here")
}

func (l labArtifacts) Bury(_ context.Context, _ uint64, bs []Burial) ([]Buried, error) {
	out := make([]Buried, len(bs))
	for i, b := range bs {
		out[i] = Buried{Status: Removed}
		f := l.records[b.Task]
		if b.Count != nil {
			f.Taken = f.Taken || b.Count[QueuedMessage] > 0
			l.records[b.Task] = f
			continue
		}
		f.Deleted = f.Deleted || b.Record.Evidence == Deleted
		f.Table, f.Key = b.Record.Table, b.Record.Key
		if b.Revoke && !f.Revoked {
			f.Revoked, out[i].Revoke = true, true
		}
		l.records[b.Task] = f
	}
	return out, nil
}

func (l labArtifacts) Revive(context.Context, []Subject) error { return nil }

type labMessages struct{ *lab }

func (l labMessages) Sweep(_ context.Context, yield func([]Message) error) error {
	l.sweeps++
	for m := range slices.Chunk(slices.Clone(l.messages), 100) {
		if err := yield(m); err != nil {
			return err
		}
	}
	return nil
}

func (l labMessages) Pull(_ context.Context, _ uint64, pulls []Pull) ([]RemoveStatus, error) {
	out := make([]RemoveStatus, len(pulls))
	for i, p := range pulls {
		at := slices.IndexFunc(l.messages, func(m Message) bool { return m.Place.Tag == p.Message.Place.Tag })
		out[i] = Changed
		if at < 0 {
			continue
		}
		id := l.messages[at].ID
		l.messages = slices.Delete(l.messages, at, at+1)
		if !l.popped[id] {
			out[i] = Removed
			l.pulled = append(l.pulled, id)
		}
	}
	return out, nil
}

func (l labMessages) Revoke(_ context.Context, ids []string) (int, int, error) {
	for _, id := range ids {
		if id == "" { // as revokeMessage does
			return 0, 0, errors.New("revoke: an id is empty or no UTF-8")
		}
	}
	l.revoked = append(l.revoked, ids...)
	return 1, 1, nil
}

func (l labMessages) Release(context.Context, []Subject) error { return nil }

var (
	both      = Binding{Schema: "public", Table: "scans", Key: "id", CeleryID: true, Args: []int{0}, Names: []string{"scan"}}
	labArgued = Binding{Schema: "public", Table: "scans", Key: "id", Args: []int{0}, Names: []string{"scan"}}
)

func labStrong(s Subject, d Deletion) *Work {
	return &Work{Subject: s, Trigger: ByDelete, Seen: time.Now(), Deletions: []Deletion{d}}
}

// A row whose key cannot be a task's id must not stop all others.
func TestAnEmptyKeyDoesNotStopRevokes(t *testing.T) {
	l := newLab(t, scans)
	l.hold("b", "scan")
	l.run(labStrong(TaskSubject("").Messages(), l.deleted(0, "")))
	verdicts := l.run(labStrong(TaskSubject("b").Messages(), l.deleted(0, "b")))
	require.NoError(t, verdicts[0].Err)
	require.Equal(t, []string{"b"}, l.pulled)
	require.Equal(t, []string{"b"}, l.revoked)
}

// R9: a task whose queued message was taken out is not revoked, though two entries
// of one row lead to it (celery_id and args:0), in one batch or one after another.
func TestATaskTakenFromAQueueIsNotRevoked(t *testing.T) {
	for _, batches := range []int{1, 2} {
		t.Run(fmt.Sprintf("batches: %d", batches), func(t *testing.T) {
			l := newLab(t, both)
			l.queue("7", "scan", RowRef{0, "7"})
			task, row := labStrong(TaskSubject("7").Messages(), l.deleted(0, "7")), labStrong(RowSubject(0, "7").Messages(), l.deleted(0, "7"))
			if batches == 1 {
				verdicts := l.run(task, row)
				require.Equal(t, 1, l.sweeps)
				require.Equal(t, OutcomeRemoved, verdicts[0].Outcome)
				_, again := verdicts[1].Again()
				require.False(t, again, "%+v", verdicts[1])
				require.Equal(t, 1, total(verdicts[0].Removed)+total(verdicts[1].Removed))
			} else {
				l.run(task)
				l.run(row)
			}
			require.Equal(t, []string{"7"}, l.pulled)
			require.Empty(t, l.revoked)
		})
	}
}

// R9: what comes back because of one task does not revoke the others of its row.
func TestARowThatComesBackDoesNotRevokeWhatWasTaken(t *testing.T) {
	l := newLab(t, labArgued)
	for _, id := range []string{"a", "b", "c"} {
		l.queue(id, "scan", RowRef{0, "7"})
	}
	l.popped["b"] = true
	w := labStrong(RowSubject(0, "7").Messages(), l.deleted(0, "7"))
	verdicts := l.run(w)
	_, again := verdicts[0].Again()
	require.True(t, again)
	l.run(w)
	require.Equal(t, []string{"b"}, l.revoked, "the one that a worker has popped")
}

// R9: one message of a task was taken out, another popped: it may run.
func TestATaskOfTwoMessagesOneOfThemPoppedIsRevoked(t *testing.T) {
	l := newLab(t, scans)
	l.queue("a", "scan")
	l.queue("a", "scan")
	l.messages[1].Place.Tag = "tag-2"
	w := labStrong(TaskSubject("a").Messages(), l.deleted(0, "a"))
	taken := labPull{labMessages{l}, "tag-2"}
	l.Messages = taken
	verdicts := l.run(w)
	_, again := verdicts[0].Again()
	require.True(t, again)
	l.run(w)
	require.Equal(t, []string{"a"}, l.revoked)
}

// labPull: a worker has just popped the message with that tag.
type labPull struct {
	labMessages
	tag string
}

func (l labPull) Pull(ctx context.Context, epoch uint64, pulls []Pull) ([]RemoveStatus, error) {
	l.messages = slices.DeleteFunc(l.messages, func(m Message) bool { return m.Place.Tag == l.tag })
	return l.labMessages.Pull(ctx, epoch, pulls)
}

// R1: pages of revokes wait for their limit; by then the row may be there again.
func TestRowsAreReadAgainBeforeALatePage(t *testing.T) {
	l := newLab(t, scans)
	l.revokes.held = rate.NewLimiter(2*revokePage, revokePage) // the second page waits
	var works []*Work
	for i := range revokePage + revokePage/2 {
		id := fmt.Sprint(i)
		l.hold(id, "scan")
		works = append(works, labStrong(TaskSubject(id).Messages(), l.deleted(0, id)))
	}
	last := fmt.Sprint(len(works) - 1)
	first := 0
	l.onLook = func(n int) {
		if first = max(first, n); n > 1 {
			l.living[last] = true
		}
	}
	l.run(works...)
	require.NotContains(t, l.pulled, last)
	require.NotContains(t, l.revoked, last)
	require.Contains(t, l.pulled, "0")
}

// What one sweep cannot hold is looked for again; it is neither done nor revoked.
func TestWhatASweepDoesNotHoldComesBack(t *testing.T) {
	l := newLab(t, scans)
	big := strings.Repeat("x", maxFound*2/3)
	l.queue("a", "scan")
	l.queue("b", "scan")
	for i := range l.messages {
		l.messages[i].Place.Envelope += big
	}
	a, b := labStrong(TaskSubject("a").Messages(), l.deleted(0, "a")), labStrong(TaskSubject("b").Messages(), l.deleted(0, "b"))
	verdicts := l.run(a, b)
	_, again := verdicts[1].Again()
	require.True(t, again, "%+v", verdicts[1])
	l.run(b)
	require.Equal(t, []string{"a", "b"}, l.pulled)
	require.Empty(t, l.revoked)

	l.queue("c", "scan")
	l.messages[0].Place.Envelope += big + big
	l.run(labStrong(TaskSubject("c").Messages(), l.deleted(0, "c")))
	require.Contains(t, l.pulled, "c", "one that is larger than all that a sweep may hold")
}

// A work that waits and comes back is one orphan for the guard, not many.
func TestTheGuardCountsAnOrphanOnce(t *testing.T) {
	l := newLab(t, named)
	l.queue("a", "scan")
	bare := l.messages[0].Bare()
	l.messages = nil
	w := &Work{Subject: TaskSubject("a").Messages(), Trigger: ByEvent, Messages: []*Message{bare}}
	w.noticeMessages([]Artifact{messageArtifact(bare)}, time.Now().Add(-time.Minute))
	w.Fence = NewFence(time.Now(), Running{})
	w.Fence.Observe(Running{Asked: time.Now()})
	l.Messages = neverPulled{labMessages{l}, *bare}
	for range 2 * policy.MinSample {
		verdicts := l.run(w)
		require.Nil(t, l.Guard.Tripped(), "%+v", verdicts[0])
	}
}

// neverPulled: a worker is always faster.
type neverPulled struct {
	labMessages
	message Message
}

func (l neverPulled) Sweep(_ context.Context, yield func([]Message) error) error {
	return yield([]Message{l.message})
}

func (l neverPulled) Pull(_ context.Context, _ uint64, pulls []Pull) ([]RemoveStatus, error) {
	return slices.Repeat([]RemoveStatus{Changed}, len(pulls)), nil
}

// Looks hold a bounded part of large messages.
func TestLooksLetLargeMessagesGo(t *testing.T) {
	l := newLab(t, scans)
	held, most := 0, 0
	l.onLook = func(int) { held = 0 }
	big := strings.Repeat("x", 1<<20)
	err := func() error {
		_, err := l.LookAtMessages(t.Context(), func(_ context.Context, yield func([]Message) error) error {
			for i := range 100 {
				held += len(big)
				most = max(most, held)
				if err := yield([]Message{{ID: fmt.Sprint(i), Name: "scan", Place: Place{Tag: fmt.Sprint(i), Envelope: big}}}); err != nil {
					return err
				}
			}
			return nil
		}, false, func(context.Context, []Suspect) error { return nil })
		return err
	}()
	require.NoError(t, err)
	require.LessOrEqual(t, most, 16<<20)
}

// Messages of one task that name one row and another by turns do not fill what is
// remembered of a row.
func TestSeenHoldsATaskOfARowOnce(t *testing.T) {
	s := NewSeen(100, time.Hour, time.Now)
	for range 2 * maxTasksOfRow {
		s.Note("a", "scan", []RowRef{{0, "1"}})
		s.Note("a", "scan", []RowRef{{0, "1"}, {0, "2"}})
	}
	s.Note("b", "scan", []RowRef{{0, "1"}})
	require.Equal(t, []string{"a", "b"}, s.TasksOf(RowRef{0, "1"}))
	require.Equal(t, []string{"a"}, s.TasksOf(RowRef{0, "2"}))
}

// Where nothing tells of new messages, all are looked at each second: those of living
// rows must not outweigh orphans, which are counted once.
func TestTheGuardCountsALivingMessageOnce(t *testing.T) {
	l := newLab(t, named)
	for i := range 20 {
		id := fmt.Sprint(i)
		l.queue(id, "scan")
		l.living[id] = true
	}
	for range 100 {
		_, err := l.LookAtMessages(t.Context(), labMessages{l}.Sweep, false, func(context.Context, []Suspect) error { return nil })
		require.NoError(t, err)
	}
	require.True(t, l.Guard.ObserveEvents(60, 60), "60 of 80 tasks look orphaned")
}

// A row whose key is a text may be a UUID in any spelling, which is then its task's.
func TestAMessageIsLookedUpAsItIsWritten(t *testing.T) {
	const id = "0A1b2C3d-0000-4000-8000-00000000002a"
	l := newLab(t, named)
	l.living[id] = true
	l.queue(id, "scan")
	var suspects []Suspect
	_, err := l.LookAtMessages(t.Context(), labMessages{l}.Sweep, false, func(_ context.Context, s []Suspect) error {
		suspects = append(suspects, s...)
		return nil
	})
	require.NoError(t, err)
	require.Empty(t, suspects)

	// It is inserted after the first look.
	delete(l.living, id)
	_, err = l.LookAtMessages(t.Context(), labMessages{l}.Sweep, false, func(_ context.Context, s []Suspect) error {
		suspects = append(suspects, s...)
		return nil
	})
	require.NoError(t, err)
	require.Len(t, suspects, 1)
	l.living[id] = true
	verdicts := l.run(&Work{Subject: suspects[0].Subject, Spelling: suspects[0].Spelling, Trigger: ByEvent, Messages: []*Message{suspects[0].Message}})
	require.Equal(t, OutcomeKept, verdicts[0].Outcome)
}

// While a transaction is open that may be inserting the row again, nothing is swept:
// it may be open for very long.
func TestWhatWaitsForTransactionsDoesNotSweep(t *testing.T) {
	l := newLab(t, both)
	l.running = []Transaction{{ID: "3/7"}}
	l.queue("7", "scan", RowRef{0, "7"})
	late := l.deleted(0, "7")
	late.Commit.Time = time.Now().Add(-time.Minute)
	task, row := labStrong(TaskSubject("7").Messages(), late), labStrong(RowSubject(0, "7").Messages(), late)
	unseen := labStrong(TaskSubject("8").Messages(), late)
	for range 10 {
		for _, v := range l.run(task, row, unseen) {
			require.Equal(t, HeldByTransactions, v.HeldBy, "%+v", v)
		}
	}
	require.Equal(t, 1, l.sweeps)
	l.running = nil
	for _, v := range l.run(task, row, unseen) {
		_, again := v.Again()
		require.False(t, again, "%+v", v)
	}
	require.Equal(t, []string{"7"}, l.pulled)
	require.Equal(t, []string{"8"}, l.revoked)
}

// R1: a revoke that could not be published is not published later for a row that is
// there again by then: its task may have the same id.
func TestALateRevokeIsOfNoLivingRow(t *testing.T) {
	l := newLab(t, scans)
	l.hold("a", "scan")
	l.hold("b", "scan")
	l.Messages = mute{labMessages{l}}
	a, b := labStrong(TaskSubject("a").Messages(), l.deleted(0, "a")), labStrong(TaskSubject("b").Messages(), l.deleted(0, "b"))
	verdicts := l.run(a, b)
	require.Error(t, verdicts[0].Err)
	require.Empty(t, l.pulled)
	l.Messages = labMessages{l}
	l.living["a"] = true
	l.run(a, b)
	require.Equal(t, []string{"b"}, l.revoked)
	require.Equal(t, []string{"b"}, l.pulled)
}

// mute: revokes fail.
type mute struct{ labMessages }

func (mute) Revoke(context.Context, []string) (int, int, error) { return 0, 0, errStore }

// A guard that trips because living messages are long ago says so, too.
func TestATripByTimeIsLogged(t *testing.T) {
	l := newLab(t, named)
	var log strings.Builder
	l.Reconciler.Log = slog.New(slog.NewTextHandler(&log, nil))
	now := time.Now()
	l.Guard = NewGuard(policy, nil, func() time.Time { return now })
	require.False(t, l.Guard.ObserveEvents(60, 0))
	now = now.Add(guardWindow / 2)
	require.False(t, l.Guard.ObserveEvents(50, 50))
	now = now.Add(guardWindow * 3 / 5)
	l.queue("1", "scan")
	l.living["1"] = true
	_, err := l.LookAtMessages(t.Context(), labMessages{l}.Sweep, false, func(context.Context, []Suspect) error { return nil })
	require.NoError(t, err)
	require.NotNil(t, l.Guard.Tripped())
	require.Contains(t, log.String(), "the guard has tripped")
}
