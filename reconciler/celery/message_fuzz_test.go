package celery_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// TestReadProperty builds envelopes with encoding/json and reads them back.
func TestReadProperty(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z0-9"\\/<>&:é😀-]{1,40}`))
		id, tag := text.Draw(t, "id"), text.Draw(t, "tag")
		name := rapid.SampledFrom([]string{"scan.echo", "scan.add", "other", "é\"\\"}).Draw(t, "name")
		arg := drawArgument(t, "arg")
		kwarg := drawArgument(t, "kwarg")
		v1 := rapid.Bool().Draw(t, "protocol 1")
		chord := rapid.Bool().Draw(t, "chord")
		var signature any
		if chord {
			signature = map[string]any{
				"task": "scan.echo", "args": []any{arg.value}, "kwargs": map[string]any{}, "options": map[string]any{"task_id": "b"},
			}
		}
		headers := map[string]any{"x": drawNoise(t), "group": "g"}
		args, kwargs := []any{arg.value, drawNoise(t)}, map[string]any{"scan_id": kwarg.value, "y": drawNoise(t)}
		var body any = []any{args, kwargs, map[string]any{"chord": signature, "chain": drawNoise(t)}}
		if v1 {
			body = map[string]any{"id": id, "task": name, "args": args, "kwargs": kwargs, "chord": signature}
		} else {
			headers["id"], headers["task"] = id, name
		}
		envelope := mustJSON(t, map[string]any{
			"body": base64.StdEncoding.EncodeToString([]byte(mustJSON(t, body))), "content-type": "application/json", "headers": headers,
			"properties": map[string]any{"delivery_info": map[string]any{"exchange": "", "routing_key": "q"}, "delivery_tag": tag, "body_encoding": "base64", "x": drawNoise(t)},
		})
		m, err := r.Read(envelope)
		if (err == nil) != (id != "" && tag != "") {
			t.Fatalf("%s: %v", envelope, err)
		}
		if err != nil {
			return
		}
		if m.ID != id || m.Name != name || m.Place.Tag != tag || m.InChord != chord {
			t.Fatalf("%s: %+v", envelope, m)
		}
		var refs, bodyRefs []reconciler.RowRef
		if arg.key != "" {
			bodyRefs = append(bodyRefs, ref(1, arg.key))
		}
		if name == "scan.echo" {
			refs = append(refs, bodyRefs...)
			if kwarg.key != "" {
				refs = append(refs, ref(2, kwarg.key))
			}
		} else {
			refs = m.Refs
		}
		if !reflect.DeepEqual(m.Refs, refs) || chord && !reflect.DeepEqual(m.Body.Refs, bodyRefs) {
			t.Fatalf("%s: %v %+v", envelope, m.Refs, m.Body)
		}
	})
}

// argument is a value and the row's key that it is.
type argument struct {
	value any
	key   string
}

func drawArgument(t *rapid.T, label string) argument {
	switch rapid.IntRange(0, 4).Draw(t, label) {
	case 0:
		n := rapid.Int64().Draw(t, label)
		return argument{n, strconv.FormatInt(n, 10)}
	case 1:
		hex := rapid.StringMatching(`[0-9a-f]{32}`).Draw(t, label)
		typed := map[string]any{"__type__": "uuid", "__value__": map[string]any{"hex": hex}}
		return argument{typed, reconciler.CanonicalID(hex)}
	case 2:
		return argument{drawNoise(t), ""}
	default:
		s := rapid.String().Draw(t, label)
		return argument{s, reconciler.CanonicalID(s)}
	}
}

// drawNoise is a value that is no row's key.
func drawNoise(t *rapid.T) any {
	return rapid.SampledFrom([]any{
		nil, true, 1.5, []any{}, []any{[]any{"id"}, 1}, map[string]any{}, map[string]any{"id": "no", "task": map[string]any{"chord": 1}},
	}).Draw(t, "noise")
}

