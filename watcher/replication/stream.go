package replication

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// The prefixes of logical messages: what we emit, and what an application may.
const (
	prefixCanary      = "orphanwatch.canary"
	prefixTraceParent = "traceparent"
)

// Reasons of gaps that a session finds.
const (
	gapTruncate    = "truncate"
	gapBudget      = "wal budget"
	gapUnreadable  = "key not in the stream"
	gapPublication = "publication altered"
	gapRecreated   = "table recreated"
	gapPartitions  = "partitions changed"

	gapReplicaIdentity = "replica identity changed"
)

// copyData takes one message of the streaming replication protocol: XLogData
// ('w': start, end, clock, data) or a primary keepalive ('k': end of what was
// sent, clock, whether an answer is wanted).
func (s *Session) copyData(run context.Context, data []byte) error {
	c := cursor{b: data}
	switch kind := c.u8(); kind {
	case 'w':
		c.take(3 * 8)
		if c.bad {
			return fmt.Errorf("XLogData of %d bytes: %w", len(data), errDecode)
		}
		m, err := s.decoder.decode(c.b)
		if err != nil {
			return err
		}
		return s.handle(run, m)
	case 'k':
		end := c.lsn()
		c.u64()
		reply := c.u8() != 0
		if c.bad {
			return fmt.Errorf("keepalive of %d bytes: %w", len(data), errDecode)
		}
		if s.open == nil {
			s.reached(end)
			s.ledger.Advance(end)
		}
		if reply {
			return s.status()
		}
	}
	return nil
}

// reached says that all that was committed before pos has been offered.
func (s *Session) reached(pos reconciler.LSN) {
	if uint64(pos) > s.position.Load() {
		s.position.Store(uint64(pos))
	}
}

func (s *Session) handle(run context.Context, m *message) error {
	if s.open == nil && (m.kind == 'C' || m.kind == 'D' || m.kind == 'U') {
		return fmt.Errorf("message %q outside a transaction: %w", m.kind, errDecode)
	}
	switch m.kind {
	case 'B':
		if s.open != nil {
			return fmt.Errorf("transaction in a transaction: %w", errDecode)
		}
		s.open = s.ledger.Begin()
		s.commit = &reconciler.Commit{XID: m.xid, LSN: m.lsn, Time: m.time, LocalTime: s.clock.local(m.time)}
		s.shared, s.seenAt = false, time.Now()
	case 'C':
		s.ledger.End(s.open, m.lsn)
		s.open, s.commit = nil, nil
		s.reached(m.lsn)
		if s.budget.Load() != withinBudget {
			s.ledger.Release()
		}
	case 'D':
		return s.deleted(run, m)
	case 'U':
		return s.updated(run, m)
	case 'T':
		for _, rel := range m.truncated {
			s.log.InfoContext(run, "table was truncated", slog.String(keyTable, rel.name))
			s.sink.Gap(watcher.SourcePostgres, gapTruncate)
		}
	case 'M':
		return s.logical(run, m)
	}
	return nil
}

// logical takes a logical message. One outside of transactions is delivered in
// its place in the log: all commits before it have been.
func (s *Session) logical(run context.Context, m *message) error {
	if m.transactional {
		if s.commit != nil && string(m.prefix) == prefixTraceParent {
			if s.shared {
				c := *s.commit
				s.commit, s.shared = &c, false
			}
			s.commit.TraceParent = string(m.content)
		}
		return nil
	}
	if string(m.prefix) == prefixCanary {
		if token, at, ok := strings.Cut(string(m.content), " "); ok && token == s.token {
			ns, err := strconv.ParseInt(at, 10, 64)
			if err != nil {
				return fmt.Errorf("canary: %w", errDecode)
			}
			s.canary.Store(ns)
			e := watcher.Event{
				Subject: reconciler.Subject{Kind: reconciler.Canary, ID: watcher.SourcePostgres},
				Seen:    time.Unix(0, ns),
			}
			if err := s.offer(run, e); err != nil {
				return err
			}
		}
	}
	if s.open == nil {
		s.reached(m.lsn)
	}
	return nil
}

// deleted offers what a DELETE of a bound table's row names.
func (s *Session) deleted(run context.Context, m *message) error {
	for i := range m.rel.bound {
		b := &m.rel.bound[i]
		if err := s.keyGone(run, m, b, s.opts.Bindings[b.binding].Columns); err != nil {
			return err
		}
	}
	return nil
}

