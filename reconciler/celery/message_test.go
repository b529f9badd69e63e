package celery_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// byArgument are the bindings of these tests: the arguments that the samples have.
var byArgument = []reconciler.Binding{
	{Schema: "public", Table: "ids", CeleryID: true},
	{Schema: "public", Table: "rows", Args: []int{0}, Names: []string{"scan.echo", "scan.retry"}},
	{Schema: "public", Table: "scans", Args: []int{6}, Kwargs: []string{"scan_id"}, Names: []string{"scan.echo"}},
	{Schema: "public", Table: "sums", Args: []int{1, 1}, Names: []string{"scan.add", "scan.sum"}},
}

func ref(binding int, key string) reconciler.RowRef {
	return reconciler.RowRef{Binding: binding, Key: key}
}

// sampleRefs is what index.json, and the bytes, say of each sample's arguments.
var sampleRefs = map[string][]reconciler.RowRef{
	"msg-args":           {ref(3, "2")},
	"msg-bigargs":        {ref(1, strings.Repeat("A", 3000))},
	"msg-kwargs":         {ref(2, "42")},
	"msg-unicode":        {ref(1, "é\u2028😀")},
	"msg-typed":          {ref(1, "0a1b2c3d-0000-4000-8000-00000000002a"), ref(2, "1180591620717411303424")},
	"msg-pickle":         nil,
	"msg-proto1":         {ref(1, "row-42"), ref(2, "42")},
	"msg-restored.0":     {ref(1, "3600")},
	"msg-restored.1":     {ref(3, "2")},
	"unacked-retry":      {ref(1, "3600")},
	"unacked-retry-ext":  {ref(1, "3600")},
	"unacked-prefetched": {ref(1, "0")},
	"unacked-eta":        {ref(3, "2")},
	"msg-chain":          {ref(3, "1")},
}

func wantRefs(name, task string) []reconciler.RowRef {
	base, rest, _ := strings.Cut(name, ".")
	if refs, ok := sampleRefs[base]; ok {
		return refs
	}
	if n := strings.TrimSuffix(strings.TrimPrefix(rest, "message"), ".bin"); base == "msg-restored" {
		return sampleRefs[base+"."+n]
	}
	switch {
	case base == "msg-group" || base == "msg-chord":
		if strings.Contains(rest, "message1") {
			return []reconciler.RowRef{ref(3, "1")}
		}
		return []reconciler.RowRef{ref(3, "2")}
	case task == "scan.echo":
		return sampleRefs["msg-proto1"]
	case task == "scan.add":
		return sampleRefs["msg-args"]
	}
	return nil
}

// sample is what encoding/json, and nothing of ours, reads of an envelope.
type sample struct {
	Body        string `json:"body"`
	ContentType string `json:"content-type"`
	Headers     struct {
		ID, Task    string
		Group       *string
		Compression *string
	} `json:"headers"`
	Properties struct {
		DeliveryTag   string `json:"delivery_tag"`
		CorrelationID string `json:"correlation_id"`
		Priority      int    `json:"priority"`
	} `json:"properties"`
}

func decodeSample(t *testing.T, envelope string) (s sample) {
	t.Helper()
	if err := json.Unmarshal([]byte(envelope), &s); err != nil {
		t.Fatal(err)
	}
	if s.Headers.ID == "" {
		s.Headers.ID = s.Properties.CorrelationID
		s.Headers.Task = "scan.echo"
		if body, _ := base64.StdEncoding.DecodeString(s.Body); bytes.Contains(body, []byte("scan.add")) {
			s.Headers.Task = "scan.add"
		}
	}
	return s
}

func samples(t testing.TB, pattern string, atLeast int) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/" + pattern)
	if err != nil || len(files) < atLeast {
		t.Fatal(pattern, len(files), err)
	}
	return files
}

