package watcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// looker is the judge and the broker's lists: it writes down what is looked at, and when.
type looker struct {
	began time.Time
	// takes is how long each look takes.
	takes time.Duration
	// deleted are what the next passes for deleted rows find.
	deleted []int

	mu    sync.Mutex
	log   []string
	fails int // so many of the next looks fail
	purge atomic.Int64
	// verdicts are those of the next batch.
	verdicts []reconciler.Verdict
	works    [][]*reconciler.Work
}

var errAway = errors.New("away")

func (l *looker) note(what string) error {
	time.Sleep(l.takes)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails > 0 {
		l.fails--
		what += "!"
	}
	l.log = append(l.log, fmt.Sprint(time.Since(l.began)-l.takes, " ", what))
	if strings.HasSuffix(what, "!") {
		return errAway
	}
	return nil
}

func (l *looker) Sweep(context.Context, func([]reconciler.Message) error) error {
	return l.note("sweep")
}

func (l *looker) Arrivals(_ context.Context, key string, _ func([]reconciler.Message) error) error {
	return l.note("arrivals " + key)
}

func (l *looker) PurgeTombstones(context.Context) error { l.purge.Add(1); return nil }
func (l *looker) Counts() (unreadable, tombstones int64) {
	return 0, 0
}

func (l *looker) LookAtMessages(ctx context.Context, scan reconciler.MessageScan, onlyDeleted bool, _ func(context.Context, []reconciler.Suspect) error) (int, error) {
	err := scan(ctx, func([]reconciler.Message) error { return nil })
	l.mu.Lock()
	defer l.mu.Unlock()
	if !onlyDeleted {
		return 0, err
	}
	l.log[len(l.log)-1] += " deleted"
	if len(l.deleted) == 0 {
		return 0, err
	}
	n := l.deleted[0]
	l.deleted = l.deleted[1:]
	return n, err
}

func (l *looker) Reconcile(_ context.Context, _ reconciler.Term, works []*reconciler.Work) ([]reconciler.Verdict, error) {
	l.works = append(l.works, works)
	return l.verdicts, nil
}

func (l *looker) Resync(context.Context, reconciler.Term, string, bool, func(context.Context, []reconciler.Suspect) error) (bool, error) {
	return false, nil
}
func (l *looker) BeginTerm() {}

func (l *looker) seen() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.log)
}

func newTestTerm(l *looker, limit int) *term {
	c, err := New(Options{
		Judge: l, Queues: l, FindQueues: func(context.Context) error { return l.note("find") },
		Log: slog.New(slog.DiscardHandler), Remember: func(reconciler.Subject) {},
	})
	if err != nil {
		panic(err)
	}
	room := newBell()
	return &term{
		c: c, queue: newQueue(limit, room), messages: newQueue(limit, room), lists: newLists(),
		reasons: make(chan string, 1), deleted: make(chan struct{}, 1),
	}
}

// looking runs the loop for a while, in a bubble whose clock stands still but for us.
func looking(t *testing.T, connected bool, l *looker, f func(t *testing.T, term *term)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l.began = time.Now()
		term := newTestTerm(l, 10)
		term.Report(SourceBroker, Health{Connected: connected})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- term.look(ctx) }()
		synctest.Wait()
		f(t, term)
		cancel()
		require.NoError(t, <-done)
	})
}

func newList(key string) Event {
	return Event{Subject: reconciler.Subject{Kind: reconciler.QueueList, ID: key}, Trigger: reconciler.ByEvent}
}

// After messages of deleted rows were taken, all is looked at again until two passes
// in a row, a second apart at least, have found none; with longer pauses while they do.
func TestLooksAgainAfterADeletion(t *testing.T) {
	for _, c := range []struct {
		name    string
		deleted []int
		want    []string
	}{
		{"clean", nil, []string{"1s", "2s"}},
		{"one more", []int{1}, []string{"1s", "3s", "5s"}},
		{"again and again", []int{3, 0, 1, 0, 0}, []string{"1s", "3s", "5s", "9s", "13s"}},
		{"never clean", []int{1, 1, 1, 1, 1, 1, 1, 1}, []string{"1s", "3s", "7s", "15s", "31s", "1m1s", "1m31s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &looker{deleted: c.deleted}
			looking(t, true, l, func(t *testing.T, term *term) {
				term.noteDeleted()
				term.noteDeleted()
				time.Sleep(31*time.Second + 500*time.Millisecond)
				if c.name == "never clean" {
					time.Sleep(time.Minute + 500*time.Millisecond)
				}
				var want []string
				for _, at := range c.want {
					want = append(want, at+" sweep deleted")
				}
				got := l.seen()
				require.Equal(t, want, got[:min(len(want), len(got))])
				require.Len(t, got, len(want))
			})
		})
	}
	t.Run("another deletion begins the count anew, and puts nothing off", func(t *testing.T) {
		l := &looker{}
		looking(t, true, l, func(t *testing.T, term *term) {
			term.noteDeleted()
			time.Sleep(1500 * time.Millisecond)
			term.noteDeleted()
			time.Sleep(10 * time.Second)
			require.Equal(t, []string{"1s sweep deleted", "2s sweep deleted", "3s sweep deleted"}, l.seen())
		})
	})
}

