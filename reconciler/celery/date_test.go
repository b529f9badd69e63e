package celery_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

func TestParseDate(t *testing.T) {
	t.Parallel()
	second := time.Date(2026, 11, 23, 13, 30, 13, 0, time.UTC)
	micro := second.Add(852832 * time.Microsecond)
	for _, tt := range []struct {
		text string
		want time.Time // zero: no date
	}{
		{"2026-11-23T13:30:13.852832", micro},
		{"2026-11-23T13:30:13.852832+00:00", micro},
		{"2026-11-23T13:30:13.852832Z", micro},
		{"2026-11-23T13:30:13", second},
		{"2026-11-23T13:30:13+00:00", second},
		{"2026-11-23T13:30:13-00:00", second},
		{"2026-11-23T13:30:13Z", second},
		{"2026-11-23T15:30:13.852832+02:00", micro},
		{"2026-11-23T09:00:13.852832-04:30", micro},
		{"2026-11-24T03:30:13+14:00", second},
		{"2026-11-23T13:30:13.5", second.Add(time.Second / 2)},
		{"2026-11-23T13:30:13.000001", second.Add(time.Microsecond)},
		{"2026-11-23T13:30:13.123456789", second.Add(123456789)},
		{"2026-11-23T13:39:34+00:09:21", second},
		{"9999-12-31T23:59:59.999999", time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)},
		{"9999-12-31T23:59:59-23:59", time.Date(10000, 1, 1, 23, 58, 59, 0, time.UTC)},
		{"2024-02-29T00:00:00", time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC)},
		{"0001-01-01T00:00:01", time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC)},
		{"", time.Time{}},
		{"null", time.Time{}},
		{"2026-11-23", time.Time{}},
		{"2026-11-23T13:30", time.Time{}},
		{"2026-11-23 13:30:13", time.Time{}},
		{"2026-11-23t13:30:13", time.Time{}},
		{"2026-11-23T13:30:13z", time.Time{}},
		{"2026-11-23T13:30:13.", time.Time{}},
		{"2026-11-23T13:30:13,5", time.Time{}},
		{"2026-11-23T13:30:13.1234567890", time.Time{}},
		{"2026-11-23T13:30:13+0000", time.Time{}},
		{"2026-11-23T13:30:13+00", time.Time{}},
		{"2026-11-23T13:30:13+24:00", time.Time{}},
		{"2026-11-23T13:30:13+00:60", time.Time{}},
		{"2026-11-23T13:30:13+00:00Z", time.Time{}},
		{"2026-11-23T13:30:13 +00:00", time.Time{}},
		{" 2026-11-23T13:30:13", time.Time{}},
		{"2026-11-23T13:30:13 ", time.Time{}},
		{"2026-11-23T24:00:00", time.Time{}},
		{"2026-11-23T13:60:00", time.Time{}},
		{"2026-11-23T13:30:60", time.Time{}},
		{"2026-02-29T00:00:00", time.Time{}},
		{"2026-11-31T00:00:00", time.Time{}},
		{"2026-00-01T00:00:00", time.Time{}},
		{"2026-13-01T00:00:00", time.Time{}},
		{"2026-01-00T00:00:00", time.Time{}},
		{"0000-01-01T00:00:00", time.Time{}},
		{"12026-01-01T00:00:00", time.Time{}},
		{"1795440613", time.Time{}},
		{"２026-11-23T13:30:13", time.Time{}},
	} {
		got, ok := celery.ParseDate(tt.text)
		if ok == tt.want.IsZero() || !got.Equal(tt.want) {
			t.Errorf("%q: %v %v, want %v", tt.text, got, ok, tt.want)
		}
	}
}

// FuzzDate: what is read as a date is the one that Go's own parser reads.
func FuzzDate(f *testing.F) {
	for _, text := range []string{"2026-11-23T13:30:13.852832", "2026-11-23T13:30:13+00:00", "2026-11-23T13:30:13.1-04:30", "2026-11-23T13:30:13Z", "0001-01-01T00:00:00+00:09:21"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := celery.ParseDate(text)
		if !ok {
			return
		}
		for _, layout := range []string{"2006-01-02T15:04:05", time.RFC3339, "2006-01-02T15:04:05-07:00:00"} {
			if want, err := time.Parse(layout, text); err == nil {
				if !got.Equal(want) {
					t.Errorf("%q: %v, want %v", text, got, want)
				}
				return
			}
		}
		t.Errorf("%q: read as %v", text, got)
	})
}

