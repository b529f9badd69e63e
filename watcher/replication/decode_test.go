package replication

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
)

var fuzzBindings = []reconciler.Binding{
	{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true, Columns: []string{"celery_task_id"}},
}

// streams are the recorded ones of testdata: a hex line for each message.
func streams(tb testing.TB) [][]byte {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "stream.hex"))
	require.NoError(tb, err)
	var out [][]byte
	for line := range strings.Lines(string(data)) {
		b, err := hex.DecodeString(strings.TrimSpace(line))
		require.NoError(tb, err)
		out = append(out, b)
	}
	return out
}

// TestRecordedStream: the messages of PostgreSQL 15, byte for byte.
func TestRecordedStream(t *testing.T) {
	d := newDecoder(fuzzBindings)
	kinds := ""
	var keys []string
	for _, b := range streams(t) {
		m, err := d.decode(b)
		require.NoError(t, err)
		if m.kind == 0 {
			kinds += "."
			continue
		}
		kinds += string(m.kind)
		if m.rel != nil {
			key, _ := text(m.old, m.rel.bound[0].key)
			keys = append(keys, string(key))
		}
		for cut := range b { // every truncation of it is an error, or nothing of ours
			short := newDecoder(fuzzBindings)
			short.relations = d.relations
			if m, err := short.decode(b[:cut]); err == nil {
				require.Zero(t, m.kind, "%x cut at %d", b, cut)
			}
		}
	}
	require.Equal(t, "B.UDMD..TC", kinds)
	require.Equal(t, []string{id1, id2, id3}, keys)
}

// TestDecodeErrors: what no server sends.
func TestDecodeErrors(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty commit":         {'C'},
		"unknown relation":     {'D', 0, 0, 0, 1, 'K', 0, 0},
		"unknown in truncate":  {'T', 0, 0, 0, 1, 0, 0, 0, 0, 9},
		"huge relation":        {'R', 0, 0, 0, 1, 'a', 0, 'b', 0, 'd', 0xff, 0xff},
		"negative length":      append([]byte{'M', 0, 0, 0, 0, 0, 0, 0, 0, 0, 'p', 0}, 0xff, 0xff, 0xff, 0xff),
		"prefix without end":   {'M', 0, 0, 0, 0, 0, 0, 0, 0, 0, 'p'},
		"relation without end": {'R', 0, 0, 0, 1, 'a'},
	} {
		_, err := newDecoder(fuzzBindings).decode(b)
		require.ErrorIs(t, err, errDecode, name)
	}
}

// TestNoAllocation: a row costs nothing here.
func TestNoAllocation(t *testing.T) {
	d := newDecoder(fuzzBindings)
	var row []byte
	for _, b := range streams(t) {
		_, err := d.decode(b)
		require.NoError(t, err)
		if b[0] == 'D' {
			row = b
		}
	}
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = d.decode(row) }))
}

// FuzzDecode: hostile bytes give an error or a message whose parts are within them.
func FuzzDecode(f *testing.F) {
	recorded := streams(f)
	for _, b := range recorded {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newDecoder(fuzzBindings)
		for _, b := range recorded[:2] { // B, R
			_, err := d.decode(b)
			require.NoError(t, err)
		}
		if len(data) > 5 && (data[0] == 'D' || data[0] == 'U') { // of the relation that is known
			for oid := range d.relations {
				binary.BigEndian.PutUint32(data[1:], oid)
			}
		}
		s := &Session{clock: &clock{}, src: New(Options{}), opts: Options{Bindings: fuzzBindings}, log: New(Options{}).log}
		s.decoder, s.sink = d, newSink()
		s.ledger, s.net = newLedger(1, func() {}), devNull{}
		xlog := append([]byte{'w'}, make([]byte, 24)...)
		for _, b := range [][]byte{append(xlog, recorded[0]...), append(xlog, data...), data} {
			if err := s.copyData(t.Context(), b); err != nil {
				require.ErrorIs(t, err, errDecode)
			}
		}
		require.LessOrEqual(t, reconciler.LSN(1), s.ledger.Confirmed())
	})
}

// devNull takes the statuses that a keepalive asks for.
type devNull struct{ net.Conn }

func (devNull) Write(b []byte) (int, error)      { return len(b), nil }
func (devNull) SetWriteDeadline(time.Time) error { return nil }
func (devNull) SetReadDeadline(time.Time) error  { return nil }

// TestRecord writes testdata anew from a real server, when asked to.
func TestRecord(t *testing.T) {
	r := newRig(t, options(sandbox.NewExampleDatabase(t), fuzzBindings...))
	r.exec("ALTER TABLE scan_tasks REPLICA IDENTITY FULL",
		"INSERT INTO scan_tasks (id, celery_task_id, created_at) VALUES ('"+id1+"', 'c1', 'epoch'), ('"+id2+"', NULL, 'epoch'), ('"+id3+"', 'c3', 'epoch')")
	sess, err := r.src.Acquire(t.Context(), func(string) {})
	require.NoError(t, err)
	s := sess.(*Session)
	defer closeConn(s.conn)
	defer s.net.Close()
	r.exec("ALTER PUBLICATION "+r.src.opts.Publication+" SET (publish = 'insert, update, delete, truncate')",
		"BEGIN", "UPDATE scan_tasks SET id = gen_random_uuid() WHERE id = '"+id1+"'", "DELETE FROM scan_tasks WHERE id = '"+id2+"'",
		"SELECT pg_logical_emit_message(true, 'traceparent', '00-abc-def-01')", "DELETE FROM scan_tasks WHERE id = '"+id3+"'",
		"INSERT INTO scan_tasks DEFAULT VALUES", "TRUNCATE scan_tasks CASCADE", "COMMIT")
	var lines []string
	kinds := ""
	for !strings.HasSuffix(kinds, "C") {
		msg, err := s.front.Receive()
		require.NoError(t, err)
		if data, ok := msg.(*pgproto3.CopyData); ok && data.Data[0] == 'w' {
			kinds += string(data.Data[25])
			lines = append(lines, hex.EncodeToString(data.Data[25:]))
		}
	}
	// A relation is described again whenever the server's cache of it was invalidated.
	require.Regexp(t, "BR+UR*DR*MR*DR*IR+TC", kinds)
	if os.Getenv("RECORD") != "" {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(filepath.Join("testdata", "stream.hex"), []byte(strings.Join(lines, "\n")+"\n"), 0o644))
	}
}
