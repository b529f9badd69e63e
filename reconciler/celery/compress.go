package celery

import (
	"compress/bzip2"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"hash/crc64"
	"io"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"
)

// decompress undoes headers.compression: the content types and aliases of
// kombu.compression, where gzip is a bare zlib stream. It fails where the result
// is longer than maxBody.
func decompress(body, method string) (string, error) {
	var r io.Reader
	var err error
	switch in := strings.NewReader(body); method {
	case "application/x-gzip", "gzip", "zlib":
		r, err = zlib.NewReader(in)
	case "application/x-bz2", "bzip2", "bzip":
		r = bzip2.NewReader(in)
	case "application/x-brotli", "brotli":
		r = brotli.NewReader(in)
	case "application/x-lzma", "lzma", "xz":
		return unxz(body)
	case "application/zstd", "zstd", "zstandard":
		b, err := unzstd.DecodeAll([]byte(body), nil)
		return string(b), err
	default:
		err = errSyntax
	}
	if err != nil {
		return "", err
	}
	return readAll(r)
}

// unzstd is used for whole bodies only, which is safe for concurrent use and
// starts no goroutines.
var unzstd = func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxBody), zstd.WithDecoderMaxWindow(maxBody))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
}()

// unxz reads the one block that Python's lzma.compress writes (The .xz File Format,
// 2.1.1 and 3). The library's own reader allocates the dictionary that the block
// asks for, up to 4 GiB; none longer than the content is of use.
func unxz(body string) (string, error) {
	const header = 12
	if len(body) < header+1 || !strings.HasPrefix(body, "\xfd7zXZ\x00") || body[header] == 0 {
		return "", errSyntax
	}
	data := header + int(body[header])*4 + 4
	if len(body) < data {
		return "", errSyntax
	}
	dictionary, err := xzDictionary(body[header+1 : data-4])
	if err != nil {
		return "", err
	}
	size, err := lzma2Size(body[data:])
	if err != nil {
		return "", err
	}
	in := strings.NewReader(body[data:])
	r, err := lzma.Reader2Config{DictCap: int(max(lzma.MinDictCap, min(dictionary, size)))}.NewReader2(in)
	if err != nil {
		return "", err
	}
	out, err := readAll(r)
	if err != nil {
		return "", err
	}
	check := body[(len(body)-in.Len()+3)&^3:]
	switch body[7] {
	case 4: // the default, CRC64
		if len(check) >= 8 && littleEndian(check[:8]) == crc64.Checksum([]byte(out), crc64ECMA) {
			return out, nil
		}
	case 1:
		if len(check) >= 4 && littleEndian(check[:4]) == uint64(crc32.ChecksumIEEE([]byte(out))) {
			return out, nil
		}
	}
	return "", errSyntax
}

var crc64ECMA = crc64.MakeTable(crc64.ECMA)

func littleEndian(s string) (n uint64) {
	for i := len(s) - 1; i >= 0; i-- {
		n = n<<8 | uint64(s[i])
	}
	return n
}

// xzDictionary is the dictionary's size, from a block header between its size and
// its checksum.
func xzDictionary(s string) (int64, error) {
	flags, rest := s[0], []byte(s[1:])
	for _, size := range []byte{0x40, 0x80} { // the compressed and the uncompressed size
		if flags&size != 0 {
			_, n := binary.Uvarint(rest)
			if n <= 0 {
				return 0, errSyntax
			}
			rest = rest[n:]
		}
	}
	if flags&0x3f != 0 || len(rest) < 3 || rest[0] != 0x21 || rest[1] != 1 {
		return 0, errSyntax // not one filter, LZMA2
	}
	return lzma.DecodeDictCap(rest[2])
}

// lzma2Size is how long the content is of the LZMA2 chunks that s begins with, as
// their headers say (The .xz File Format, 5.3.1; the chunks are as in liblzma).
func lzma2Size(s string) (size int64, err error) {
	for {
		if s == "" {
			return 0, errSyntax
		}
		control := s[0]
		if control == 0 {
			return size, nil
		}
		if len(s) < 6 {
			return 0, errSyntax
		}
		n := int64(s[1])<<8 + int64(s[2]) + 1
		skip := 3 + n // a chunk that is not compressed
		if control >= 0x80 {
			n += int64(control&0x1f) << 16
			skip = 5 + int64(s[3])<<8 + int64(s[4]) + 1
			if control >= 0xc0 {
				skip++ // the byte of new properties
			}
		}
		if size += n; size > maxBody || skip > int64(len(s)) {
			return 0, errSyntax
		}
		s = s[skip:]
	}
}

// readAll reads to the end, and fails where that is beyond maxBody.
func readAll(r io.Reader) (string, error) {
	b := make([]byte, 0, 1024)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):min(cap(b), maxBody+1)])
		b = b[:len(b)+n]
		switch {
		case len(b) > maxBody:
			return "", errSyntax
		case errors.Is(err, io.EOF):
			return string(b), nil
		case err != nil:
			return "", err
		}
	}
}