// Without a reason all is looked at every half minute; a long look is followed by a
// longer rest.
func TestWatchesForRetries(t *testing.T) {
	l := &looker{}
	looking(t, true, l, func(t *testing.T, _ *term) {
		time.Sleep(61 * time.Second)
		require.Equal(t, []string{"30s sweep deleted", "1m0s sweep deleted"}, l.seen())
		require.GreaterOrEqual(t, l.purge.Load(), int64(58))
		require.LessOrEqual(t, l.purge.Load(), int64(61))
	})
	l = &looker{takes: 20 * time.Second}
	looking(t, true, l, func(t *testing.T, _ *term) {
		time.Sleep(4 * time.Minute)
		require.Equal(t, []string{"30s sweep deleted", "2m10s sweep deleted"}, l.seen())
	})
}

// While nothing tells of new messages, all are compared with the rows.
func TestPollsWithoutEvents(t *testing.T) {
	l := &looker{}
	looking(t, false, l, func(t *testing.T, term *term) {
		time.Sleep(3500 * time.Millisecond)
		require.Equal(t, []string{"1s find", "1s sweep", "2s sweep", "3s sweep"}, l.seen())
		term.Report(SourceBroker, Health{Connected: true})
		time.Sleep(20 * time.Second)
		require.Len(t, l.seen(), 4, "events flow")
		term.Report(SourceBroker, Health{})
		time.Sleep(15 * time.Second)
		got := l.seen()
		require.Equal(t, 2, strings.Count(strings.Join(got, ","), "find"))
		require.Equal(t, 1, strings.Count(strings.Join(got, ","), "deleted"), "the watch goes on")
		require.GreaterOrEqual(t, len(got), 4+15)
	})
	l = &looker{takes: time.Second}
	looking(t, false, l, func(t *testing.T, _ *term) {
		time.Sleep(18 * time.Second)
		// 1 s to find and 1 s to sweep, then a rest of four times that.
		require.Equal(t, []string{"1s find", "2s sweep", "11s sweep", "16s sweep"}, l.seen())
	})
	l = &looker{fails: 2}
	looking(t, false, l, func(t *testing.T, _ *term) {
		time.Sleep(5 * time.Second)
		got := l.seen()
		require.Equal(t, "1s find!", got[0])
		require.Contains(t, got[1], "find!", "queues that were not found are searched for again")
		require.Contains(t, got[2], "find")
		require.Contains(t, got[3], "sweep")
	})
}

// What comes to a list is looked at at once, and then together.
func TestLooksAtArrivals(t *testing.T) {
	l := &looker{}
	looking(t, true, l, func(t *testing.T, term *term) {
		time.Sleep(100 * time.Millisecond)
		for range 100 {
			require.True(t, term.Offer(newList("celery")))
		}
		synctest.Wait()
		require.Equal(t, []string{"100ms arrivals celery"}, l.seen())
		for range 50 {
			term.Offer(newList("celery"))
			term.Offer(newList("other"))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		var at []string
		last := map[string]string{}
		for _, entry := range l.seen() {
			when, what, _ := strings.Cut(entry, " ")
			at, last[what] = append(at, when), when
		}
		at = slices.Compact(at)
		require.Equal(t, []string{"100ms", "150ms", "200ms"}, at)
		require.Equal(t, map[string]string{"arrivals celery": "200ms", "arrivals other": "200ms"}, last, "none is lost")
		require.Zero(t, term.queue.Stats().Pending)
	})
}

// A list that could not be read is read again, and so are those behind it.
func TestArrivalsThatFail(t *testing.T) {
	l := &looker{fails: 2}
	looking(t, true, l, func(t *testing.T, term *term) {
		term.Offer(newList("a"))
		term.Offer(newList("b"))
		time.Sleep(5 * time.Second)
		got := l.seen()
		require.Len(t, got, 4)
		read := map[string]bool{}
		for i, entry := range got {
			at, what, _ := strings.Cut(entry, " ")
			require.Equal(t, i < 2, strings.HasSuffix(what, "!"), "%v", got)
			after, err := time.ParseDuration(at)
			require.NoError(t, err)
			require.GreaterOrEqual(t, after, time.Duration(min(i, 2))*time.Second, "a store that is away is left alone for a while")
			if i >= 2 {
				read[what] = true
			}
		}
		require.Equal(t, map[string]bool{"arrivals a": true, "arrivals b": true}, read)
	})
}

// Only what was done for a deletion leads to looks again.
func TestNotesDeletions(t *testing.T) {
	l := &looker{verdicts: []reconciler.Verdict{{Decision: reconciler.Decision{Outcome: reconciler.OutcomeRemoved}}}}
	term := newTestTerm(l, 10)
	for _, c := range []struct {
		queue *Queue
		event Event
		noted bool
	}{
		{term.messages, messagesOf(hint("a")), false},
		{term.messages, messagesOf(deletion("a", 0, 1, nil)), true},
		{term.queue, deletion("a", 0, 1, nil), false},
	} {
		require.True(t, term.Offer(c.event))
		_, entries := takeIDs(t, c.queue, 10)
		require.NoError(t, term.reconcile(t.Context(), c.queue, entries))
		require.Equal(t, c.noted, len(term.deleted) == 1)
		select {
		case <-term.deleted:
		default:
		}
	}
}
