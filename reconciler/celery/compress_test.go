package celery_test

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// bzip2Bomb is what Python's bz2.compress makes of bomb(9 << 20); Go only reads it.
const bzip2Bomb = "QlpoOTFBWSZTWXkRLlkAAAWbwNAEABAACixFkgoABAAIIABQpkxMgyMCpUyAAxK1b31tfjjOlK4CECFOpCRIJEyv5i31sYq905gh" +
	"Ah+LuSKcKEg8iJcsgA=="

func bomb(size int) string {
	return `[["7", "` + strings.Repeat("a", size) + `"], {}, {"chord": null}]`
}

func compressors(t *testing.T) map[string]func(string) string {
	pack := func(s string, w func(io.Writer) io.WriteCloser) string {
		var b bytes.Buffer
		c := w(&b)
		if _, err := io.WriteString(c, s); err != nil || c.Close() != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	return map[string]func(string) string{
		"application/x-gzip":   func(s string) string { return pack(s, func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) }) },
		"application/x-brotli": func(s string) string { return pack(s, func(w io.Writer) io.WriteCloser { return brotli.NewWriter(w) }) },
		"application/x-lzma": func(s string) string {
			return pack(s, func(w io.Writer) io.WriteCloser { x, _ := xz.NewWriter(w); return x })
		},
		"application/zstd": func(s string) string {
			return pack(s, func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z })
		},
		"application/x-bz2": func(s string) string {
			b, _ := base64.StdEncoding.DecodeString(bzip2Bomb)
			if len(s) > maxBody {
				return string(b)
			}
			return ""
		},
	}
}

const maxBody = 8 << 20

// TestReadBombs: a body beyond the limit is not read, whatever it is compressed
// with, and what it costs in memory is bounded; the header's id still counts.
func TestReadBombs(t *testing.T) {
	r := celery.NewReader(byArgument)
	all := compressors(t)
	for method, compress := range all {
		headers := `{"id":"i","task":"scan.echo","group":"g","compression":"` + method + `"}`
		big := envelope(headers, "application/json", compress(bomb(9<<20)), "")
		if len(big) > 100_000 {
			t.Errorf("%s: not a bomb: %d bytes", method, len(big))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m, err := r.Read(big)
		runtime.ReadMemStats(&after)
		if err != nil || m.ID != "i" || m.Refs != nil || !m.InChord || m.Body != nil {
			t.Errorf("%s: %v %v %v", method, m.Refs, m.InChord, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 8*maxBody {
			t.Errorf("%s: %d MiB allocated", method, used>>20)
		}
		if method == "application/x-bz2" {
			continue
		}
		whole := compress(bomb(1 << 20))
		if m, err := r.Read(envelope(headers, "application/json", whole, "")); err != nil || len(m.Refs) != 1 || m.InChord {
			t.Errorf("%s: %d refs, %v", method, len(m.Refs), err)
		}
		for other := range all {
			wrong := strings.Replace(headers, method, other, 1)
			if m, err := r.Read(envelope(wrong, "application/json", whole, "")); other != method && (err != nil || m.Refs != nil) {
				t.Errorf("%s as %s: %v", method, other, err)
			}
		}
		for _, n := range []int{0, 1, 12, len(whole) / 2, len(whole) - 5} {
			if m, err := r.Read(envelope(headers, "application/json", whole[:n], "")); err != nil || m.Refs != nil && n < len(whole)-5 {
				t.Errorf("%s cut to %d: %d refs, %v", method, n, len(m.Refs), err)
			}
		}
	}
	if m, err := r.Read(envelope(echo, "application/json", bomb(9<<20), "")); err != nil || m.ID != "i" || m.Refs != nil {
		t.Error("a plain body beyond the limit:", err)
	}
}

// TestReadXZDictionary: a block may ask for a dictionary of 4 GiB in a few bytes.
func TestReadXZDictionary(t *testing.T) {
	var e struct{ Body string }
	if err := json.Unmarshal([]byte(readFile(t, "testdata/5.6.3/msg-lzma.message.bin")), &e); err != nil {
		t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(e.Body)
	if err != nil || b[14] != 0x21 || b[15] != 1 {
		t.Fatal(err, "the block header's filter")
	}
	b[16] = 40
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = celery.NewReader(byArgument).Read(envelope(`{"id":"i","task":"scan.echo","compression":"xz"}`, "application/json", string(b), ""))
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; err != nil || used > 2*maxBody {
		t.Errorf("%d MiB allocated, %v", used>>20, err)
	}
}
