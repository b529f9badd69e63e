package celery

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// decodePidbox decodes an envelope as generic JSON, and its body.
func decodePidbox(t rapid.TB, message string) (envelope, body map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(message), &envelope); err != nil {
		t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(envelope["body"].(string))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &body); err != nil {
		t.Fatal(err)
	}
	return envelope, body
}

// TestRevokeMessageSamples: ours says what the message says that Celery published
// for the same two ids; only its clock, expiry and delivery tag are its own.
func TestRevokeMessageSamples(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"5.2.6", "5.3.6", "5.4.0", "5.5.3", "5.6.3"} {
		captured, err := os.ReadFile("testdata/" + version + "/pidbox-revoke-many.publish.bin")
		if err != nil {
			t.Fatal(err)
		}
		ours, err := revokeMessage([]string{
			"a2000000-0000-4000-8000-000000000040", "a2000000-0000-4000-8000-000000000041",
		}, "off")
		if err != nil {
			t.Fatal(err)
		}
		want, wantBody := decodePidbox(t, string(captured))
		got, gotBody := decodePidbox(t, ours)
		if !reflect.DeepEqual(gotBody, wantBody) {
			t.Errorf("%s: body %v, want %v", version, gotBody, wantBody)
		}
		tag := got["properties"].(map[string]any)["delivery_tag"]
		if tag == "" || tag == nil {
			t.Errorf("%s: no delivery tag", version)
		}
		want["properties"].(map[string]any)["delivery_tag"] = tag
		want["headers"] = map[string]any{}
		want["body"] = got["body"]
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", version, got, want)
		}
	}
}

// TestRevokeMessageComplete: whatever the ids, the envelope has all that a worker
// needs, since a partial one makes every worker exit; and the ids come through.
func TestRevokeMessageComplete(t *testing.T) {
	t.Parallel()
	r := NewReader(nil)
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.OneOf(rapid.String(), rapid.StringMatching(`["\\{}<>&\x00-\x20\x{2028}é😀]{1,20}`),
			rapid.SampledFrom([]string{"", "\xff", `"}],"properties":null}`, "\x00", `</script>`, "\ufffd", "\xed\xa0\x80"}))
		ids := rapid.SliceOfN(id, 0, 20).Draw(t, "ids")
		terminate := rapid.SampledFrom([]string{"off", "SIGTERM", "SIGKILL"}).Draw(t, "terminate")
		message, err := revokeMessage(ids, terminate)
		if err != nil {
			bad := len(ids) == 0
			for _, id := range ids {
				bad = bad || id == "" || strings.ToValidUTF8(id, "") != id
			}
			if message != "" || !bad {
				t.Fatalf("%q: %q, %v", ids, message, err)
			}
			return
		}
		envelope, body := decodePidbox(t, message)
		properties, _ := envelope["properties"].(map[string]any)
		info, _ := properties["delivery_info"].(map[string]any)
		tag, _ := properties["delivery_tag"].(string)
		if envelope["content-type"] != "application/json" || envelope["content-encoding"] != "utf-8" ||
			envelope["headers"] == nil || properties["body_encoding"] != "base64" || tag == "" ||
			properties["delivery_mode"] != 2.0 || properties["priority"] != 0.0 || len(info) != 2 {
			t.Fatal(message)
		}
		args := body["arguments"].(map[string]any)
		signal := map[string]string{"off": "SIGTERM"}[terminate] + strings.TrimPrefix(terminate, "off")
		if body["method"] != "revoke" || args["terminate"] != (terminate != "off") || args["signal"] != signal || len(args) != 3 {
			t.Fatal(body)
		}
		got := []string{}
		for _, id := range args["task_id"].([]any) {
			got = append(got, id.(string))
		}
		if !reflect.DeepEqual(got, ids) {
			t.Fatalf("%q, want %q", got, ids)
		}
		// To our own Reader it is a complete envelope that is no task.
		if _, err := r.Read(message); !errors.Is(err, errNoTask) {
			t.Fatal(err)
		}
	})
}

func TestRevokeMessageLimits(t *testing.T) {
	t.Parallel()
	ids := strings.Split(strings.Repeat("i ", maxRevoke)+"i", " ")
	if message, err := revokeMessage(ids[:maxRevoke], "off"); err != nil || message == "" {
		t.Error(err)
	}
	if message, err := revokeMessage(ids, "off"); err == nil || message != "" {
		t.Error("one id too many")
	}
	if message, err := revokeMessage(ids[:1], "SIGHUP"); err == nil || message != "" {
		t.Error("a signal that nobody configured")
	}
}

func TestPidboxChannel(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"/0.celery.pidbox":     pidboxChannel("", 0, "celery"),
		"/3.scans.pidbox":      pidboxChannel("", 3, "scans"),
		"pre:/0.celery.pidbox": pidboxChannel("pre:", 0, "celery"),
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestTombstone: a worker takes it for a complete envelope, and for no task.
func TestTombstone(t *testing.T) {
	var e parts
	w := jsonWalker{s: tombstone}
	if err := e.read(&w); err != nil || w.end() != nil || !e.hasHeaders || !e.hasProperties ||
		e.body.kind != text || e.body.raw != "" || e.properties.tag.raw != "orphanwatch-tombstone" {
		t.Errorf("%+v, %v", e, err)
	}
	r := NewReader(nil)
	if _, err := r.Read(tombstone); !errors.Is(err, errNoTask) || !errors.Is(err, ErrUnreadable) {
		t.Error(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = r.Read(tombstone) }); n > 0 {
		t.Error(n, "allocations for a tombstone")
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]bool{
		"SUCCESS": true, "FAILURE": true, "REVOKED": true,
		"": false, "PENDING": false, "STARTED": false, "RETRY": false, "PROGRESS": false, "success": false,
	} {
		if Terminal(status) != want {
			t.Error(status)
		}
	}
}
