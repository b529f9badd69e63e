package celery

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// ErrUnreadable is what every error of a Reader wraps. The errors say what was
// wrong, never what the message holds.
var ErrUnreadable = errors.New("unreadable message")

var (
	errEnvelope = fmt.Errorf("%w: not a complete envelope", ErrUnreadable)
	errNoTask   = fmt.Errorf("%w: no task's id and name", ErrUnreadable)
	errBody     = fmt.Errorf("%w: the body cannot be decoded", ErrUnreadable)
	errHeld     = fmt.Errorf("%w: not an unacked value", ErrUnreadable)
)

// errSyntax ends a walk; it becomes one of the above.
var errSyntax = errors.New("not a document that we read")

// Reader reads messages and results for a set of bindings. It does no I/O and is
// safe for concurrent use.
//
// Formats: kombu.transport.virtual.base (envelope), kombu.transport.redis
// (unacked), celery.app.amqp.as_task_v1 and as_task_v2, celery.worker.strategy
// (how a worker takes them). A body is decoded only where it is needed: in
// protocol 1, for a name with args or kwargs rules, and for a member of a group.
type Reader struct{ rules rules }

// NewReader takes the configured bindings; Binding indexes of its answers are
// indexes into them.
func NewReader(bindings []reconciler.Binding) *Reader {
	return &Reader{rules: newRules(bindings)}
}

// Read reads an element of a queue's list. It fails with ErrUnreadable where a
// worker would not take it for a task: no complete envelope, no id, no name.
// Place has Kind, Tag and Envelope; List and Index are the caller's. The answer
// shares the envelope's memory: who keeps an id for longer clones it.
func (r *Reader) Read(envelope string) (reconciler.Message, error) {
	w := jsonWalker{s: envelope}
	var e parts
	if !utf8.ValidString(envelope) || e.read(&w) != nil || w.end() != nil {
		return reconciler.Message{}, errEnvelope
	}
	return r.message(&e, reconciler.Place{Kind: reconciler.QueuedMessage, Envelope: envelope})
}

// ReadUnacked reads a value of the hash of unacked messages, which is [message,
// exchange, routing_key]. Place.Envelope are the message's bytes within it,
// Place.Held is all of it; List is the caller's, see Priority.
func (r *Reader) ReadUnacked(value string) (m reconciler.Message, exchange, routingKey string, err error) {
	if !utf8.ValidString(value) {
		return m, "", "", errHeld
	}
	w := jsonWalker{s: value}
	var e parts
	var route [2]string
	if v, err := w.value(); err != nil || v.kind != list {
		return m, "", "", errHeld
	}
	if _, more, err := w.next(); err != nil || !more {
		return m, "", "", errHeld
	}
	w.at()
	start := w.i
	if e.read(&w) != nil {
		return m, "", "", errEnvelope
	}
	envelope := value[start:w.i]
	for i := range route {
		_, more, err := w.next()
		if err != nil || !more {
			return m, "", "", errHeld
		}
		v, err := w.value()
		s, ok := v.string()
		if err != nil || !ok && v.kind != null {
			return m, "", "", errHeld
		}
		route[i] = s
	}
	if _, more, err := w.next(); err != nil || more || w.end() != nil {
		return m, "", "", errHeld
	}
	m, err = r.message(&e, reconciler.Place{Kind: reconciler.UnackedMessage, Envelope: envelope, Held: value})
	return m, route[0], route[1], err
}

// Priority is properties.priority of an envelope that has been read, from 0 to 9;
// a missing or wrong one is 0, as in kombu's Channel._get_message_priority.
func Priority(envelope string) int {
	w := jsonWalker{s: envelope}
	var e parts
	if e.read(&w) != nil {
		return 0
	}
	switch v := e.properties.priority; v.kind {
	case integer, text:
		n, err := strconv.Atoi(strings.TrimSpace(v.name()))
		if err == nil || errors.Is(err, strconv.ErrRange) {
			return max(0, min(n, 9))
		}
	case other: // a float, which int() truncates
		if f, _ := strconv.ParseFloat(v.raw, 64); f > 0 {
			return int(min(f, 9))
		}
	case boolean:
		if v.raw == "true" {
			return 1
		}
	}
	return 0
}

