package celery

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// invocation is what a body or a signature says of a task. Of its arguments only
// row keys are kept, by place and name.
type invocation struct {
	id, name string
	named    bool
	// taskID is options.task_id, the id in a signature.
	taskID string
	args   map[int]string
	kwargs map[string]string
	// inChord: it has a chord; chord is nil where that is not a signature.
	inChord bool
	chord   *invocation
}

const (
	// maxBody is how many bytes of a body are read, decoded and decompressed.
	maxBody = 8 << 20
	// maxKept is how long an id, a name or a key may be: no longer one is in an
	// index of PostgreSQL's, and what is remembered of a message is bounded by it.
	maxKept = 8 << 10

	typeJSON    = "application/json"
	typeYAML    = "application/x-yaml"
	typeMsgpack = "application/x-msgpack"
	// application/x-python-serialize (pickle) is never loaded: it runs code.
)

// body decodes the envelope's body, in kombu's order: base64, decompress, parse.
func (s *rules) body(e *parts, read func(*rules, walker) (invocation, error)) (c invocation, err error) {
	content := e.contentType.name()
	if content != typeJSON && content != typeYAML && content != typeMsgpack {
		return c, errBody
	}
	raw, ok := e.body.string()
	if !ok {
		return c, errBody
	}
	literal := e.properties.encoding.empty()
	if !literal {
		if e.properties.encoding.name() != "base64" { // kombu has no other codec
			return c, errBody
		}
		if base64.StdEncoding.DecodedLen(len(raw)) > maxBody+2 {
			return c, errBody
		}
		b, err := base64.StdEncoding.DecodeString(raw)
		if err != nil {
			return c, errBody
		}
		raw = string(b)
	}
	if !e.headers.compression.empty() {
		if literal { // text is not what decompressors take
			return c, errBody
		}
		if raw, err = decompress(raw, e.headers.compression.name()); err != nil {
			return c, errBody
		}
	}
	w, err := document(raw, content)
	if err != nil {
		return c, errBody
	}
	if c, err = read(s, w); err != nil || w.end() != nil {
		return invocation{}, errBody
	}
	return c, nil
}

func document(body, content string) (walker, error) {
	switch {
	case len(body) > maxBody:
		return nil, errSyntax
	case content == typeYAML:
		return newYAMLWalker(body)
	case content == typeMsgpack:
		return newMsgpackWalker(body), nil
	case !utf8.ValidString(body):
		return nil, errSyntax
	}
	return &jsonWalker{s: body}, nil
}

// readProtocol2 reads [args, kwargs, embed]. A worker also takes the body of protocol
// 1 under the headers of 2 (celery.worker.strategy.hybrid_to_proto2).
func (s *rules) readProtocol2(w walker) (c invocation, err error) {
	v, err := w.value()
	if err != nil {
		return c, err
	}
	if v.kind == dict {
		return s.task(w, true)
	}
	if v.kind != list {
		return c, errSyntax
	}
	for i := 0; ; i++ {
		_, more, err := w.next()
		if err != nil || !more && i != 3 || more && i == 3 {
			return c, errSyntax
		}
		if !more {
			return c, nil
		}
		if v, err = w.value(); err != nil {
			return c, err
		}
		switch i {
		case 0:
			c.args, err = s.positional(w, v)
		case 1:
			c.kwargs, err = s.named(w, v)
		case 2:
			err = s.embed(w, v, &c)
		}
		if err != nil {
			return c, err
		}
	}
}

func (s *rules) readProtocol1(w walker) (c invocation, err error) {
	v, err := w.value()
	if err != nil || v.kind != dict {
		return c, errSyntax
	}
	return s.task(w, true)
}

// fields reads the rest of a dict; read must consume the value it is given.
func fields(w walker, read func(key string, v item) error) error {
	for {
		key, more, err := w.next()
		if err != nil || !more {
			return err
		}
		v, err := w.value()
		if err != nil {
			return err
		}
		if err = read(key.name(), v); err != nil {
			return err
		}
	}
}

// task reads the rest of a dict that says which task, and with which arguments: a
// body of protocol 1, an extended result, a signature. Only a body has a chord.
func (s *rules) task(w walker, body bool) (c invocation, err error) {
	err = fields(w, func(key string, v item) (err error) {
		switch key {
		case "id":
			c.id, _ = keep(v)
		case "task":
			c.name, c.named = keep(v)
		case "args":
			c.args, err = s.positional(w, v)
			return err
		case "kwargs":
			c.kwargs, err = s.named(w, v)
			return err
		case "options":
			c.taskID, err = option(w, v)
			return err
		case "chord":
			if body {
				return s.chord(w, v, &c)
			}
		}
		return w.skip(v)
	})
	return c, err
}

