package celery

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// kind is what an item is.
type kind uint8

const (
	missing kind = iota
	null
	other // of no use to us: bytes, floats, dates, tagged values
	boolean
	integer
	text
	list
	dict
)

// item is a value of a document, as a walker meets it.
type item struct {
	kind kind
	// raw is how it is written, a text's without quotes; of a list or dict, that it begins.
	raw string
	// escaped: raw has backslashes.
	escaped bool
}

func (v item) opens() bool { return v.kind >= list }

// empty is what Python takes for no setting: missing, null or "".
func (v item) empty() bool { return v.kind <= null || v.kind == text && v.raw == "" }

// name is a text that is only compared; one that cannot be decoded equals nothing.
func (v item) name() string {
	if !v.escaped {
		return v.raw
	}
	if s, ok := unescape(v.raw); ok {
		return s
	}
	return "\xff"
}

// string is a text's value; ok is false for what is none, or has no UTF-8.
func (v item) string() (s string, ok bool) {
	if v.kind != text {
		return "", false
	}
	if !v.escaped {
		return v.raw, true
	}
	return unescape(v.raw)
}

// walker goes through a document once, from its beginning, without a tree of it.
type walker interface {
	// value gives the next value; a list or dict is opened by it.
	value() (item, error)
	// next tells whether the list or dict opened last goes on, and the key in a dict.
	// Where it does, value comes next; where not, the list or dict is closed.
	next() (key item, more bool, err error)
	// skip closes the list or dict v, which value has just opened; nothing for others.
	skip(v item) error
	// end fails where something follows the document.
	end() error
}

// maxNesting is how deep a message may be nested; Python's json gives up before.
const maxNesting = 1024

// jsonWalker reads JSON as Python's json.loads does: NaN and Infinity are numbers.
// The text must be valid UTF-8. It allocates nothing.
type jsonWalker struct {
	s     string
	i     int
	depth int
	// dicts has a bit for each open value: whether it is a dict.
	dicts [maxNesting / 64]uint64
	// fresh: nothing has been read of what was opened last.
	fresh bool
}

// at is the next byte that is not white space, 0 at the end.
func (w *jsonWalker) at() byte {
	for ; w.i < len(w.s); w.i++ {
		if c := w.s[w.i]; c > ' ' || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c
		}
	}
	return 0
}

func (w *jsonWalker) value() (item, error) {
	switch c := w.at(); c {
	case '"':
		return w.text()
	case '{', '[':
		return w.open(c)
	case 'n':
		return w.literal("null", null)
	case 't':
		return w.literal("true", boolean)
	case 'f':
		return w.literal("false", boolean)
	case 'N':
		return w.literal("NaN", other)
	case 'I':
		return w.literal("Infinity", other)
	default:
		return w.number()
	}
}

