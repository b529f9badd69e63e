package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// errDecode marks bytes that are not what the protocol says.
var errDecode = errors.New("malformed replication message")

// pgEpoch is the zero of PostgreSQL's timestamps, 2000-01-01, in Unix microseconds.
const pgEpoch = 946_684_800_000_000

func pgTime(us int64) time.Time { return time.UnixMicro(us + pgEpoch) }

// cursor reads big-endian fields; reading past the end gives zeros and sets bad.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.b, c.bad = nil, true
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) u8() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) lsn() reconciler.LSN { return reconciler.LSN(c.u64()) }

// bytes32 reads a field with a 32-bit length.
func (c *cursor) bytes32() []byte { return c.take(int(int32(c.u32()))) } //nolint:gosec // take refuses a negative length

// str reads up to a zero byte.
func (c *cursor) str() []byte {
	for i, b := range c.b {
		if b == 0 {
			out := c.b[:i]
			c.b = c.b[i+1:]
			return out
		}
	}
	c.b, c.bad = nil, true
	return nil
}

// column is a field of a tuple: data is text where kind is 't'; other kinds are
// 'n' null, 'u' unchanged and not sent, 'b' binary (which is not asked for).
type column struct {
	kind byte
	data []byte
}

// text is the value of column i; ok is false where there is none.
func text(cols []column, i int) (data []byte, ok bool) {
	if i < 0 || i >= len(cols) || cols[i].kind != 't' {
		return nil, false
	}
	return cols[i].data, true
}

// bound is how a binding reads the columns of a relation; -1 for a column that
// the relation does not have.
type bound struct {
	binding int
	key     int
	columns []int
}

// relation is a table as the stream describes it; bound is empty for one that is
// of no binding.
type relation struct {
	name  string
	bound []bound
	// reported: that its rows cannot be read was said.
	reported bool
}

// message is a decoded pgoutput message. What it points to is valid until the
// next call of decode.
type message struct {
	// kind is the message's own byte: B, C, D, U, T, M; 0 for what does not matter.
	kind byte
	// lsn: of B the commit record's position, of C the end of it, of M its own.
	lsn  reconciler.LSN
	xid  uint32
	time time.Time

	// rel, old and new are of D and U; old is empty for a U without an old tuple.
	rel      *relation
	old, new []column

	// truncated are the relations of a T that are bound.
	truncated []*relation

	transactional bool
	prefix        []byte
	content       []byte
}

// decoder parses pgoutput messages of protocol version 1. It allocates for a
// relation only, not for a row.
type decoder struct {
	bindings  []reconciler.Binding
	relations map[uint32]*relation
	msg       message
}

func newDecoder(bindings []reconciler.Binding) *decoder {
	return &decoder{bindings: bindings, relations: map[uint32]*relation{}}
}

// decode parses one message. The answer is overwritten by the next call.
func (d *decoder) decode(data []byte) (*message, error) {
	m := &d.msg
	*m = message{old: m.old[:0], new: m.new[:0], truncated: m.truncated[:0]}
	c := cursor{b: data}
	kind := c.u8()
	var err error
	switch kind {
	case 'B':
		m.kind, m.lsn, m.time, m.xid = kind, c.lsn(), pgTime(int64(c.u64())), c.u32() //nolint:gosec // microseconds are signed
	case 'C':
		c.u8()  // flags
		c.lsn() // of the record's start
		m.kind, m.lsn = kind, c.lsn()
		c.u64() // its time, as in B
	case 'R':
		d.relation(&c)
	case 'D', 'U':
		err = d.row(kind, &c)
	case 'T':
		err = d.truncate(&c)
	case 'M':
		m.kind, m.transactional, m.lsn = kind, c.u8()&1 != 0, c.lsn()
		m.prefix, m.content = c.str(), c.bytes32()
	default: // I, O, Y, and what later versions may add
	}
	if err == nil && c.bad {
		err = errDecode
	}
	if err != nil {
		return nil, fmt.Errorf("message %q of %d bytes: %w", kind, len(data), err)
	}
	return m, nil
}

func (d *decoder) relation(c *cursor) {
	oid := c.u32()
	schema, table := string(c.str()), string(c.str())
	if schema == "" {
		schema = "pg_catalog"
	}
	c.u8() // replica identity
	n := int(c.u16())
	index := map[string]int{}
	for i := 0; i < n && !c.bad; i++ {
		c.u8() // flags
		index[string(c.str())] = i
		c.u32() // type
		c.u32() // its modifier
	}
	if c.bad {
		return
	}
	at := func(name string) int {
		if i, ok := index[name]; ok {
			return i
		}
		return -1
	}
	rel := &relation{name: schema + "." + table}
	for i, b := range d.bindings {
		if b.Schema != schema || b.Table != table {
			continue
		}
		bd := bound{binding: i, key: at(b.Key)}
		for _, name := range b.Columns {
			bd.columns = append(bd.columns, at(name))
		}
		rel.bound = append(rel.bound, bd)
	}
	d.relations[oid] = rel
}

// row parses a Delete, or an Update, which has no old tuple unless a column of
// the replica identity has changed, or all columns are of it.
func (d *decoder) row(kind byte, c *cursor) error {
	rel, ok := d.relations[c.u32()]
	if c.bad {
		return errDecode
	}
	if !ok {
		return fmt.Errorf("%w: relation was not described", errDecode)
	}
	if len(rel.bound) == 0 {
		return nil
	}
	m := &d.msg
	part := c.u8()
	if part == 'K' || part == 'O' {
		m.old = tuple(c, m.old)
		if kind == 'U' {
			part = c.u8()
		}
	}
	switch {
	case kind == 'D' && part != 'K' && part != 'O', kind == 'U' && part != 'N':
		return fmt.Errorf("%w: tuple %q", errDecode, part)
	case kind == 'U':
		m.new = tuple(c, m.new)
	}
	m.kind, m.rel = kind, rel
	return nil
}

func tuple(c *cursor, cols []column) []column {
	n := int(c.u16())
	for i := 0; i < n && !c.bad; i++ {
		col := column{kind: c.u8()}
		switch col.kind {
		case 't', 'b':
			col.data = c.bytes32()
		case 'n', 'u':
		default:
			c.bad = true
		}
		cols = append(cols, col)
	}
	return cols
}

func (d *decoder) truncate(c *cursor) error {
	n := int(c.u32())
	c.u8() // options
	for i := 0; i < n && !c.bad; i++ {
		rel, ok := d.relations[c.u32()]
		if !ok && !c.bad {
			return fmt.Errorf("%w: truncated relation was not described", errDecode)
		}
		if ok && len(rel.bound) > 0 {
			d.msg.truncated = append(d.msg.truncated, rel)
		}
	}
	d.msg.kind = 'T'
	return nil
}