func readFile(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestReadSamples goes over messages that producers of five versions of Celery
// sent, in both protocols, four serializers and five compressions.
func TestReadSamples(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	for _, file := range samples(t, "*/msg-*.message*.bin", 5*40) {
		name, envelope := filepath.Base(file), readFile(t, file)
		m, err := r.Read(envelope)
		if strings.HasPrefix(name, "msg-proto1-pickle") {
			if !errors.Is(err, celery.ErrUnreadable) {
				t.Errorf("%s: %+v, %v", file, m, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		checkSample(t, file, m, decodeSample(t, envelope))
		place := reconciler.Place{Kind: reconciler.QueuedMessage, Tag: m.Place.Tag, Envelope: envelope}
		if m.Place != place {
			t.Errorf("%s: place %+v", file, m.Place)
		}
	}
}

func checkSample(t *testing.T, file string, m reconciler.Message, want sample) {
	t.Helper()
	name := filepath.Base(file)
	if m.ID != want.Headers.ID || m.Name != want.Headers.Task || m.Place.Tag != want.Properties.DeliveryTag {
		t.Errorf("%s: id %q, name %q, tag %q", file, m.ID, m.Name, m.Place.Tag)
	}
	if refs := wantRefs(name, m.Name); !reflect.DeepEqual(m.Refs, refs) {
		t.Errorf("%s: refs %.200v, want %.200v", file, m.Refs, refs)
	}
	if p := celery.Priority(m.Place.Envelope); p != want.Properties.Priority {
		t.Errorf("%s: priority %d", file, p)
	}
	chord := strings.HasPrefix(name, "msg-chord")
	if m.InChord != chord || (m.Body != nil) != chord {
		t.Errorf("%s: chord %v, %+v", file, m.InChord, m.Body)
	}
	if !chord {
		return
	}
	body, err := base64.StdEncoding.DecodeString(want.Body)
	if err != nil {
		t.Fatal(err)
	}
	if m.Body.Name != "scan.sum" || !bytes.Contains(body, []byte(`"task_id": "`+m.Body.ID+`"`)) || m.Body.Refs != nil {
		t.Errorf("%s: body %+v", file, m.Body)
	}
}

func TestReadUnackedSamples(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	for _, file := range samples(t, "*/unacked-*.hashvalue*.bin", 5*6) {
		value := readFile(t, file)
		m, exchange, routingKey, err := r.ReadUnacked(value)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		var parts [3]json.RawMessage
		if err := json.Unmarshal([]byte(value), &parts); err != nil {
			t.Fatal(err)
		}
		if m.Place.Kind != reconciler.UnackedMessage || m.Place.Held != value || m.Place.Envelope != string(parts[0]) {
			t.Errorf("%s: place %+v", file, m.Place)
		}
		if `"`+exchange+`"` != string(parts[1]) || `"`+routingKey+`"` != string(parts[2]) {
			t.Errorf("%s: %q %q", file, exchange, routingKey)
		}
		checkSample(t, file, m, decodeSample(t, m.Place.Envelope))
	}
}

// TestRestoredKeepsTag: what a worker gave back has other bytes, and the same tag.
func TestRestoredKeepsTag(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(nil)
	for _, v := range []string{"5.2.6", "5.3.6", "5.4.0", "5.5.3", "5.6.3"} {
		held, _, _, err := r.ReadUnacked(readFile(t, "testdata/"+v+"/unacked-retry.hashvalue2.bin"))
		if err != nil {
			t.Fatal(v, err)
		}
		restored, err := r.Read(readFile(t, "testdata/"+v+"/msg-restored.message0.bin"))
		if err != nil || restored.ID != held.ID || restored.Place.Tag != held.Place.Tag ||
			restored.Place.Envelope == held.Place.Envelope {
			t.Errorf("%s: %+v, %+v, %v", v, held, restored, err)
		}
	}
}

func TestResultRefsSamples(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	want := map[string][]reconciler.RowRef{
		"result-success-args-kwargs-ext": {ref(1, "row-42"), ref(2, "42")},
		"result-success-msgpack-ext":     {ref(1, "row-42"), ref(2, "42")},
		"result-success-yaml-ext":        {ref(1, "row-42"), ref(2, "42")},
		"result-success-pickle-ext":      nil,
		"result-typed-args-ext":          {ref(1, "0a1b2c3d-0000-4000-8000-00000000002a")},
		"result-success-ext":             {ref(3, "2")},
		"result-retry-ext":               {ref(1, "3600")},
		"result-success":                 nil,
		"result-unregistered-ext":        nil,
	}
	seen := 0
	for _, file := range samples(t, "*/result-*.result.bin", 200) {
		refs, ok := want[strings.TrimSuffix(filepath.Base(file), ".result.bin")]
		if !ok {
			continue
		}
		seen++
		value := readFile(t, file)
		name := parse(value).Name
		if strings.Contains(file, "pickle") {
			name = "scan.echo"
		}
		if got := r.ResultRefs(value, name); !reflect.DeepEqual(got, refs) {
			t.Errorf("%s: %v, want %v", file, got, refs)
		}
	}
	if seen < 5*len(want)-1 {
		t.Error("samples seen:", seen)
	}
}

// TestReadConcurrently is for the race detector: one Reader serves all.
func TestReadConcurrently(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	var envelopes []string
	for _, file := range samples(t, "5.6.3/msg-*.message*.bin", 40) {
		envelopes = append(envelopes, readFile(t, file))
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for _, envelope := range envelopes {
				if m, err := r.Read(envelope); err == nil && m.ID == "" {
					t.Error("no id")
				}
			}
		})
	}
	group.Wait()
}
