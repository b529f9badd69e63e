package celery

import (
	"encoding/binary"
	"strconv"
	"strings"
	"unicode/utf8"
)

// msgpackWalker reads MessagePack as Python's msgpack.unpackb(raw=False) does.
type msgpackWalker struct {
	s  string
	in *strings.Reader
	r  msgpackReader
	// open has, for each open list or dict, how many elements are left.
	open []msgpackOpen
}

type msgpackOpen struct {
	left uint64
	dict bool
}

func newMsgpackWalker(s string) *msgpackWalker {
	in := strings.NewReader(s)
	return &msgpackWalker{s: s, in: in, r: msgpackReader{in}}
}

func (w *msgpackWalker) value() (item, error) {
	tag, err := w.in.ReadByte()
	if err != nil {
		return item{}, errSyntax
	}
	n, inner, err := w.r.extent(tag)
	if err != nil || n > uint64(w.in.Len()) || inner > uint64(w.in.Len()) {
		return item{}, errSyntax
	}
	at := len(w.s) - w.in.Len()
	data := w.s[at : at+int(n)]
	if _, err = w.in.Seek(int64(n), 1); err != nil {
		return item{}, errSyntax
	}
	switch {
	case tag >= 0x80 && tag <= 0x8f, tag == 0xde, tag == 0xdf:
		return w.begin(dict, inner/2)
	case tag >= 0x90 && tag <= 0x9f, tag == 0xdc, tag == 0xdd:
		return w.begin(list, inner)
	case tag >= 0xa0 && tag <= 0xbf, tag >= 0xd9 && tag <= 0xdb:
		if !utf8.ValidString(data) {
			return item{}, errSyntax
		}
		return item{kind: text, raw: data}, nil
	case tag == 0xc0:
		return item{kind: null}, nil
	case tag == 0xc2, tag == 0xc3:
		return item{kind: boolean}, nil
	case tag <= 0x7f, tag >= 0xe0, tag >= 0xcc && tag <= 0xd3:
		return item{kind: integer, raw: msgpackInt(tag, data)}, nil
	}
	return item{kind: other, raw: data}, nil
}

// msgpackInt is an integer in decimal, data its big-endian bytes.
func msgpackInt(tag byte, data string) string {
	if data == "" { // a fixint is its own tag
		return strconv.Itoa(int(int8(tag)))
	}
	var b [8]byte
	copy(b[8-len(data):], data)
	n := binary.BigEndian.Uint64(b[:])
	if tag <= 0xcf {
		return strconv.FormatUint(n, 10)
	}
	unused := 64 - 8*len(data)
	return strconv.FormatInt(int64(n<<unused)>>unused, 10)
}

func (w *msgpackWalker) begin(k kind, left uint64) (item, error) {
	if len(w.open) == maxNesting {
		return item{}, errSyntax
	}
	w.open = append(w.open, msgpackOpen{left, k == dict})
	return item{kind: k}, nil
}

func (w *msgpackWalker) next() (key item, more bool, err error) {
	top := &w.open[len(w.open)-1]
	if top.left == 0 {
		w.open = w.open[:len(w.open)-1]
		return item{}, false, nil
	}
	top.left--
	if !top.dict {
		return item{}, true, nil
	}
	// unpackb takes bytes for a key too; they equal no text.
	if key, err = w.value(); err != nil || key.kind != text && key.kind != other {
		return item{}, false, errSyntax
	}
	if key.kind == other {
		key = item{kind: other, raw: "\xff"}
	}
	return key, true, nil
}

func (w *msgpackWalker) skip(v item) error {
	if !v.opens() {
		return nil
	}
	for outside := len(w.open) - 1; len(w.open) > outside; {
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

func (w *msgpackWalker) end() error {
	if w.in.Len() > 0 {
		return errSyntax
	}
	return nil
}
