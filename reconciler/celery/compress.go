package celery

import (
	"compress/bzip2"
	"compress/zlib"
	"encoding/binary"
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
// asks for, up to 4 GiB; none longer than what we read is of use.
func unxz(body string) (string, error) {
	const header = 12
	if len(body) < header+1 || !strings.HasPrefix(body, "\xfd7zXZ\x00") || body[header] == 0 {
		return "", errSyntax
	}
	data := header + int(body[header])*4 + 4
	if len(body) < data {
		return "", errSyntax
	}
	size, err := xzDictionary(body[header+1 : data-4])
	if err != nil {
		return "", err
	}
	in := strings.NewReader(body[data:])
	r, err := lzma.Reader2Config{DictCap: int(min(size, maxBody))}.NewReader2(in)
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

func readAll(r io.Reader) (string, error) {
	var out strings.Builder
	n, err := io.Copy(&out, io.LimitReader(r, maxBody+1))
	if err == nil && n > maxBody {
		err = errSyntax
	}
	return out.String(), err
}