// message makes the answer of what was read of an envelope.
func (r *Reader) message(e *parts, place reconciler.Place) (m reconciler.Message, err error) {
	tag, ok := e.properties.tag.string()
	if e.body.kind != text || !e.hasHeaders || !e.hasProperties || !ok || tag == "" || !e.properties.routed() {
		return m, errEnvelope
	}
	place.Tag = tag
	if e.headers.id.kind == missing {
		return r.protocol1(e, place)
	}
	id, _ := e.headers.id.string()
	name, ok := e.headers.task.string()
	if id == "" || len(id) > maxKept || !ok || len(name) > maxKept { // a worker looks for headers.task first
		return m, errNoTask
	}
	m = reconciler.Message{ID: id, Name: name, TraceParent: e.traceParent(), Place: place}
	grouped := e.headers.group.kind > null
	if !grouped && len(r.rules.of(name)) == 0 {
		return m, nil
	}
	c, err := r.rules.body(e, (*rules).readProtocol2)
	if err != nil {
		// Its rows stay unknown; that it is in a chord must be assumed.
		m.InChord = grouped
		return m, nil
	}
	m.Refs = r.rules.refs(name, c)
	if grouped {
		m.InChord, m.Body = r.chord(c)
	}
	return m, nil
}

func (r *Reader) protocol1(e *parts, place reconciler.Place) (m reconciler.Message, err error) {
	if e.body.raw == "" { // such as our own tombstone
		return m, errNoTask
	}
	c, err := r.rules.body(e, (*rules).readProtocol1)
	if err != nil {
		return m, errBody
	}
	if header := e.headers.task; c.id == "" || !c.named || header.kind != missing && header.name() != c.name {
		return m, errNoTask
	}
	m = reconciler.Message{ID: c.id, Name: c.name, TraceParent: e.traceParent(), Place: place}
	m.Refs = r.rules.refs(c.name, c)
	m.InChord, m.Body = r.chord(c)
	return m, nil
}

// chord tells whether the call is a member of a chord's header. The body of a
// chord that has no id of its own (a group) is not seen.
func (r *Reader) chord(c invocation) (in bool, body *reconciler.ChordBody) {
	if !c.inChord || c.chord == nil || c.chord.taskID == "" {
		return c.inChord, nil
	}
	return true, &reconciler.ChordBody{
		ID: c.chord.taskID, Name: c.chord.name, Refs: r.rules.refs(c.chord.name, *c.chord),
	}
}

// parts are the parts of an envelope that matter. Of a key that stands twice,
// the last counts, as in Python.
type parts struct {
	body, contentType         item
	hasHeaders, hasProperties bool
	headers                   headers
	properties                properties
}

type headers struct{ id, task, group, compression, traceparent item }

type properties struct {
	tag, encoding, priority item
	// exchange and routingKey are of delivery_info: without them a worker dies.
	exchange, routingKey bool
}

func (p *properties) routed() bool { return p.exchange && p.routingKey }

func (e *parts) traceParent() string {
	s, _ := e.headers.traceparent.string()
	return s
}

func (e *parts) read(w *jsonWalker) error {
	v, err := w.value()
	if err != nil || v.kind != dict {
		return errSyntax
	}
	return w.fields(func(name string, v item) error {
		switch name {
		case "body":
			e.body = v
		case "content-type":
			e.contentType = v
		case "headers":
			if e.headers, e.hasHeaders = (headers{}), v.kind == dict; e.hasHeaders {
				return e.headers.read(w)
			}
		case "properties":
			if e.properties, e.hasProperties = (properties{}), v.kind == dict; e.hasProperties {
				return e.properties.read(w)
			}
		}
		return w.skip(v)
	})
}

func (h *headers) read(w *jsonWalker) error {
	return w.fields(func(name string, v item) error {
		switch name {
		case "id":
			h.id = v
		case "task":
			h.task = v
		case "group":
			h.group = v
		case "compression":
			h.compression = v
		case "traceparent":
			h.traceparent = v
		}
		return w.skip(v)
	})
}

func (p *properties) read(w *jsonWalker) error {
	return w.fields(func(name string, v item) error {
		switch name {
		case "delivery_tag":
			p.tag = v
		case "body_encoding":
			p.encoding = v
		case "priority":
			p.priority = v
		case "delivery_info":
			if p.exchange, p.routingKey = false, false; v.kind == dict {
				return p.readInfo(w)
			}
		}
		return w.skip(v)
	})
}

func (p *properties) readInfo(w *jsonWalker) error {
	return w.fields(func(name string, v item) error {
		switch name {
		case "exchange":
			p.exchange = true
		case "routing_key":
			p.routingKey = true
		}
		return w.skip(v)
	})
}