// updated offers the old key where it has changed. An old tuple comes with any
// change of the replica identity, or with each update where that is FULL.
func (s *Session) updated(run context.Context, m *message) error {
	if len(m.old) == 0 {
		return nil
	}
	for i := range m.rel.bound {
		b := &m.rel.bound[i]
		was, ok := text(m.old, b.key)
		is, stays := text(m.new, b.key)
		if ok && (!stays || string(was) == string(is)) {
			continue // 'u' is unchanged; a key that became NULL comes as 'n'
		}
		if err := s.keyGone(run, m, b, nil); err != nil {
			return err
		}
	}
	return nil
}

// keyGone offers all subjects of the old tuple's row: the tasks of its key and of
// its columns, their messages, and the row itself.
func (s *Session) keyGone(run context.Context, m *message, b *bound, columns []string) error {
	binding := &s.opts.Bindings[b.binding]
	data, ok := text(m.old, b.key)
	if !ok {
		s.unreadable(m.rel, binding.Key)
		return nil
	}
	key := string(data)
	looks := s.looks[:0]
	task := func(id string) {
		l := reconciler.LookFor(reconciler.TaskSubject(id), id)
		messages := l
		messages.Subject = l.Subject.Messages()
		looks = append(looks, l, messages)
	}
	if binding.CeleryID {
		task(key)
	}
	for j, name := range columns {
		i := b.columns[j]
		if i < 0 || i >= len(m.old) {
			s.unreadable(m.rel, name)
			continue
		}
		if id, ok := text(m.old, i); ok && len(id) > 0 {
			task(string(id))
		}
	}
	row := reconciler.LookFor(reconciler.RowSubject(b.binding, key), key)
	if len(binding.Companions) > 0 {
		looks = append(looks, row)
	}
	if binding.ByArgument() {
		row.Subject = row.Subject.Messages()
		looks = append(looks, row)
	}
	s.looks = looks
	e := watcher.Event{
		Trigger: reconciler.ByDelete, Seen: s.seenAt,
		Deletion: &reconciler.Deletion{Binding: b.binding, Key: key, Commit: s.commit, Trail: reconciler.NewTrail(len(looks))},
	}
	for _, l := range looks {
		e.Subject, e.Spelling = l.Subject, l.Spelling
		if err := s.offer(run, e); err != nil {
			return err
		}
	}
	return nil
}

// unreadable says that a row was deleted and the stream does not name it.
func (s *Session) unreadable(rel *relation, column string) {
	if !rel.reported {
		rel.reported = true
		s.log.Error("the stream does not carry a bound column: check replica identity and column list; see doctor",
			slog.String(keyTable, rel.name), slog.String(keyColumn, column))
	}
	s.sink.Gap(watcher.SourcePostgres, gapUnreadable)
}

// offer hands an event to the queue. While that is full, it waits, and keeps the
// server content; over the WAL budget it gives the event up for a gap.
func (s *Session) offer(run context.Context, e watcher.Event) error {
	if s.open != nil && e.Deletion != nil {
		s.shared = true
		s.open.Add()
		e.Done = s.open.done
	}
	if s.sink.Offer(e) {
		return nil
	}
	defer func() {
		s.blocked.Store(false)
	}()
	for {
		room := s.sink.Room()
		if s.sink.Offer(e) {
			return nil
		}
		if s.budget.Load() == dropDeletes {
			s.drop(e)
			return nil
		}
		s.blocked.Store(true)
		if err := s.await(run, room); err != nil {
			return err
		}
		if s.quiet.Load() {
			return errQuiet
		}
	}
}

// drop gives an event up.
func (s *Session) drop(e watcher.Event) {
	if e.Done == nil {
		return
	}
	e.Done()
	e.Deletion.Trail.Leave()
	if s.dropped++; s.dropped == 1 {
		s.log.Error("over the budget of WAL with the queue full: deletions are given up, and found by a resync instead",
			slog.String(keySlot, s.opts.Slot))
		s.sink.Gap(watcher.SourcePostgres, gapBudget)
	}
}

// endDropping closes an episode: the resync must see what was dropped last, too.
func (s *Session) endDropping() {
	s.log.Warn("within the budget of WAL again", slog.Int(keyDropped, s.dropped))
	s.dropped = 0
	s.sink.Gap(watcher.SourcePostgres, gapBudget)
}