func mustJSON(t *rapid.T, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// checkAgainstJSON: where encoding/json reads the envelope whole, an id that we
// give is the one that it sees. It replaces what is no UTF-8, which we refuse.
func checkAgainstJSON(t *testing.T, m reconciler.Message, envelope []byte) {
	var e struct {
		Headers map[string]json.RawMessage `json:"headers"`
	}
	if !exactKeys(envelope) || json.Unmarshal(envelope, &e) != nil || e.Headers["id"] == nil {
		return
	}
	var id string
	if json.Unmarshal(e.Headers["id"], &id) != nil || id != m.ID {
		t.Errorf("%q: id %q, want %q", envelope, m.ID, id)
	}
}

// exactKeys tells whether no key of the envelope differs from ours in case only, or
// is written twice: encoding/json would merge what Python keeps apart.
func exactKeys(envelope []byte) bool {
	var top map[string]json.RawMessage
	if json.Unmarshal(envelope, &top) != nil {
		return false
	}
	n := 0
	for key := range top {
		if strings.EqualFold(key, "headers") {
			n++
		}
	}
	return n == 1 && bytes.Count(bytes.ToLower(envelope), []byte(`headers`)) == 1 && !bytes.Contains(envelope, []byte(`\u`))
}

func FuzzRead(f *testing.F) {
	for _, file := range samples(f, "5.6.3/msg-*.message*.bin", 40) {
		f.Add([]byte(readFile(f, file)))
	}
	f.Add([]byte(`{"body":"","headers":{"id":"\ud83d\ude00","id":NaN},"properties":{"delivery_info":{"exchange":"","routing_key":"q"},"delivery_tag":"t"}}`))
	r := celery.NewReader(byArgument)
	f.Fuzz(func(t *testing.T, envelope []byte) {
		m, err := r.Read(string(envelope))
		celery.Priority(string(envelope))
		if err != nil {
			return
		}
		checkMessage(t, m)
		if json.Valid(envelope) {
			checkAgainstJSON(t, m, envelope)
		}
		again, exchange, routingKey, err := r.ReadUnacked(`[` + string(envelope) + `, "e", "r"]`)
		again.Place.Kind, again.Place.Held = m.Place.Kind, ""
		again.Place.Envelope = m.Place.Envelope // without white space around it
		if err != nil || exchange != "e" || routingKey != "r" || !reflect.DeepEqual(again, m) {
			t.Errorf("%q: unacked: %+v, %v", envelope, again, err)
		}
	})
}

func checkMessage(t *testing.T, m reconciler.Message) {
	if m.ID == "" || m.Place.Tag == "" || !utf8.ValidString(m.ID+m.Name+m.Place.Tag) || m.Body != nil && !m.InChord {
		t.Errorf("%+v", m)
	}
	for _, ref := range m.Refs {
		if ref.Key == "" || ref != reconciler.NewRowRef(ref.Binding, ref.Key) || !utf8.ValidString(ref.Key) {
			t.Errorf("%+v", ref)
		}
	}
}

func FuzzReadUnacked(f *testing.F) {
	for _, file := range samples(f, "5.6.3/unacked-*.hashvalue*.bin", 6) {
		f.Add([]byte(readFile(f, file)))
	}
	r := celery.NewReader(byArgument)
	f.Fuzz(func(t *testing.T, value []byte) {
		m, exchange, routingKey, err := r.ReadUnacked(string(value))
		if err != nil {
			return
		}
		checkMessage(t, m)
		queued, err := r.Read(m.Place.Envelope)
		queued.Place = m.Place
		if err != nil || !reflect.DeepEqual(queued, m) {
			t.Errorf("%q: %+v, %v", value, queued, err)
		}
		var parts []json.RawMessage
		if json.Unmarshal(value, &parts) != nil {
			return
		}
		var route [2]string
		if len(parts) != 3 || json.Unmarshal(parts[1], &route[0]) != nil || json.Unmarshal(parts[2], &route[1]) != nil {
			t.Fatalf("%q", value)
		}
		if string(parts[0]) != m.Place.Envelope || !bytes.Contains(value, []byte(`\u`)) && route != [2]string{exchange, routingKey} {
			t.Errorf("%q: %q %q %q", value, m.Place.Envelope, exchange, routingKey)
		}
	})
}

func FuzzResultRefs(f *testing.F) {
	for _, file := range samples(f, "5.6.3/*-ext.result.bin", 10) {
		f.Add([]byte(readFile(f, file)))
	}
	f.Add([]byte("args: &a [*a]\nkwargs: {<<: *a}\n"))
	r := celery.NewReader(byArgument)
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, ref := range r.ResultRefs(string(value), "scan.echo") {
			if ref.Key == "" || ref != reconciler.NewRowRef(ref.Binding, ref.Key) {
				t.Errorf("%q: %+v", value, ref)
			}
		}
		// The same bytes as the body of a message, in each format.
		for _, contentType := range []string{"application/json", "application/x-yaml", "application/x-msgpack"} {
			m, err := r.Read(envelope(`{"id":"i","task":"scan.echo","group":"g"}`, contentType, string(value), ""))
			if err != nil || m.ID != "i" {
				t.Errorf("%q: %v", value, err)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	plain, bound := celery.NewReader(nil), celery.NewReader(byArgument)
	run := func(name, file string, r *celery.Reader) {
		envelope := readFile(b, "testdata/5.6.3/"+file)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(envelope)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Read(envelope); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("header", "msg-args.message.bin", plain)
	run("header-9k", "msg-bigargs.message.bin", plain)
	run("args-json", "msg-args.message.bin", bound)
	run("args-typed", "msg-typed.message.bin", bound)
	run("args-yaml", "msg-yaml.message.bin", bound)
	run("args-msgpack", "msg-msgpack.message.bin", bound)
	run("chord", "msg-chord.message.bin", plain)
	run("protocol1", "msg-proto1.message.bin", plain)
	for _, c := range []string{"gzip", "bzip2", "lzma", "zstd", "brotli"} {
		run("args-"+c, "msg-"+c+".message.bin", bound)
	}
}

func BenchmarkReadUnacked(b *testing.B) {
	value, r := readFile(b, "testdata/5.6.3/unacked-eta.hashvalue.bin"), celery.NewReader(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := r.ReadUnacked(value); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResultRefs(b *testing.B) {
	value, r := readFile(b, "testdata/5.6.3/result-success-args-kwargs-ext.result.bin"), celery.NewReader(byArgument)
	b.ReportAllocs()
	for b.Loop() {
		if len(r.ResultRefs(value, "scan.echo")) != 2 {
			b.Fatal()
		}
	}
}
