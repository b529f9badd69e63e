package celery

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// Value is what we read of a stored result; empty where it does not say.
type Value struct {
	// Name is the task's name, only in extended results (result_extended).
	Name string
	// Status is the task's state, such as SUCCESS.
	Status string
}

// Terminal tells whether a task in that state has ended for good: Celery's ready
// states but for IGNORED, which is not stored (celery.states.READY_STATES).
func Terminal(status string) bool {
	return status == "SUCCESS" || status == "FAILURE" || status == "REVOKED"
}

// maxDepth of nesting and maxText bytes of a key or text are what we follow; what
// goes beyond is not read, and the name stays unknown.
const (
	maxDepth = 10_000
	maxText  = 1024
)

var errValue = errors.New("not a result that we can read")

// ParseValue reads the fields of a result. A value has no mark of its
// serializer, so the first byte tells (facts, 1.3): '{' JSON, 0x80 and a version
// pickle, another fixmap or map16/32 msgpack, else YAML. Pickle is never loaded:
// it runs code. Whatever cannot be read gives the zero Value, and so does a
// reader that ends early.
func ParseValue(r io.ByteScanner) Value {
	first, err := r.ReadByte()
	if err != nil || r.UnreadByte() != nil {
		return Value{}
	}
	var v Value
	switch {
	case first == '{':
		v, err = parseJSON(r)
	case first == 0x80: // pickle; Celery's msgpack maps have six fields or more
		return Value{}
	case first > 0x80 && first <= 0x8f, first == 0xde, first == 0xdf:
		v, err = parseMsgpack(r)
	default:
		v, err = parseYAML(r)
	}
	if err != nil {
		return Value{}
	}
	return v
}

func (v *Value) set(field, text string) {
	switch field {
	case "name":
		v.Name = text
	case "status":
		v.Status = text
	}
}

// jsonReader walks a JSON object byte by byte: it keeps the top level's texts
// and skips the rest without holding it.
type jsonReader struct {
	r    io.ByteScanner
	text []byte
}

func parseJSON(r io.ByteScanner) (v Value, err error) {
	j := jsonReader{r: r, text: make([]byte, 0, 64)}
	c, err := j.next()
	if err != nil || c != '{' {
		return v, errValue
	}
	if c, err = j.next(); err != nil {
		return v, err
	}
	for first := true; c != '}'; first = false {
		if !first {
			if c != ',' {
				return v, errValue
			}
			if c, err = j.next(); err != nil {
				return v, err
			}
		}
		if c != '"' {
			return v, errValue
		}
		field, ok, err := j.string()
		if err != nil {
			return v, err
		}
		wanted := ok && (field == "name" || field == "status")
		if c, err = j.next(); err != nil || c != ':' {
			return v, errValue
		}
		if c, err = j.next(); err != nil {
			return v, err
		}
		text := ""
		if c == '"' {
			if text, ok, err = j.string(); err != nil || wanted && !ok {
				return v, errValue
			}
		} else if err = j.skip(c); err != nil {
			return v, err
		}
		if wanted {
			v.set(field, text)
		}
		if c, err = j.next(); err != nil {
			return v, err
		}
	}
	if _, err = j.next(); !errors.Is(err, io.EOF) {
		return v, errValue
	}
	return v, nil
}

// next is the next byte that is not white space.
func (j *jsonReader) next() (byte, error) {
	for {
		c, err := j.r.ReadByte()
		if err != nil || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c, err
		}
	}
}

// string reads the rest of a string after its opening quote; ok is false where
// it is longer than maxText or not a JSON string.
func (j *jsonReader) string() (s string, ok bool, err error) {
	j.text = append(j.text[:0], '"')
	escaped, long := false, false
	for {
		c, err := j.r.ReadByte()
		if err != nil {
			return "", false, err
		}
		if len(j.text) > maxText {
			long = true
		} else {
			j.text = append(j.text, c)
		}
		if c == '\\' {
			escaped = true
			if c, err = j.r.ReadByte(); err != nil {
				return "", false, err
			}
			j.text = append(j.text, c)
			if long {
				j.text = j.text[:maxText]
			}
			continue
		}
		if c == '"' {
			break
		}
		escaped = escaped || c < ' ' || c >= 0x80
	}
	switch {
	case long:
		return "", false, nil
	case !escaped:
		return string(j.text[1 : len(j.text)-1]), true, nil
	}
	return s, json.Unmarshal(j.text, &s) == nil, nil
}

// skip passes over a value that begins with c and is not a string.
func (j *jsonReader) skip(c byte) error {
	depth := 0
	for {
		switch c {
		case '{', '[':
			if depth++; depth > maxDepth {
				return errValue
			}
		case '}', ']':
			depth--
		case '"':
			if err := j.skipString(); err != nil {
				return err
			}
		}
		var err error
		if c, err = j.r.ReadByte(); err != nil {
			return err
		}
		if depth == 0 && (c == ',' || c == '}' || c == ']' || c == ' ' || c == '\n' || c == '\t' || c == '\r') {
			return j.r.UnreadByte()
		}
	}
}

func (j *jsonReader) skipString() error {
	for {
		c, err := j.r.ReadByte()
		if err != nil {
			return err
		}
		switch c {
		case '\\':
			if _, err = j.r.ReadByte(); err != nil {
				return err
			}
		case '"':
			return nil
		}
	}
}

// parseYAML reads PyYAML's block style: a field of the top level stands at the
// beginning of a line, what is inside another value is indented. Only a plain or
// single-quoted text on that line is taken.
func parseYAML(r io.ByteScanner) (v Value, err error) {
	line := make([]byte, 0, maxText)
	for err == nil {
		line = line[:0]
		for {
			var c byte
			if c, err = r.ReadByte(); err != nil || c == '\n' {
				break
			}
			if len(line) < maxText {
				line = append(line, c)
			}
		}
		field, text, ok := strings.Cut(string(line), ": ")
		if ok && len(line) < maxText && (field == "name" || field == "status") {
			v.set(field, yamlText(text))
		}
	}
	if !errors.Is(err, io.EOF) {
		return v, err
	}
	return v, nil
}

func yamlText(s string) string {
	if n := len(s); n >= 2 && s[0] == '\'' && s[n-1] == '\'' {
		return strings.ReplaceAll(s[1:n-1], "''", "'")
	}
	if s == "null" || s == "" || strings.ContainsAny(s[:1], `"!&*|>{[#%@~`+"`") {
		return ""
	}
	return s
}
