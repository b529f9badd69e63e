package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// Options say what to watch, and where.
type Options struct {
	// URL is a postgres:// connection string, as pgx takes it.
	URL string
	// Slot and Publication are the names of the two things that we own there.
	Slot, Publication string
	// MaxWAL is how many bytes of log the slot may hold back before deletions are
	// given up for a gap; 0 for no limit but the server's own.
	MaxWAL   int64
	Bindings []reconciler.Binding
	Log      *slog.Logger
	// Pulse watches over the loops of a session; nil for nobody.
	Pulse *watcher.Pulse
	// CanaryEvery is the time between two probes; 0 for 10 s.
	CanaryEvery time.Duration
	// MonitorEvery is the time between two looks at slot and catalogs; 0 for 5 s.
	MonitorEvery time.Duration
}

// Identity is what tells one database from another.
type Identity struct {
	SystemID string
	Timeline int32
	Database string
}

// Source watches the bound tables of one database. It is a watcher.Leadership.
type Source struct {
	opts Options
	log  *slog.Logger

	mu       sync.Mutex
	identity Identity
	// hadSlot: the slot was there when it was last looked for, or before.
	hadSlot bool
	// warned are the findings that were logged, so that each is logged once.
	warned map[string]bool
	stuck  stuck
}

// stuck is where the stream could not be decoded, and how often in a row.
type stuck struct {
	at    reconciler.LSN
	times int
}

// stuckLimit is after how many failures at one position the slot is given up: a
// publication that was dropped for a while, for one, can never be decoded.
const stuckLimit = 3

var _ watcher.Leadership = (*Source)(nil)

// New is a source that has not connected yet.
func New(opts Options) *Source {
	if opts.CanaryEvery == 0 {
		opts.CanaryEvery = 10 * time.Second
	}
	if opts.MonitorEvery == 0 {
		opts.MonitorEvery = 5 * time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{opts: opts, log: opts.Log, warned: map[string]bool{}}
}

// Identity is that of the last session; zero before the first.
func (s *Source) Identity() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity
}

// Acquire checks the server, creates what is missing and takes the slot. While
// another copy has it, it calls standby about once a second. Errors that wrap
// reconciler.ErrUnreachable may pass; a reconciler.Hinted must be mended first.
func (s *Source) Acquire(ctx context.Context, standby func(holder string)) (watcher.Session, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	sess, err := s.acquire(ctx, conn, standby)
	if err != nil {
		closeConn(conn)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, unreachable("acquire slot "+s.opts.Slot, err)
	}
	return sess, nil
}

func (s *Source) acquire(ctx context.Context, conn *pgx.Conn, standby func(string)) (*Session, error) {
	if err := bounded(ctx, func(ctx context.Context) error { return s.preflight(ctx, conn) }); err != nil {
		return nil, err
	}
	gaps := map[string]bool{}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		sess, err := s.try(ctx, conn, gaps)
		if err == nil {
			return sess, nil
		}
		var used *slotInUse
		if !errors.As(err, &used) {
			return nil, err
		}
		standby(used.holder)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait*3/4 + rand.N(wait/2)): //nolint:gosec // jitter
		}
	}
}

// slotInUse: another walsender holds the slot.
type slotInUse struct{ holder string }

func (e *slotInUse) Error() string { return "replication slot is in use by " + e.holder }

// try takes the slot if it is free now. gaps collects what was lost on the way.
func (s *Source) try(ctx context.Context, conn *pgx.Conn, gaps map[string]bool) (*Session, error) {
	slot, err := s.lookForSlot(ctx, conn)
	if err != nil {
		return nil, err
	}
	if slot.active {
		return nil, &slotInUse{slot.holder}
	}
	if reason := s.hopeless(slot); reason != "" {
		s.log.ErrorContext(ctx, "replication slot cannot be read on; it is created anew",
			slog.String(keySlot, s.opts.Slot), slog.String(keyReason, reason))
		if err := s.dropSlot(ctx, conn); err != nil {
			return nil, err
		}
		gaps[reason], slot = true, slotState{}
	} else if !slot.exists && s.slotKnown(false) {
		gaps["slot recreated"] = true
	}
	if err := s.setup(ctx, conn); err != nil {
		return nil, err
	}
	if !slot.exists {
		if slot, err = s.lookForSlot(ctx, conn); err != nil {
			return nil, err
		}
	}
	var seen catalog
	server := &clock{}
	err = bounded(ctx, func(ctx context.Context) (err error) {
		if seen, err = s.readCatalog(ctx, conn); err != nil {
			return err
		}
		return server.measure(ctx, conn)
	})
	if err != nil {
		return nil, err
	}
	stream, id, err := s.startReplication(ctx)
	if err != nil {
		return nil, err
	}
	for _, reason := range s.setIdentity(id) {
		gaps[reason] = true
	}
	return newSession(s, conn, stream, slot.confirmed, seen, gaps, server), nil
}

// lookForSlot is readSlot within bounds: a standby asks again and again.
func (s *Source) lookForSlot(ctx context.Context, conn *pgx.Conn) (slot slotState, err error) {
	err = bounded(ctx, func(ctx context.Context) (err error) {
		slot, err = s.readSlot(ctx, conn)
		return err
	})
	s.slotKnown(slot.exists)
	return slot, err
}

// slotKnown notes that the slot is there, and tells whether it ever was: by another copy's
// work too, and on the server before this one.
func (s *Source) slotKnown(there bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hadSlot = s.hadSlot || there
	return s.hadSlot
}

// hopeless is why an existing slot has to be given up, or "".
func (s *Source) hopeless(slot slotState) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case slot.exists && slot.walStatus == "lost":
		return "slot lost"
	case slot.exists && s.stuck.times >= stuckLimit && s.stuck.at == slot.confirmed:
		s.stuck = stuck{}
		return "slot undecodable"
	}
	return ""
}

// undecodable counts a failure of decoding with confirmed as the last position.
func (s *Source) undecodable(confirmed reconciler.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stuck.at != confirmed {
		s.stuck = stuck{at: confirmed}
	}
	s.stuck.times++
}

// setIdentity remembers it, and says what has changed since the last session.
func (s *Source) setIdentity(id Identity) (changed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.identity
	s.identity = id
	switch {
	case old == Identity{}:
	case old.SystemID != id.SystemID:
		changed = append(changed, "system id changed")
	case old.Timeline != id.Timeline:
		changed = append(changed, "timeline changed")
	}
	return changed
}

// preflight fails with the first fatal finding, and logs each other one once.
func (s *Source) preflight(ctx context.Context, conn *pgx.Conn) error {
	findings, err := s.check(ctx, conn)
	if err != nil {
		return err
	}
	var fatal []error
	for _, f := range findings {
		switch {
		case f.OK:
		case f.Fatal:
			fatal = append(fatal, reconciler.Hint(fmt.Errorf("%s: %s", f.Name, f.Detail), f.Fix))
		case !f.Mends:
			s.warn(ctx, f)
		}
	}
	return errors.Join(fatal...)
}

func (s *Source) warn(ctx context.Context, f Finding) {
	s.mu.Lock()
	known := s.warned[f.Name+f.Detail]
	s.warned[f.Name+f.Detail] = true
	s.mu.Unlock()
	if !known {
		s.log.WarnContext(ctx, "precondition not met", slog.String(keyCheck, f.Name), slog.String(keyReason, f.Detail), slog.String(keyFix, f.Fix))
	}
}
