package celery_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
)

// envelope makes one of the JSON texts of its headers and further properties, and a
// body that is encoded in base64.
func envelope(headers, contentType, body, more string) string {
	return `{"body":"` + base64.StdEncoding.EncodeToString([]byte(body)) + `","content-type":"` + contentType +
		`","headers":` + headers + `,"properties":{"delivery_info":{"exchange":"","routing_key":"q"},"delivery_tag":"t","body_encoding":"base64"` + more + `}}`
}

const echo = `{"id":"i","task":"scan.echo"}`

func TestReadEnvelopes(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	ok := func(headers string) string {
		return `{"body":"x","headers":` + headers + `,"properties":{"delivery_info":{"exchange":"","routing_key":"q"},"delivery_tag":"t"}}`
	}
	for _, tt := range []struct{ envelope, id string }{
		{ok(`{"id":"i","task":"a"}`), "i"},
		{"\n\t " + ok(`{"id":"i","task":"a"}`) + " \r\n", "i"},
		{ok(`{"id":"i","task":""}`), "i"},
		{ok(`{"id":"j","task":"a","id":"i"}`), "i"}, // the last, as in Python
		{ok(`{"id":"i","task":"a","id":null}`), ""},
		{ok(`{"id":"j"},"headers":{"id":"i","task":"a"}`), "i"},
		{ok(`{"id":"i","task":"a"},"headers":null`), ""},
		{ok(`{"id":"i","task":"a"},"headers":{"task":"a"}`), ""},
		{ok(`{"id":"i","task":"a"},"properties":{}`), "i"}, // the right ones come last
		{ok(`{"id":"\u0069\u00e9\ud83d\ude00\n\/\"\\","task":"a"}`), "ié😀\n/\"\\"},
		{ok(`{"\u0069d":"i","task":"a"}`), "i"},
		{ok(`{"id":"é","task":"a"}`), "é"},
		{ok(`{"id":"\ud83d","task":"a"}`), ""},
		{ok(`{"id":"\ude00\ud83d","task":"a"}`), ""},
		{ok(`{"id":"\ud83d\u0041","task":"a"}`), ""},
		{ok(`{"id":"i","task":"\udead"}`), ""},
		{ok(`{"id":"i","task":"a","x":"\ud83d"}`), "i"},
		{ok(`{"id":"i","task":"a","x":[NaN,Infinity,-Infinity,-0.5e+10,[[]],{"id":"x"}]}`), "i"},
		{ok(`{"id":"","task":"a"}`), ""},
		{ok(`{"id":7,"task":"a"}`), ""},
		{ok(`{"id":["i"],"task":"a"}`), ""},
		{ok(`{"id":"i"}`), ""},
		{ok(`{"id":"i","task":null}`), ""},
		{ok(`{"ids":"i","parent_id":"i","task":"a"}`), ""},
		{ok(`{}`), ""},
		{ok(`[]`), ""},
		{ok(`{"id":"i","task":"a",}`), ""},
		{ok(`{"id":"i" "task":"a"}`), ""},
		{ok(`{"id":"i","task":"a","x":01}`), ""},
		{ok(`{"id":"i","task":"a","x":1.}`), ""},
		{ok(`{"id":"i","task":"a","x":-}`), ""},
		{ok(`{"id":"i","task":"a","x":nan}`), ""},
		{ok(`{"id":"i","task":"a","x":"\x"}`), ""},
		{ok(`{"id":"i","task":"a","x":"\u00g0"}`), ""},
		{ok(`{"id":"i","task":"a","x":"` + "\n" + `"}`), ""},
		{ok(`{"id":"i","task":"a","x":"` + "\xff" + `"}`), ""},
		{ok(`{"id":"i","task":"a","x":[}`), ""},
		{ok(`{"id":"i","task":"a"}`) + "x", ""},
		{"\ufeff" + ok(`{"id":"i","task":"a"}`), ""},
		{`{"body":"x","headers":{"id":"i","task":"a"}}`, ""},
		{`{"body":"x","headers":{"id":"i","task":"a"},"properties":{}}`, ""},
		{`{"body":"x","headers":{"id":"i","task":"a"},"properties":{"delivery_info":{"exchange":"","routing_key":"q"},"delivery_tag":""}}`, ""},
		{`{"body":"x","headers":{"id":"i","task":"a"},"properties":{"delivery_info":{"exchange":"","routing_key":"q"},"delivery_tag":7}}`, ""},
		{`{"body":"x","headers":{"id":"i","task":"a"},"properties":[]}`, ""},
		{`{"body":null,"headers":{"id":"i","task":"a"},"properties":{"delivery_info":{"exchange":"","routing_key":"q"},"delivery_tag":"t"}}`, ""},
		{`{"body":"x","headers":{"id":"i","task":"a"},"properties":{"delivery_info":{"exchange":""},"delivery_tag":"t"}}`, ""},
		{`{"body":"x","headers":{"id":"i","task":"a"},"properties":{"delivery_info":[],"delivery_tag":"t"}}`, ""},
		{`{"body":"x","headers":{"id":"i","task":"a"},"properties":{"delivery_tag":"t"}}`, ""},
		{`{"headers":{"id":"i","task":"a"},"properties":{"delivery_info":{"exchange":"","routing_key":"q"},"delivery_tag":"t"}}`, ""},
		{`[` + ok(`{"id":"i","task":"a"}`) + `]`, ""},
		{ok(`{"id":"i","task":"a","x":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `}`), ""},
		{ok(`{"id":"i","task":"a","x":` + strings.Repeat("[", 900) + strings.Repeat("]", 900) + `}`), "i"},
		{strings.Repeat(`{"headers":`, 1_000_000), ""},
		{`{}`, ""},
		{`null`, ""},
		{``, ""},
		{`__deleted__`, ""},
		{`"`, ""},
		{"\x00", ""},
		{`{"body":"\`, ""},
	} {
		m, err := r.Read(tt.envelope)
		if m.ID != tt.id || (tt.id == "") != errors.Is(err, celery.ErrUnreadable) {
			t.Errorf("%.200s: id %q, %v; want %q", tt.envelope, m.ID, err, tt.id)
		}
		unacked, _, _, err := r.ReadUnacked(`[` + tt.envelope + `,"",null]`)
		if unacked.ID != m.ID || (err == nil) != (tt.id != "") {
			t.Errorf("%.200s: unacked: id %q, %v", tt.envelope, unacked.ID, err)
		}
	}
}

func TestReadBodies(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	j, y, p := "application/json", "application/x-yaml", "application/x-msgpack"
	embed := `, {"chord": null}]`
	rows, scans := func(k string) []reconciler.RowRef { return []reconciler.RowRef{ref(1, k)} },
		func(k string) []reconciler.RowRef { return []reconciler.RowRef{ref(2, k)} }
	const uuid = "0a1b2c3d-0000-4000-8000-00000000002a"
	for _, tt := range []struct {
		contentType, body string
		refs              []reconciler.RowRef
	}{
		{j, `[["a"], {}` + embed, rows("a")},
		{j, `[["a"], {"scan_id": 5}` + embed, []reconciler.RowRef{ref(1, "a"), ref(2, "5")}},
		{j, `[["a",0,0,0,0,0,5], {"scan_id": 5}` + embed, []reconciler.RowRef{ref(1, "a"), ref(2, "5")}},
		{j, `[["a",0,0,0,0,0,6], {"scan_id": 5}` + embed, []reconciler.RowRef{ref(1, "a"), ref(2, "6"), ref(2, "5")}},
		{j, `[[], {"scan_id": 5, "scan_id": 6}` + embed, scans("6")},
		{j, `[[], {"scan_id": 5, "scan_id": null}` + embed, nil},
		{j, `[["0A1B2C3D00004000800000000000002A"], {}` + embed, rows(uuid)},
		{j, `[[{"__type__":"uuid","__value__":{"hex":"0a1b2c3d00004000800000000000002a"}}], {}` + embed, rows(uuid)},
		{j, `[[{"__value__":{"hex":"` + uuid + `"},"__type__":"uuid"}], {}` + embed, rows(uuid)},
		{j, `[[{"__type__":"uuid","__value__":{"hex":"0a"}}], {}` + embed, nil},
		{j, `[[{"__type__":"uuid","__value__":{"hex":"` + uuid + `","version":4}}], {}` + embed, nil},
		{j, `[[{"__type__":"uuid","__value__":{"hex":"` + uuid + `"},"x":1}], {}` + embed, nil},
		{j, `[[{"__type__":"uuid","__value__":"` + uuid + `"}], {}` + embed, nil},
		{j, `[[{"__type__":"bytes","__value__":"a"}], {}` + embed, nil},
		{j, `[[{"__type__":"decimal","__value__":"1"}], {}` + embed, nil},
		{j, `[[-0], {}` + embed, rows("0")},
		{j, `[[-12345678901234567890123], {}` + embed, rows("-12345678901234567890123")},
		{j, `[[1.0], {}` + embed, nil},
		{j, `[[1e2], {}` + embed, nil},
		{j, `[[true], {}` + embed, nil},
		{j, `[[null], {}` + embed, nil},
		{j, `[[NaN], {}` + embed, nil},
		{j, `[[""], {}` + embed, nil},
		{j, `[["\ud800"], {}` + embed, nil},
		{j, `[[["a"]], {}` + embed, nil},
		{j, `[[], {}` + embed, nil},
		{j, `[{"0":"a"}, {}` + embed, nil},
		{j, `["a", {}` + embed, nil},
		{j, `[["a"], {}]`, nil},
		{j, `[["a"], {}, {}, {}]`, nil},
		{j, `[["a"], {}` + embed + "x", nil},
		{j, `[["a"], {}, {"x":"` + "\xff" + `"}]`, nil},
		{j, `[["a"], {}, {"x":` + strings.Repeat("[", 100_000) + `}]`, nil},
		{j, `{"args": ["a"], "kwargs": {}, "id": "other"}`, rows("a")}, // hybrid_to_proto2
		{j, ``, nil},
		{"application/JSON", `[["a"], {}` + embed, nil},
		{"application/x-python-serialize", `[["a"], {}` + embed, nil},
		{y, "[[a], {}, {}]", rows("a")},
		{y, "- - '5'\n- {}\n- {}\n", rows("5")},
		{y, "- - 5\n- {}\n- {}\n", rows("5")},
		{y, "- - \"\\u00e9\"\n- scan_id: -7\n- {}\n", []reconciler.RowRef{ref(1, "é"), ref(2, "-7")}},
		{y, "- - !!str 5\n- {}\n- {}\n", rows("5")},
		{y, "- - 0a1b2c3d-0000-4000-8000-00000000002a\n- {}\n- {}\n", rows(uuid)},
		{y, "- - 12345678901234567890\n- {}\n- {}\n", rows("12345678901234567890")},
		{y, "- - &a x\n- scan_id: *a\n- {}\n", []reconciler.RowRef{ref(1, "x"), ref(2, "x")}},
		{y, "- &l [x]\n- {scan_id: 1, scan_id: 2}\n- {l: *l}\n", []reconciler.RowRef{ref(1, "x"), ref(2, "2")}},
		{y, "- []\n- {<<: {scan_id: 1}}\n- {}\n", nil},
		{y, "- - !!python/object/apply:os.system [x]\n- {}\n- {}\n", nil},
		{y, "- - !!python/str a\n- {}\n- {}\n", nil},
		{y, "- !!python/tuple [a]\n- {}\n- {}\n", nil},
		{y, "- - 010\n- {}\n- {}\n", nil},
		{y, "- - 1_000\n- {}\n- {}\n", nil},
		{y, "- - 0x1f\n- {}\n- {}\n", nil},
		{y, "- - 190:20:30\n- {}\n- {}\n", nil},
		{y, "- - yes\n- {}\n- {}\n", nil},
		{y, "- - Off\n- {}\n- {}\n", nil},
		{y, "- - 1.5\n- {}\n- {}\n", nil},
		{y, "- - .inf\n- {}\n- {}\n", nil},
		{y, "- - 1e5\n- {}\n- {}\n", rows("1e5")}, // a str in YAML 1.1
		{y, "- - 2026-01-02\n- {}\n- {}\n", nil},
		{y, "- - 2026-01-02 03:04:05\n- {}\n- {}\n", nil},
		{y, "- - ~\n- {}\n- {}\n", nil},
		{y, "- - \n- {}\n- {}\n", nil},
		{y, "- &a [*a]\n- {}\n- {}\n", nil},
		{y, "[[a], {}, {}]\n---\nx\n", nil},
		{y, "[[a], {}, {", nil},
		{y, yamlBomb(), nil},
		{y, strings.Repeat("[", 200_000), nil},
		{y, "[[a], {}, {x: " + strings.Repeat("z", 2<<20) + "}]", nil},
		{p, "\x93\x91\xa1a\x80\x80", rows("a")},
		{p, "\x93\x91\x7f\x80\x80", rows("127")},
		{p, "\x93\x91\xff\x80\x80", rows("-1")},
		{p, "\x93\x91\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x80\x80", rows("18446744073709551615")},
		{p, "\x93\x91\xd3\x80\x00\x00\x00\x00\x00\x00\x00\x80\x80", rows("-9223372036854775808")},
		{p, "\x93\x91\xd0\x80\x80\x80", rows("-128")},
		{p, "\x93\x91\xcd\x01\x00\x80\x80", rows("256")},
		{p, "\x93\x90\x82\xa7scan_id\x01\xa7scan_id\x02\x80", scans("2")},
		{p, "\x93\x90\x81\xc4\x07scan_id\x01\x80", nil}, // the key is bytes
		{p, "\x93\x90\x81\x01\x01\x80", nil},
		{p, "\x93\x91\xc4\x01a\x80\x80", nil},
		{p, "\x93\x91\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00\x80\x80", nil},
		{p, "\x93\x91\xd7\x00aaaaaaaa\x80\x80", nil},
		{p, "\x93\x91\xc3\x80\x80", nil},
		{p, "\x93\x91\xc0\x80\x80", nil},
		{p, "\x93\x91\xa1\xff\x80\x80", nil},
		{p, "\x93\x91\x82\xa8__type__\xa4uuid\xa9__value__\x81\xa3hex\xa10\x80\x80", nil},
		{p, "\x93\x91\xa1a\x80\x80\x80", nil},
		{p, "\x93\xdd\xff\xff\xff\xff", nil},
		{p, "\x93\x91\xdb\xff\xff\xff\xff", nil},
		{p, "\x93\xdf\xff\xff\xff\xff\x80", nil},
		{p, strings.Repeat("\x91", 100_000), nil},
	} {
		m, err := r.Read(envelope(echo, tt.contentType, tt.body, ""))
		if err != nil || m.ID != "i" || !reflect.DeepEqual(m.Refs, tt.refs) {
			t.Errorf("%s %.100q: %v, %v, want %v", tt.contentType, tt.body, m.Refs, err, tt.refs)
		}
	}
}

// yamlBomb has a long list that a chord is said to have, again and again.
func yamlBomb() string {
	list := "[" + strings.Repeat("1,", 50_000) + "1]"
	return "- []\n- {x: &s {task: x, args: &l " + list + "}}\n- {" + strings.Repeat("chord: *s,", 10_000) + "z: *l}\n"
}

// TestReadBodyText: without base64 the body is the text itself.
func TestReadBodyText(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	for _, tt := range []struct {
		properties, headers string
		refs                []reconciler.RowRef
	}{
		{``, ``, []reconciler.RowRef{ref(1, "é")}},
		{`,"body_encoding":null`, ``, []reconciler.RowRef{ref(1, "é")}},
		{`,"body_encoding":""`, `,"compression":null`, []reconciler.RowRef{ref(1, "é")}},
		{`,"body_encoding":"utf-8"`, ``, nil},
		{`,"body_encoding":"base64"`, ``, nil},
		{``, `,"compression":"application/x-gzip"`, nil},
	} {
		m, err := r.Read(`{"body":"[[\"\\u00e9\"], {}, {}]","content-type":"application/json","headers":{"id":"i","task":"scan.echo"` +
			tt.headers + `},"properties":{"delivery_info":{"exchange":"","routing_key":"q"},"delivery_tag":"t"` + tt.properties + `}}`)
		if err != nil || !reflect.DeepEqual(m.Refs, tt.refs) {
			t.Errorf("%s %s: %v, %v", tt.properties, tt.headers, m.Refs, err)
		}
	}
}

func TestReadProtocol1(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	for _, tt := range []struct{ headers, body, id string }{
		{`{}`, `{"args": ["a"], "id": "i", "task": "scan.echo"}`, "i"},
		{`{"x": {"id": "no"}}`, `{"id": "j", "args": ["a"], "id": "i", "task": "scan.echo"}`, "i"},
		{`{"task": "scan.echo"}`, `{"args": ["a"], "id": "i", "task": "scan.echo"}`, "i"},
		{`{"task": "scan.add"}`, `{"args": ["a"], "id": "i", "task": "scan.echo"}`, ""},
		{`{"id": null}`, `{"args": ["a"], "id": "i", "task": "scan.echo"}`, ""},
		{`{}`, `{"args": ["a"], "id": "i", "task": "scan.echo", "options": {"task_id": "no"}}`, "i"},
		{`{}`, `{"args": ["a"], "id": "i"}`, ""},
		{`{}`, `{"args": ["a"], "id": 7, "task": "scan.echo"}`, ""},
		{`{}`, `{"args": ["a"], "task": "scan.echo"}`, ""},
		{`{}`, `[["a"], {}, {}]`, ""},
		{`{}`, `[{"args": ["a"], "id": "i", "task": "scan.echo"}]`, ""},
		{`{}`, `{"args": ["a"], "id": "i", "task": "scan.echo"`, ""},
		{`{}`, ``, ""},
	} {
		m, err := r.Read(envelope(tt.headers, "application/json", tt.body, ""))
		if m.ID != tt.id || (tt.id == "") != errors.Is(err, celery.ErrUnreadable) {
			t.Errorf("%s %s: %q, %v", tt.headers, tt.body, m.ID, err)
		}
		if tt.id != "" && !reflect.DeepEqual(m.Refs, []reconciler.RowRef{ref(1, "a")}) {
			t.Errorf("%s: %v", tt.body, m.Refs)
		}
	}
}

func TestReadChords(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(byArgument)
	signature := `{"task": "scan.echo", "args": ["a"], "kwargs": {"scan_id": 5}, "options": {"task_id": "b"}}`
	body := &reconciler.ChordBody{ID: "b", Name: "scan.echo", Refs: []reconciler.RowRef{ref(1, "a"), ref(2, "5")}}
	grouped := `{"id":"i","task":"other","group":"g"}`
	for _, tt := range []struct {
		headers, contentType, body string
		in                         bool
		chord                      *reconciler.ChordBody
	}{
		{grouped, "application/json", `[[], {}, {"chord": ` + signature + `}]`, true, body},
		{grouped, "application/json", `[[], {}, {"chord": null}]`, false, nil},
		{grouped, "application/json", `[[], {}, {}]`, false, nil},
		{grouped, "application/json", `[[], {}, {"chord": ` + signature + `, "chord": null}]`, false, nil},
		{grouped, "application/json", `[[], {}, {"chord": {"task": "celery.group", "options": {}}}]`, true, nil},
		{grouped, "application/json", `[[], {}, {"chord": "b"}]`, true, nil},
		{grouped, "application/json", `[[], {}, {"chord": null`, true, nil},
		{grouped, "application/json", `[[], {}, {"x": "` + strings.Repeat("a", 9<<20) + `"}]`, true, nil},
		{grouped, "application/x-python-serialize", "\x80\x04", true, nil},
		{`{"id":"i","task":"other","group":null}`, "application/json", `[[], {}, {"chord": ` + signature + `}]`, false, nil},
		{`{"id":"i","task":"scan.echo"}`, "application/json", `[[], {}, {"chord": ` + signature + `}]`, false, nil},
		{`{}`, "application/json", `{"task":"x","id":"i","chord": ` + signature + `}`, true, body},
		{`{}`, "application/json", `{"task":"x","id":"i","group":"g","chord": null}`, false, nil},
		{grouped, "application/x-yaml", "- []\n- {}\n- chord:\n    args: [a]\n    kwargs: {scan_id: 5}\n    options: {task_id: b}\n    task: scan.echo\n", true, body},
	} {
		m, err := r.Read(envelope(tt.headers, tt.contentType, tt.body, ""))
		if err != nil || m.InChord != tt.in || !reflect.DeepEqual(m.Body, tt.chord) {
			t.Errorf("%s %.100s: %v %+v, %v", tt.headers, tt.body, m.InChord, m.Body, err)
		}
	}
}

func TestReadUnackedTable(t *testing.T) {
	t.Parallel()
	r := celery.NewReader(nil)
	message := envelope(`{"id":"i","task":"a","traceparent":"00-a-b-01"}`, "application/json", "[]", `,"priority":5`)
	m, exchange, routingKey, err := r.ReadUnacked(" [ " + message + ` , "e\u0078" , "rk" ] `)
	if err != nil || m.Place.Envelope != message || exchange != "ex" || routingKey != "rk" ||
		m.TraceParent != "00-a-b-01" || celery.Priority(m.Place.Envelope) != 5 {
		t.Errorf("%+v %q %q %v", m, exchange, routingKey, err)
	}
	for _, value := range []string{
		message, `[` + message + `]`, `[` + message + `,"e"]`, `[` + message + `,"e","r","x"]`, `[` + message + `,"e","r"`,
		`[` + message + `,"e","r"]x`, `[` + message + `,1,"r"]`, `[` + message + `,"e",["r"]]`, `["e","r",` + message + `]`,
		`{"x":` + message + `}`, `[]`, ``, `null`, `[null,"e","r"]`, `[` + message + `,"e","` + "\xff" + `"]`,
	} {
		if m, _, _, err := r.ReadUnacked(value); !errors.Is(err, celery.ErrUnreadable) {
			t.Errorf("%s: %+v, %v", value, m, err)
		}
	}
}

func TestPriority(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		`0`: 0, `3`: 3, `9`: 9, `10`: 9, `-1`: 0, `99999999999999999999`: 9, `-99999999999999999999`: 0, `"5"`: 5, `" 5 "`: 5,
		`"x"`: 0, `3.9`: 3, `-2.5`: 0, `1e300`: 9, `NaN`: 0, `true`: 1, `false`: 0, `null`: 0, `[5]`: 0, `{"5":5}`: 0,
	} {
		if got := celery.Priority(envelope(echo, "application/json", "", `,"priority":`+text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
	if celery.Priority("x") != 0 || celery.Priority(envelope(echo, "", "", "")) != 0 {
		t.Error("no priority is 0")
	}
}

// A key that no index holds is no row's, and is not kept: what is remembered of a
// message is bounded.
func TestLongArgumentsAreNoKeys(t *testing.T) {
	t.Parallel()
	argued := reconciler.Binding{Schema: "public", Table: "scans", Key: "id", Args: []int{0}, Names: []string{"scan"}}
	r := celery.NewReader([]reconciler.Binding{argued})
	of := func(id, name, arg string) (reconciler.Message, error) {
		return r.Read(fmt.Sprintf(`{"body": "[[\"%s\"], {}, {}]", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"task": %q, "id": %q}, `+
			`"properties": {"delivery_info": {"exchange": "", "routing_key": "celery"}, "delivery_tag": "t"}}`, arg, name, id))
	}
	if m, err := of("1", "scan", strings.Repeat("k", 8<<10)); err != nil || len(m.Refs) != 1 {
		t.Errorf("%v, %d", err, len(m.Refs))
	}
	if m, err := of("1", "scan", strings.Repeat("k", 1<<20)); err != nil || len(m.Refs) != 0 {
		t.Errorf("%v, %d", err, len(m.Refs))
	}
	if _, err := of(strings.Repeat("i", 1<<20), "scan", "k"); err == nil {
		t.Error("an id of 1 MiB")
	}
	if _, err := of("1", strings.Repeat("n", 1<<20), "k"); err == nil {
		t.Error("a name of 1 MiB")
	}
}
