package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// flushEvery is the least time between two statuses that only tell progress.
const flushEvery = 100 * time.Millisecond

// What to do about the budget of WAL, as the monitor has found.
const (
	withinBudget int32 = iota
	// releaseWAL: confirm what was read, finished or not.
	releaseWAL
	// dropDeletes: releasing was not enough, since the queue stays full.
	dropDeletes
)

// Session is the hold of the slot: from Acquire until Run returns.
type Session struct {
	src  *Source
	opts Options
	log  *slog.Logger
	// conn is the monitor's, net and front are the owner's.
	conn  *pgx.Conn
	net   net.Conn
	front *pgproto3.Frontend

	// start is what the slot had confirmed when the session began.
	start  reconciler.LSN
	ledger *ledger
	seen   catalog
	gaps   map[string]bool
	token  string
	clock  *clock

	// position is how far all has been offered; the owner writes it.
	position atomic.Uint64
	// flushDue: the ledger has moved since the last status.
	flushDue atomic.Bool
	quiet    atomic.Bool
	budget   atomic.Int32
	// blocked: the owner waits for room in the queue.
	blocked atomic.Bool
	// received counts messages, canary is the newest that came back (its Unix time
	// in ns): what the monitor knows a silent stream by.
	received, canary atomic.Int64

	// woken and wakeups interrupt the owner's read and its waiting.
	woken   atomic.Bool
	wakeups chan struct{}

	owner
}

// owner is the state of the goroutine that owns the replication connection.
type owner struct {
	sink       watcher.Sink
	decoder    *decoder
	open       *commit
	commit     *reconciler.Commit
	shared     bool // an event with commit was offered
	seenAt     time.Time
	lastStatus time.Time
	dropped    int
	looks      []reconciler.Look // of one row; kept for its memory
}

var _ watcher.Session = (*Session)(nil)

func newSession(src *Source, conn *pgx.Conn, stream *pgconn.HijackedConn, confirmed reconciler.LSN, seen catalog, gaps map[string]bool, c *clock) *Session {
	s := &Session{
		src: src, opts: src.opts, log: src.log,
		conn: conn, net: stream.Conn, front: stream.Frontend,
		start: confirmed, seen: seen, gaps: gaps, clock: c,
		token:   fmt.Sprintf("%016x", rand.Uint64()), //nolint:gosec // not a secret
		wakeups: make(chan struct{}, 1),
	}
	s.decoder = newDecoder(src.opts.Bindings)
	s.ledger = newLedger(confirmed, s.flushSoon)
	s.position.Store(uint64(confirmed))
	s.lastStatus = time.Now()
	return s
}

// Position is how far the log has been read and handed to the sink.
func (s *Session) Position() reconciler.LSN { return reconciler.LSN(s.position.Load()) }

// Quiesce stops reading for good; what has been read can still be confirmed.
func (s *Session) Quiesce() {
	s.quiet.Store(true)
	s.wake()
}

// wake makes the owner look around at once.
func (s *Session) wake() {
	select {
	case s.wakeups <- struct{}{}:
	default:
	}
	if !s.woken.Swap(true) {
		_ = s.net.SetReadDeadline(time.Unix(1, 0))
	}
}

// flushSoon is called when the ledger has moved.
func (s *Session) flushSoon() {
	if !s.flushDue.Swap(true) {
		s.wake()
	}
}

// Run streams into sink until ctx ends, when it confirms what is done and closes
// with nil, or until the session is lost.
func (s *Session) Run(ctx context.Context, sink watcher.Sink) error {
	defer closeConn(s.conn)
	defer s.net.Close()
	s.sink = sink
	for reason := range s.gaps {
		sink.Gap(watcher.SourcePostgres, reason)
	}

	run, cancel := context.WithCancelCause(ctx)
	defer context.AfterFunc(run, s.wake)()
	var lost atomic.Bool
	monitored := make(chan struct{})
	go func() {
		defer close(monitored)
		if err := s.monitor(run, sink); err != nil {
			// Closed before anything else: a server that shuts down waits for it.
			lost.Store(true)
			_ = s.net.Close()
			cancel(err)
		}
	}()

	err := s.stream(run)
	if ctx.Err() != nil && !lost.Load() {
		s.finish()
		err = nil
	} else if cause := context.Cause(run); cause != nil {
		err = cause
	}
	cancel(err)
	<-monitored
	if err == nil {
		sink.Report(watcher.SourcePostgres, watcher.Health{Position: s.Position(), SafeWAL: -1})
		return nil
	}
	if !lost.Load() && undecodable(err) {
		s.src.undecodable(s.start)
	}
	err = unreachable("replication", err)
	sink.Report(watcher.SourcePostgres, watcher.Health{Err: err.Error(), Position: s.Position(), SafeWAL: -1})
	return err
}

