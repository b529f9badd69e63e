package celery_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// parse reads a value whole.
func parse(v string) celery.Value { return celery.ParseValue(strings.NewReader(v)) }

// TestValueSamples goes over results that real workers of five versions of Celery
// stored, in all four serializers, with result_extended (-ext) and without.
func TestValueSamples(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*/*.result.bin")
	if err != nil || len(files) < 200 {
		t.Fatal(len(files), err)
	}
	for _, file := range files {
		value, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got := parse(string(value))
		name := filepath.Base(file)
		extended := strings.Contains(name, "-ext.") && !strings.Contains(name, "unregistered")
		pickle := strings.Contains(name, "pickle")
		if (got.Name != "") != (extended && !pickle) || extended && !pickle && !strings.HasPrefix(got.Name, "scan.") {
			t.Errorf("%s: name %q", file, got.Name)
		}
		if (got.Status == "") != pickle || got.Status != strings.ToUpper(got.Status) {
			t.Errorf("%s: status %q", file, got.Status)
		}
		if !pickle && !bytes.Contains(value, []byte(got.Status)) {
			t.Errorf("%s: status %q is not in it", file, got.Status)
		}
	}
}

func TestValueTable(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)
	for _, tt := range []struct{ value, name, status string }{
		{`{"status": "SUCCESS", "name": "a.b"}`, "a.b", "SUCCESS"},
		{`{"name":"a","name":"b"}`, "b", ""},
		{`{"name":"a","name":null}`, "", ""},
		{`{"result": {"name": "inner"}, "status": "SUCCESS"}`, "", "SUCCESS"},
		{`{"result": "\"name\": \"inner\"", "x": [{"name": "y"}]}`, "", ""},
		{`{"n\u0061me": "\u00e9\"x"}`, `é"x`, ""},
		{`{"names": "a", "Name": "b", " name": "c"}`, "", ""},
		{`{"name": ["a"]}`, "", ""},
		{`{"name": 7}`, "", ""},
		{`{"name": "a"`, "", ""},
		{`{"name": "a",}`, "", ""},
		{`{"name": "a"} x`, "", ""},
		{`{"name": "a"}` + "\n", "a", ""},
		{`{"result": NaN, "name": "a"}`, "a", ""},
		{`{"name": "` + strings.Repeat("a", 2000) + `"}`, "", ""},
		{`{"x": "` + strings.Repeat(`\n`, 20_000) + `", "name": "a"}`, "a", ""},
		{`{"result": ` + deep + `, "name": "a"}`, "", ""},
		{`{}`, "", ""},
		{`{`, "", ""},
		{``, "", ""},
		{`[{"name": "a"}]`, "", ""},
		{"\x80\x04name", "", ""},
		{"name: a.b\nstatus: SUCCESS\n", "a.b", "SUCCESS"},
		{"result:\n  name: inner\nstatus: 'it''s'\n", "", "it's"},
		{"name: !!python/object:x\nstatus: \"q\"\n", "", ""},
		{"name: null\n", "", ""},
		{"\x81\xa4name\xa3a.b", "a.b", ""},
		{"\x82\xa4name\xa1a\xa1x\x81\xa4name\xa1b", "a", ""},
		{"\x82\xa4name\xa3a.b", "", ""},
		{"\xde\x00\x01\xa4name\xd9\x01a", "a", ""},
		{"\xdf\xff\xff\xff\xff", "", ""},
		{"\x81\xa1x\xdd\xff\xff\xff\xff", "", ""},
		{"\x81\xa4name\xdb\xff\xff\xff\xff", "", ""},
		{"\x81\xa1x" + strings.Repeat("\x91", 20_000) + "\xc0", "", ""},
	} {
		got := parse(tt.value)
		if got.Name != tt.name || got.Status != tt.status {
			t.Errorf("%.60q: %+v, want name %q, status %q", tt.value, got, tt.name, tt.status)
		}
	}
}

// FuzzValue: whatever the bytes, it returns; and where encoding/json reads an
// object, it says the same.
func FuzzValue(f *testing.F) {
	files, _ := filepath.Glob("testdata/5.6.3/*.result.bin")
	for _, file := range files {
		value, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		got := celery.ParseValue(bytes.NewReader(value))
		var fields map[string]any
		if len(value) == 0 || value[0] != '{' || json.Unmarshal(value, &fields) != nil {
			return
		}
		for field, text := range map[string]string{"name": got.Name, "status": got.Status} {
			want, _ := fields[field].(string)
			if len(want) < 100 && text != want {
				t.Errorf("%q: %s %q, want %q", value, field, text, want)
			}
		}
	})
}
