package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/wiring"
)

func TestToken(t *testing.T) {
	dir := t.TempDir()
	file, audit := filepath.Join(dir, "tokens"), filepath.Join(dir, "audit")
	s := &site{tb: t} // no DATABASE_URL: with a file, none is needed
	code, out, stderr := s.run("token", "create", "--name", "ci", "--scopes", "read,cleanup", "--expires", "90d", "--tokens-file", file)
	if code != exitOK || !regexp.MustCompile(`^owt_[a-z0-9]{8}_[a-z0-9]{52}_[0-9a-f]{8}\n$`).MatchString(out) {
		t.Fatalf("exit code %d, not a token alone: %q %s", code, out, stderr)
	}
	token := strings.TrimSpace(out)
	if !contains(stderr, "ci", "read,cleanup", file, "not shown again") || strings.Contains(stderr, token) {
		t.Errorf("stderr: %s", stderr)
	}
	if content, err := os.ReadFile(file); err != nil || strings.Contains(string(content), token) || !strings.Contains(string(content), "sha256=") {
		t.Errorf("%v in\n%s", err, content)
	}
	configured := s.with("DATABASE_URL=postgres://a/b", "ORPHANWATCH_HTTP_TOKENS_FILE="+file, "ORPHANWATCH_HTTP_AUDIT_FILE="+audit)
	var made struct{ ID, Name, Token string }
	configured.decode(exitOK, &made, "token", "create", "--name", "ops", "--scopes", "admin")
	if made.Name != "ops" || !strings.HasPrefix(made.Token, "owt_"+made.ID+"_") {
		t.Errorf("made %+v", made)
	}
	var list []wiring.Token
	configured.decode(exitOK, &list, "token", "list")
	if len(list) != 2 || list[0].Name != "ci" || list[1].ID != made.ID {
		t.Fatalf("list %+v", list)
	}
	if left := time.Until(list[0].Expires); left < 89*24*time.Hour || left > 90*24*time.Hour || !list[1].Expires.IsZero() {
		t.Errorf("expire in %s, at %s", left, list[1].Expires)
	}
	configured.expect(exitOK, []string{"token", "list"}, "ID", "EXPIRES", "ci", "read,cleanup", "never")
	configured.expect(exitOK, []string{"token", "revoke", "ci"}, "is revoked")
	configured.expect(exitError, []string{"token", "revoke", "ci"}, "no such token", "token list")
	configured.expect(exitOK, []string{"token", "revoke", made.ID}, "ops")

	log, err := os.ReadFile(audit)
	if err != nil || strings.Contains(string(log), made.Token) {
		t.Fatalf("%v in\n%s", err, log)
	}
	var actions []string
	for line := range strings.Lines(string(log)) {
		var entry struct{ Phase, Action, Outcome, Who, From string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Who == "" || entry.From != "cli" {
			t.Errorf("%v in %s", err, line)
		}
		actions = append(actions, strings.TrimSpace(entry.Phase+" "+entry.Action+" "+entry.Outcome))
	}
	want := "begin token-create,end token-create done,begin token-revoke,end token-revoke done,begin token-revoke,end token-revoke failed,begin token-revoke,end token-revoke done"
	if got := strings.Join(actions, ","); got != want {
		t.Errorf("audit log: %s", got)
	}
}

func TestTokenUsage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	s := &site{tb: t, environ: []string{"DATABASE_URL=postgres://a/b"}}
	for _, test := range []struct {
		code int
		args string
		text string
	}{
		{exitUsage, "token create --name ci", "--tokens-file FILE, or set http.tokens_file"},
		{exitUsage, "token list", "--tokens-file FILE"},
		{exitUsage, "token revoke", "accepts 1 arg"},
		{exitUsage, "token create --tokens-file " + file, "--name is needed"},
		{exitUsage, "token create --name ci --scopes reed --tokens-file " + file, `"reed" is not a scope`},
		{exitUsage, "token create --name ci --scopes= --tokens-file " + file, "no scope"},
		{exitUsage, "token create --name ci/cd --tokens-file " + file, "cannot be a token's name"},
		{exitUsage, "token create --name ci --expires 90 --tokens-file " + file, "write such as 90d"},
		{exitUsage, "token create --name ci --expires -1d --tokens-file " + file, "write such as 90d"},
		{exitUsage, "token create --name ci --expires 99999999d --tokens-file " + file, "write such as 90d"},
		{exitError, "token list --tokens-file " + file, "no such file"},
	} {
		s.expect(test.code, strings.Fields(test.args), test.text)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the file was made: %v", err)
	}
	// Without the audit log nothing is done.
	full := s.with("ORPHANWATCH_HTTP_AUDIT_FILE=/dev/full")
	full.expect(exitError, []string{"token", "create", "--name", "ci", "--tokens-file", file}, "nothing was done", "no space left")
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the file was made: %v", err)
	}
}