// TestDateDoneSamples: of the results that real workers of five versions of Celery
// stored, those of ended tasks have a date, but for pickle.
func TestDateDoneSamples(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*/*.result.bin")
	if err != nil || len(files) < 200 {
		t.Fatal(len(files), err)
	}
	inJSON := regexp.MustCompile(`"date_done": "([^"]*)"`)
	dated := 0
	for _, file := range files {
		value, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name, text := filepath.Base(file), string(value)
		got := celery.DateDone(text)
		want := !strings.Contains(name, "pickle") && !strings.Contains(name, "-started") && !strings.Contains(name, "-progress") && !strings.Contains(name, "-retry")
		done, ok := celery.ParseDate(got)
		if ok != want || ok && (done.Year() != 2026 || done.Month() != time.November || !strings.Contains(text, got)) {
			t.Errorf("%s: %q, %v", file, got, done)
		}
		if m := inJSON.FindStringSubmatch(text); m != nil && m[1] != got {
			t.Errorf("%s: %q, want %q", file, got, m[1])
		}
		if ok {
			dated++
		}
	}
	t.Logf("%d of %d have a date", dated, len(files))
}

func TestDateDoneTable(t *testing.T) {
	t.Parallel()
	const d = "2026-11-23T13:30:13"
	for _, tt := range []struct{ value, want string }{
		{`{"status": "SUCCESS", "date_done": "` + d + `", "task_id": "a"}`, d},
		{`{"date_done":"` + d + `"}` + "\n", d},
		{`{"result": NaN, "date_done": "` + d + `"}`, d},
		{`{"d\u0061te_done": "` + d + `"}`, d},
		{`{"date_done": "x", "date_done": "` + d + `"}`, d},
		{`{"date_done": "` + d + `", "date_done": null}`, ""},
		{`{"date_done": null}`, ""},
		{`{"date_done": 1795440613}`, ""},
		{`{"date_done": {"__type__": "datetime", "__value__": "` + d + `"}}`, ""},
		{`{"date_done": ["` + d + `"]}`, ""},
		{`{"result": {"date_done": "` + d + `"}}`, ""},
		{`{"result": "\"date_done\": \"` + d + `\""}`, ""},
		{`{"kwargs": {"date_done": "` + d + `"}, "date_done": null}`, ""},
		{`{"date_done": "` + d + `"`, ""},
		{`{"date_done": "` + d + `"} x`, ""},
		{`{"date_done": "` + d + `", "result": garbage}`, ""},
		{`{"date_done": "` + d + `", "result": "` + "\xff" + `"}`, ""},
		{`[{"date_done": "` + d + `"}]`, ""},
		{`"date_done: ` + d + `"`, ""},
		{"date_done: '" + d + "'\nstatus: SUCCESS\n", d},
		{"date_done: " + d + "\nstatus: SUCCESS\n", ""}, // a date of YAML, which Celery does not write
		{"date_done: null\n", ""},
		{"result:\n  date_done: '" + d + "'\n", ""},
		{"result: |\n  x\ndate_done: '" + d + "'\n", d},
		{"status: SUCCESS\ndate_done: '" + d + "\n", ""},
		{"\x81\xa9date_done\xb3" + d, d},
		{"\x81\xa9date_done\xc0", ""},
		{"\x82\xa9date_done\xb3" + d, ""},
		{"\x81\xa6result\x81\xa9date_done\xb3" + d, ""},
		{"\x80\x04\x95\x8c\x09date_done\x94\x8c\x13" + d + "\x94u.", ""},
		{"(dp0\nS'date_done'\nS'" + d + "'\ns.", ""},
		{d, ""},
		{"", ""},
	} {
		if got := celery.DateDone(tt.value); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.value, got, tt.want)
		}
	}
}

func TestTailDate(t *testing.T) {
	t.Parallel()
	const d = "2026-11-23T13:30:13"
	for _, tt := range []struct{ tail, want string }{
		{`x", "date_done": "` + d + `", "task_id": "a"}`, d},
		{`x", "date_done": "` + d + `", "group_id": "g", "parent_id": null, "task_id": "a"}`, d},
		{`x", "date_done": null, "task_id": "a"}`, ""},
		{`x", "date_done": "` + d + `", "task_id": "b"}`, ""},
		{`x", "date_done": "` + d + `", "args": [1], "task_id": "a"}`, ""},
		{`"kwargs": {"x": 1, "date_done": "` + d + `"}, "task_id": "a"}`, ""},
		{`"kwargs": "\\", \"date_done\": \"` + d + `\"", "task_id": "a"}`, ""},
		{`"date_done": "` + d + `", "kwargs": {"x": 1, "date_done": "x"}, "task_id": "a"}`, ""},
		{`, "task_id": "a"}`, ""},
		{``, ""},
	} {
		if got := celery.TailDate(tt.tail, "a"); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.tail, got, tt.want)
		}
	}
}