// fields is the function of that name, without the interface: for that the walker
// would have to be allocated, for each message.
func (w *jsonWalker) fields(read func(key string, v item) error) error {
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

func (w *jsonWalker) next() (key item, more bool, err error) {
	top := w.depth - 1
	inDict := w.dicts[top>>6]&(1<<(top&63)) != 0
	c := w.at()
	if c == ']' && !inDict || c == '}' && inDict {
		w.i++
		w.depth--
		w.fresh = false
		return item{}, false, nil
	}
	if !w.fresh {
		if c != ',' {
			return item{}, false, errSyntax
		}
		w.i++
	}
	w.fresh = false
	if !inDict {
		return item{}, true, nil
	}
	if w.at() != '"' {
		return item{}, false, errSyntax
	}
	if key, err = w.text(); err != nil {
		return item{}, false, err
	}
	if w.at() != ':' {
		return item{}, false, errSyntax
	}
	w.i++
	return key, true, nil
}

func (w *jsonWalker) skip(v item) error {
	if !v.opens() {
		return nil
	}
	for outside := w.depth - 1; w.depth > outside; {
		_, more, err := w.next()
		if err != nil {
			return err
		}
		if more {
			if _, err = w.value(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *jsonWalker) end() error {
	if w.at(); w.i < len(w.s) {
		return errSyntax
	}
	return nil
}

func (w *jsonWalker) open(c byte) (item, error) {
	if w.depth == maxNesting {
		return item{}, errSyntax
	}
	bit := uint64(1) << (w.depth & 63)
	v := item{kind: list}
	if c == '{' {
		v.kind = dict
		w.dicts[w.depth>>6] |= bit
	} else {
		w.dicts[w.depth>>6] &^= bit
	}
	w.depth++
	w.i++
	w.fresh = true
	return v, nil
}

func (w *jsonWalker) literal(word string, k kind) (item, error) {
	if !strings.HasPrefix(w.s[w.i:], word) {
		return item{}, errSyntax
	}
	w.i += len(word)
	return item{kind: k, raw: word}, nil
}

// text reads a string from its opening quote.
func (w *jsonWalker) text() (item, error) {
	w.i++
	start, escaped := w.i, false
	for {
		w.i += plain(w.s[w.i:])
		if w.i >= len(w.s) {
			return item{}, errSyntax
		}
		switch w.s[w.i] {
		case '"':
			w.i++
			return item{kind: text, raw: w.s[start : w.i-1], escaped: escaped}, nil
		case '\\':
			n := escape(w.s[w.i:])
			if n == 0 {
				return item{}, errSyntax
			}
			w.i += n
			escaped = true
		default: // a control character
			return item{}, errSyntax
		}
	}
}

// plain is how many bytes from the start of s are neither a quote, a backslash nor
// a control character, eight at a time: a message is mostly one long string.
func plain(s string) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		b := s[i : i+8]
		x := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
			uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
		quote, slash := x^(ones*'"'), x^(ones*'\\')
		if ((x-ones*' ')&^x|(quote-ones)&^quote|(slash-ones)&^slash)&tops != 0 {
			break
		}
	}
	for ; i < len(s); i++ {
		if c := s[i]; c == '"' || c == '\\' || c < ' ' {
			break
		}
	}
	return i
}

// escape is the length of the escape that s begins with, 0 for a wrong one.
func escape(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if _, ok := unit(s); ok {
			return 6
		}
	}
	return 0
}

// unit reads the UTF-16 unit that an escape \uXXXX stands for.
func unit(s string) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(s[2:6], 16, 16)
	return rune(n), err == nil
}

// unescape decodes a string whose escapes are right. Python keeps a lone
// surrogate, which Go cannot hold: ok is false, it is never replaced.
func unescape(s string) (out string, ok bool) {
	b := make([]byte, 0, len(s))
	for len(s) > 0 {
		n := strings.IndexByte(s, '\\')
		if n < 0 {
			return string(append(b, s...)), true
		}
		b, s = append(b, s[:n]...), s[n:]
		r, size := rune(0), 2
		switch s[1] {
		case 'u':
			r, _ = unit(s)
			size = 6
			if utf16.IsSurrogate(r) {
				low, _ := unit(s[6:])
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					return "", false
				}
				size = 12
			}
		case 'b':
			r = '\b'
		case 'f':
			r = '\f'
		case 'n':
			r = '\n'
		case 'r':
			r = '\r'
		case 't':
			r = '\t'
		default:
			r = rune(s[1])
		}
		b, s = utf8.AppendRune(b, r), s[size:]
	}
	return string(b), true
}

// number reads a number: an integer, or another one. -0 is Python's 0.
func (w *jsonWalker) number() (item, error) {
	start := w.i
	if w.i < len(w.s) && w.s[w.i] == '-' {
		if w.i++; w.i < len(w.s) && w.s[w.i] == 'I' {
			return w.literal("Infinity", other)
		}
	}
	first := w.i
	n := w.digits()
	if n == 0 || n > 1 && w.s[first] == '0' {
		return item{}, errSyntax
	}
	k := integer
	if w.i < len(w.s) && w.s[w.i] == '.' {
		k = other
		if w.i++; w.digits() == 0 {
			return item{}, errSyntax
		}
	}
	if w.i < len(w.s) && w.s[w.i]|0x20 == 'e' {
		k = other
		if w.i++; w.i < len(w.s) && (w.s[w.i] == '+' || w.s[w.i] == '-') {
			w.i++
		}
		if w.digits() == 0 {
			return item{}, errSyntax
		}
	}
	raw := w.s[start:w.i]
	if raw == "-0" {
		raw = "0"
	}
	return item{kind: k, raw: raw}, nil
}

func (w *jsonWalker) digits() int {
	start := w.i
	for w.i < len(w.s) && w.s[w.i]-'0' <= 9 {
		w.i++
	}
	return w.i - start
}