// option is options.task_id of a signature.
func option(w walker, v item) (id string, err error) {
	if v.kind != dict {
		return "", w.skip(v)
	}
	err = fields(w, func(key string, v item) error {
		if key == "task_id" {
			id, _ = keep(v)
		}
		return w.skip(v)
	})
	return id, err
}

func (s *rules) embed(w walker, v item, c *invocation) error {
	if v.kind != dict {
		return w.skip(v)
	}
	return fields(w, func(key string, v item) error {
		if key == "chord" {
			return s.chord(w, v, c)
		}
		return w.skip(v)
	})
}

// chord reads the signature that a chord ends with.
func (s *rules) chord(w walker, v item, c *invocation) error {
	c.inChord, c.chord = v.kind != null, nil
	if v.kind != dict {
		return w.skip(v)
	}
	body, err := s.task(w, false)
	if body.named {
		c.chord = &body
	}
	return err
}

func (s *rules) positional(w walker, v item) (args map[int]string, err error) {
	if v.kind != list {
		return nil, w.skip(v)
	}
	args = map[int]string{}
	for i := 0; ; i++ {
		_, more, err := w.next()
		if err != nil || !more {
			return args, err
		}
		if v, err = w.value(); err != nil {
			return nil, err
		}
		if !s.args[i] {
			err = w.skip(v)
		} else {
			args[i], err = argKey(w, v)
		}
		if err != nil {
			return nil, err
		}
	}
}

func (s *rules) named(w walker, v item) (kwargs map[string]string, err error) {
	if v.kind != dict {
		return nil, w.skip(v)
	}
	kwargs = map[string]string{}
	err = fields(w, func(key string, v item) (err error) {
		if !s.kwargs[key] {
			return w.skip(v)
		}
		kwargs[key], err = argKey(w, v)
		return err
	})
	return kwargs, err
}

// argKey is the value as the key of a row, "" where it cannot be one.
func argKey(w walker, v item) (key string, err error) {
	switch v.kind {
	case integer:
		if len(v.raw) <= maxKept {
			key = strings.Clone(v.raw)
		}
	case text:
		key, _ = keep(v)
	case dict:
		if _, typed := w.(*jsonWalker); typed {
			key, err = typedUUID(w)
			break
		}
		return "", w.skip(v)
	default:
		return "", w.skip(v)
	}
	return reconciler.NewRowRef(0, key).Key, err
}

// typedUUID reads the rest of {"__type__": "uuid", "__value__": {"hex": …}}, as
// kombu.utils.json writes a UUID since 5.3. Any other dict gives "".
func typedUUID(w walker) (string, error) {
	typ, hex, others := "", "", false
	err := fields(w, func(key string, v item) error {
		switch key {
		case "__type__":
			typ, _ = keep(v)
		case "__value__":
			hex = ""
			if v.kind == dict {
				return fields(w, func(key string, v item) error {
					others = others || key != "hex"
					hex, _ = keep(v)
					return w.skip(v)
				})
			}
		default:
			others = true
		}
		return w.skip(v)
	})
	if typ != "uuid" || others || !reconciler.IsUUID(hex) {
		return "", err
	}
	return hex, err
}

// keep copies a text out of the document, which it would else hold in memory; not
// one that is too long.
func keep(v item) (string, bool) {
	s, ok := v.string()
	if len(s) > maxKept {
		return "", false
	}
	return strings.Clone(s), ok
}

// ResultRefs are the rows that an extended result's arguments name: value is all
// of it, name the task's, as in Value. JSON, YAML and msgpack are read, told
// apart by the first byte as in ParseValue; any other result names none.
func (r *Reader) ResultRefs(value, name string) []reconciler.RowRef {
	content := contentOf(value)
	if content == "" || len(r.rules.of(name)) == 0 {
		return nil
	}
	w, err := document(value, content)
	if err != nil {
		return nil
	}
	c, err := r.rules.readProtocol1(w)
	if err != nil || w.end() != nil {
		return nil
	}
	return r.rules.refs(name, c)
}

// contentOf tells by the first byte how a result is serialized, as in ParseValue; ""
// for pickle and for nothing.
func contentOf(value string) string {
	if value == "" {
		return ""
	}
	switch first := value[0]; {
	case first == '{':
		return typeJSON
	case first == 0x80: // Celery's msgpack maps have six fields or more
		return ""
	case first > 0x80 && first <= 0x8f, first == 0xde, first == 0xdf:
		return typeMsgpack
	}
	return typeYAML
}
