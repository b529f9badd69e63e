package watcher

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Status is what the daemon tells of itself.
type Status struct {
	// Role is leader, standby or starting.
	Role  string `json:"role"`
	Epoch uint64 `json:"epoch,omitempty"`
	// Holder is who holds the slot, where this copy stands by.
	Holder string    `json:"holder,omitempty"`
	Since  time.Time `json:"since"`
	// Sources are the watched stores.
	Sources map[string]Health `json:"sources"`
	// Queue is of tasks and rows, Messages of their messages.
	Queue    Stats `json:"queue"`
	Messages Stats `json:"messages"`
	// Oldest is the age in seconds of what waits longest: in the queues, in front of a
	// stream that stands still, or since before a term that has ended.
	Oldest float64 `json:"oldest_seconds"`
	// Gaps are the newest gaps of each source.
	Gaps map[string]Gap `json:"gaps,omitempty"`
	// Failing is why reconciliations fail, "" while they do not.
	Failing string `json:"failing,omitempty"`
	// Ended is why the last term ended.
	Ended string `json:"last_term_ended,omitempty"`
	// Stalled are loops that hang: see Pulse.
	Stalled []Stall `json:"stalled,omitempty"`
}

// Gap is when and why events of a source may have been missed.
type Gap struct {
	Count  int       `json:"count"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// The roles.
const (
	RoleStarting = "starting"
	RoleLeader   = "leader"
	RoleStandby  = "standby"
)

// state is the mutable part of the controller.
type state struct {
	mu         sync.Mutex
	role       string
	tookOver   bool // the slot, from another copy
	epoch      uint64
	holder     string
	since      time.Time
	health     map[string]Health
	gaps       map[string]Gap
	queue      *Queue
	messages   *Queue
	subscribed bool
	term       reconciler.Term // while role is RoleLeader
	// left is since when something waited that the last term has left, zero for nothing.
	left  time.Time
	fails string
	ended string
}

// hold: the slot is held, and these fill, though this copy does not lead yet. It does not
// stand by any more: while Redis is away it cannot claim the lead, and nobody else can.
func (s *state) hold(queue, messages *Queue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tookOver = s.role == RoleStandby; s.tookOver {
		s.left = s.waiting(time.Now())
		s.role, s.holder, s.since = RoleStarting, "", time.Now()
	}
	s.queue, s.messages = queue, messages
}

func (s *state) lead(term reconciler.Term) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.term = term
	s.role, s.epoch, s.holder, s.since, s.fails = RoleLeader, term.Epoch, "", time.Now(), ""
}

// caughtUp: a probe has come through the whole log, and so what the last term has left.
func (s *state) caughtUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = time.Time{}
}

// stats are of the queues, zero where there are none; the lock is held.
func (s *state) stats() (queue, messages Stats) {
	if s.queue == nil {
		return Stats{}, Stats{}
	}
	return s.queue.Stats(), s.messages.Stats()
}

// ownHolder is how long the holder of the slot may be our own connection of before, which
// the server has not given up; later it is another copy, and what waits is its business.
const ownHolder = 15 * time.Second

// waiting is since when something waits, zero for nothing; the lock is held.
func (s *state) waiting(now time.Time, queues ...Stats) time.Time {
	since := s.left
	if s.role == RoleStandby && now.Sub(s.since) > ownHolder {
		since = time.Time{}
	}
	earlier := func(t time.Time) {
		if !t.IsZero() && (since.IsZero() || t.Before(since)) {
			since = t
		}
	}
	for _, q := range queues {
		if q.Oldest > 0 {
			earlier(now.Add(-time.Duration(q.Oldest * float64(time.Second))))
		}
	}
	for _, h := range s.health {
		earlier(h.StuckSince)
	}
	return since
}

// standby tells whether that is new.
func (s *state) standby(holder string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := s.role != RoleStandby || s.holder != holder
	s.role, s.holder, s.queue = RoleStandby, holder, nil
	if fresh {
		s.since = time.Now()
	}
	return fresh
}

func (s *state) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	queue, messages := s.stats()
	s.left = s.waiting(time.Now(), queue, messages)
	s.role, s.queue, s.subscribed, s.since = RoleStarting, nil, false, time.Now()
	for source, h := range s.health {
		h.Connected, h.StuckSince = false, time.Time{}
		s.health[source] = h
	}
	if err != nil {
		s.ended = err.Error()
	}
}

func (s *state) subscribe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribed = true
}

func (s *state) report(source string, h Health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health[source] = h
}

// connected tells whether events of a source flow.
func (s *state) connected(source string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health[source].Connected
}

func (s *state) gap(source, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gaps == nil {
		s.gaps = map[string]Gap{}
	}
	s.gaps[source] = Gap{Count: s.gaps[source].Count + 1, Reason: reason, At: time.Now()}
}

func (s *state) failing(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = ""
	if err != nil {
		s.fails = err.Error()
	}
}

// Term is the one in which this copy leads, ok is false where it does not.
func (c *Controller) Term() (term reconciler.Term, ok bool) {
	s := &c.state
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.term, s.role == RoleLeader
}

// Status is the state now.
func (c *Controller) Status() Status {
	s := &c.state
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		Role: s.role, Epoch: s.epoch, Holder: s.holder, Since: s.since,
		Sources: maps.Clone(s.health), Gaps: maps.Clone(s.gaps), Failing: s.fails, Ended: s.ended,
	}
	if st.Role == "" {
		st.Role = RoleStarting
	}
	st.Queue, st.Messages = s.stats()
	now := time.Now()
	st.Stalled = c.Pulse.Stalled(now)
	if since := s.waiting(now, st.Queue, st.Messages); !since.IsZero() {
		st.Oldest = now.Sub(since).Seconds()
	}
	return st
}

// takeOver is for how long a copy that has stood by, and holds the slot now, is ready while
// it claims the lead, and then while it subscribes: in a rolling update there is no other that would be.
const takeOver = 10 * time.Second

// Ready tells whether the sources are subscribed, or the copy stands by, and why not.
func (c *Controller) Ready() (ok bool, why string) {
	s := &c.state
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.role == RoleStandby:
		return true, "standby: " + s.holder + " leads"
	case s.role != RoleLeader && s.queue != nil:
		return s.tookOver && time.Since(s.since) < takeOver, "the replication slot is held, and the lead not claimed in Redis yet"
	case s.role != RoleLeader:
		why = "the replication slot is not held yet"
		if s.ended != "" {
			why += ": " + s.ended
		}
		return false, why
	}
	var away []string
	if !s.subscribed {
		away = append(away, "not subscribed to Redis yet")
	}
	for _, source := range slices.Sorted(maps.Keys(s.health)) {
		if h := s.health[source]; h.Mode == "" { // what is only late or silent is for alerts
			away = append(away, source+" is not subscribed: "+h.Err)
		}
	}
	if len(away) > 0 && s.tookOver && time.Since(s.since) < takeOver {
		return true, "leader: " + strings.Join(away, "; ")
	}
	if len(away) > 0 {
		return false, strings.Join(away, "; ")
	}
	return true, "leader"
}
