package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// Every command of the README's table "Feature by feature" does what stands beside it.
func TestFeatureByFeature(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(readme), "\n## Feature by feature\n")
	if !ok {
		t.Fatal("the README has no such section")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	row := regexp.MustCompile("(?m)^\\| ([^|]+) \\| `([^`]+)` \\| `([^`]+)` \\|$")
	rows := row.FindAllStringSubmatch(section, -1)
	if want := strings.Count(section, "\n| ") - 1; len(rows) != want || want < 20 { // all but the header
		t.Fatalf("%d rows can be read, of %d", len(rows), want)
	}
	f := newFeatures(t)
	for _, r := range rows {
		f.shows(r[1], r[2], r[3])
	}
}

// features is a site with a daemon and something of everything in it.
type features struct {
	*site
	addr, dir string
	env       []string
}

func newFeatures(t *testing.T) *features {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.setup("children=public.task_logs")
	f := &features{site: s, dir: t.TempDir()}
	f.addr = sandbox.FreeAddr(t)
	tokens := filepath.Join(f.dir, "tokens")
	_, token, err := wiring.CreateToken(t.Context(), tokens, "all", []string{"admin"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.environ = append(s.environ, "ORPHANWATCH_HTTP_ADDR="+f.addr, "ORPHANWATCH_HTTP_TOKENS_FILE="+tokens,
		"ORPHANWATCH_HTTP_AUDIT_FILE="+filepath.Join(f.dir, "audit.log"), "ORPHANWATCH_POLICY_REMOVE=deleted")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\n" + asCommand + "=1 exec '" + exe + "' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(f.dir, "orphanwatch"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	f.env = append(append([]string{}, s.environ...), "PATH="+f.dir+":"+os.Getenv("PATH"), "HOME="+f.dir, "TOKEN="+token, "TASK_ID="+doomed)
	s.daemon()
	return f
}

// again puts back what the commands before have removed: a living row and one that is
// gone, with a result, a child row and a message each, and a result of two days ago.
func (f *features) again() {
	f.tb.Helper()
	f.exec("INSERT INTO scan_tasks VALUES ('" + living + "') ON CONFLICT DO NOTHING")
	f.exec("SET session_replication_role = replica; DELETE FROM task_logs; INSERT INTO task_logs (task_id, line) VALUES ('" + living + "', 'x'), ('" + doomed + "', 'x')")
	f.set(result+living, `{"status": "SUCCESS", "date_done": "`+time.Now().UTC().Format("2006-01-02T15:04:05.000000")+`"}`)
	f.set(result+doomed, `{"status": "SUCCESS"}`)
	f.set(result+"33333333-3333-4333-8333-333333333333x", `{"status": "SUCCESS", "date_done": "`+time.Now().Add(-48*time.Hour).UTC().Format("2006-01-02T15:04:05.000000")+`"}`)
	f.client.Del(f.tb.Context(), "celery")
	f.client.SAdd(f.tb.Context(), "_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
	f.client.LPush(f.tb.Context(), "celery", message(living))
}

func message(id string) string {
	return fmt.Sprintf(`{"body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"lang": "py", "task": "scan", "id": %q, "argsrepr": "()", "kwargsrepr": "{}"}, "properties": {"correlation_id": %q, "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0, "body_encoding": "base64", "delivery_tag": %q}}`, id, id, "tag-"+id)
}

// shows runs a command line as it stands in the README.
func (f *features) shows(what, line, want string) {
	f.tb.Helper()
	f.again()
	ctx, cancel := context.WithTimeout(f.tb.Context(), 20*time.Second)
	defer cancel()
	line = strings.ReplaceAll(line, "http://localhost:8000", "http://"+f.addr)
	cmd := exec.CommandContext(ctx, "bash", "-c", line+"; echo exit code $?")
	cmd.Dir, cmd.Env = f.dir, f.env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil || !strings.Contains(out.String(), want) {
		f.tb.Errorf("%s: %s\ndoes not show %q (%v):\n%s", what, line, want, err, out.String())
	}
	f.there(result + living)
}