// undecodable tells whether the same error is to be expected at the same place.
func undecodable(err error) bool {
	var pgErr *pgconn.PgError
	return errors.Is(err, errDecode) || errors.As(err, &pgErr) && !passing(pgErr.Code)
}

// finish confirms what is done and waits for the server to hang up, so that the
// slot is free for the next.
func (s *Session) finish() {
	s.woken.Store(true) // so that wake leaves the deadline alone
	if s.status() != nil {
		return
	}
	_, err := s.net.Write([]byte{'X', 0, 0, 0, 4})
	if err != nil {
		return
	}
	_ = s.net.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, s.net)
}

// errQuiet: Quiesce was called.
var errQuiet = errors.New("quiesced")

// stream is the owner's loop. It returns when run has ended, or with an error.
func (s *Session) stream(run context.Context) error {
	run, leave := s.opts.Pulse.Enter(run, "replication stream", watcher.SourceLimit)
	defer leave()
	err := s.read(run)
	if !errors.Is(err, errQuiet) {
		return err
	}
	for {
		if err := s.await(run, nil); err != nil {
			return err
		}
	}
}

func (s *Session) read(run context.Context) error {
	if err := s.tend(run); err != nil {
		return err
	}
	for {
		msg, err := s.front.Receive()
		if err == nil {
			s.received.Add(1)
			err = s.receive(run, msg)
		}
		if err != nil && isTimeout(err) {
			err = s.tend(run)
		}
		if err != nil {
			return err
		}
	}
}

func (s *Session) receive(run context.Context, msg pgproto3.BackendMessage) error {
	switch msg := msg.(type) {
	case *pgproto3.CopyData:
		return s.copyData(run, msg.Data)
	case *pgproto3.ErrorResponse:
		return pgconn.ErrorResponseToPgError(msg)
	case *pgproto3.CopyDone:
		return fmt.Errorf("the server ended the stream: %w", io.ErrUnexpectedEOF)
	}
	return nil // notices and parameters
}

// tend does what is due and sets the read deadline to when something is due next.
func (s *Session) tend(run context.Context) error {
	for {
		s.woken.Store(false)
		next, err := s.attend(run)
		if err != nil {
			return err
		}
		if s.quiet.Load() {
			return errQuiet
		}
		if err := s.net.SetReadDeadline(next); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
		// Woken after Store: the deadline that wake has set may be overwritten.
		if !s.woken.Load() {
			return nil
		}
	}
}

// await does what is due until room is closed or something has changed.
func (s *Session) await(run context.Context, room <-chan struct{}) error {
	next, err := s.attend(run)
	if err != nil {
		return err
	}
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	select {
	case <-room:
	case <-s.wakeups:
		s.woken.Store(false)
	case <-timer.C:
	}
	return nil
}

// attend does what is due now, and says when something will be due next.
func (s *Session) attend(run context.Context) (next time.Time, err error) {
	if run.Err() != nil {
		return next, context.Cause(run)
	}
	reconciler.Beat(run) // at least every statusEvery, also while the queue is full
	if s.budget.Load() != withinBudget {
		s.ledger.Release()
	} else if s.dropped > 0 {
		s.endDropping()
	}
	due := s.lastStatus.Add(statusEvery)
	if s.flushDue.Load() {
		due = s.lastStatus.Add(flushEvery)
	}
	if time.Until(due) <= 0 {
		if err := s.status(); err != nil {
			return next, err
		}
		due = s.lastStatus.Add(statusEvery)
	}
	return due, nil
}

// status sends a Standby status update: 'r', the positions written, flushed and
// applied, the clock, and whether an answer is wanted; in a CopyData message.
func (s *Session) status() error {
	s.flushDue.Store(false)
	confirmed := s.ledger.Confirmed()
	b := make([]byte, 0, 39)
	b = append(b, 'd')
	b = binary.BigEndian.AppendUint32(b, 4+34)
	b = append(b, 'r')
	b = binary.BigEndian.AppendUint64(b, uint64(max(s.Position(), confirmed)))
	b = binary.BigEndian.AppendUint64(b, uint64(confirmed))
	b = binary.BigEndian.AppendUint64(b, uint64(confirmed))
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixMicro()-pgEpoch)) //nolint:gosec // after 2000
	b = append(b, 0)
	s.lastStatus = time.Now()
	if err := s.net.SetWriteDeadline(s.lastStatus.Add(ioTimeout)); err != nil {
		return fmt.Errorf("send status: %w", err)
	}
	if _, err := s.net.Write(b); err != nil {
		if isTimeout(err) { // half a message may be out
			err = fmt.Errorf("%w: %s", io.ErrShortWrite, err.Error())
		}
		return fmt.Errorf("send status: %w", err)
	}
	return nil
}
