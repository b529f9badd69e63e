package celery

import (
	"encoding/binary"
	"errors"
	"io"
)

// msgpackReader reads as much of MessagePack as a top-level map needs.
type msgpackReader struct{ r io.ByteReader }

func parseMsgpack(r io.ByteScanner) (v Value, err error) {
	m := msgpackReader{r}
	tag, err := m.r.ReadByte()
	if err != nil {
		return v, err
	}
	var fields uint64
	switch {
	case tag >= 0x80 && tag <= 0x8f:
		fields = uint64(tag & 0x0f)
	case tag == 0xde:
		fields, err = m.uint(2)
	case tag == 0xdf:
		fields, err = m.uint(4)
	default:
		err = errValue
	}
	if err != nil {
		return v, err
	}
	for range fields {
		field, _, err := m.textOrSkip()
		if err != nil {
			return v, err
		}
		text, ok, err := m.textOrSkip()
		if err != nil {
			return v, err
		}
		if !ok {
			text = ""
		}
		v.set(field, text)
	}
	if _, err = m.r.ReadByte(); !errors.Is(err, io.EOF) {
		return v, errValue
	}
	return v, nil
}

// textOrSkip reads one value: a text of up to maxText bytes is given, anything
// else is passed over. It holds nothing of what it skips.
func (m msgpackReader) textOrSkip() (text string, ok bool, err error) {
	tag, err := m.r.ReadByte()
	if err != nil {
		return "", false, err
	}
	n, values, err := m.extent(tag)
	if err != nil {
		return "", false, err
	}
	isText := tag >= 0xa0 && tag <= 0xbf || tag >= 0xd9 && tag <= 0xdb
	if isText && n <= maxText {
		b := make([]byte, n)
		for i := range b {
			if b[i], err = m.r.ReadByte(); err != nil {
				return "", false, err
			}
		}
		return string(b), true, nil
	}
	if err = m.discard(n); err != nil {
		return "", false, err
	}
	return "", false, m.skip(values)
}

// skip passes over values, with the counts of the open arrays and maps as its
// only memory.
func (m msgpackReader) skip(values uint64) error {
	open := make([]uint64, 1, 8)
	open[0] = values
	for len(open) > 0 {
		top := len(open) - 1
		if open[top] == 0 {
			open = open[:top]
			continue
		}
		open[top]--
		tag, err := m.r.ReadByte()
		if err != nil {
			return err
		}
		n, inner, err := m.extent(tag)
		if err != nil {
			return err
		}
		if err = m.discard(n); err != nil {
			return err
		}
		if inner > 0 {
			if len(open) >= maxDepth {
				return errValue
			}
			open = append(open, inner)
		}
	}
	return nil
}

// extent tells how many bytes and how many values follow a tag.
func (m msgpackReader) extent(tag byte) (bytes, values uint64, err error) {
	switch {
	case tag <= 0x7f, tag >= 0xe0, tag == 0xc0, tag == 0xc2, tag == 0xc3:
		return 0, 0, nil
	case tag <= 0x8f:
		return 0, 2 * uint64(tag&0x0f), nil
	case tag <= 0x9f:
		return 0, uint64(tag & 0x0f), nil
	case tag <= 0xbf:
		return uint64(tag & 0x1f), 0, nil
	}
	switch tag {
	case 0xc4, 0xd9: // bin 8, str 8
		bytes, err = m.uint(1)
	case 0xc5, 0xda:
		bytes, err = m.uint(2)
	case 0xc6, 0xdb:
		bytes, err = m.uint(4)
	case 0xc7: // ext 8: a length, a type, the data
		bytes, err = m.uint(1)
		bytes++
	case 0xc8:
		bytes, err = m.uint(2)
		bytes++
	case 0xc9:
		bytes, err = m.uint(4)
		bytes++
	case 0xcc, 0xd0: // 8 bits
		bytes = 1
	case 0xcd, 0xd1:
		bytes = 2
	case 0xca, 0xce, 0xd2:
		bytes = 4
	case 0xcb, 0xcf, 0xd3:
		bytes = 8
	case 0xd4, 0xd5, 0xd6, 0xd7, 0xd8: // fixext 1, 2, 4, 8, 16
		bytes = 1 + 1<<(tag-0xd4)
	case 0xdc:
		values, err = m.uint(2)
	case 0xdd:
		values, err = m.uint(4)
	case 0xde:
		values, err = m.uint(2)
		values *= 2
	case 0xdf:
		values, err = m.uint(4)
		values *= 2
	default:
		err = errValue
	}
	return bytes, values, err
}

func (m msgpackReader) uint(size int) (uint64, error) {
	var b [8]byte
	for i := 8 - size; i < 8; i++ {
		var err error
		if b[i], err = m.r.ReadByte(); err != nil {
			return 0, err
		}
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

func (m msgpackReader) discard(n uint64) error {
	for range n {
		if _, err := m.r.ReadByte(); err != nil {
			return err
		}
	}
	return nil
}
