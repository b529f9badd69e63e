package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestUsage(t *testing.T) {
	s := &site{tb: t, environ: []string{"DATABASE_URL=postgres://app:secret@db/app"}}
	for _, test := range []struct {
		code int
		args string
		text string
	}{
		{exitOK, "", "Available Commands"},
		{exitOK, "--help", "Exit codes: 0 ok"},
		{exitOK, "version", "orphanwatch dev"},
		{exitOK, "version -o json", `"version": "dev"`},
		{exitOK, "completion bash", "bash completion V2"},
		{exitOK, "config", "config check"},
		{exitOK, "config check", "the configuration is good"},
		{exitUsage, "nonsense", `unknown command "nonsense"`},
		{exitUsage, "statsu", "did you mean status?"},
		{exitUsage, "config chekc", "did you mean check?"},
		{exitUsage, "status --nonsense", "orphanwatch status --help"},
		{exitUsage, "status more", `"more"`},
		{exitUsage, "status -o xml", `--output is "xml"`},
		{exitUsage, "history", "accepts 1 arg"},
		{exitUsage, "restore", "give task ids, or --since"},
		{exitUsage, "restore --since 10m a", "not both"},
		{exitUsage, "restore --since 10", "--since"},
		{exitUsage, "restore --queue celery a", "not both"},
		{exitUsage, "restore --queue celery --since -1h", "give task ids, or --since"},
		{exitUsage, "restore a --hold -1h", "negative"},
		{exitUsage, "health --timeout 0s", "must be positive"},
		{exitUsage, "health --url 127.0.0.1:8000", "write http://HOST:PORT"},
	} {
		s.expect(test.code, strings.Fields(test.args), test.text)
	}
	s.with("ORPHANWATCH_POLICY_GRACE=5").expect(exitUsage, []string{"status"}, "ORPHANWATCH_POLICY_GRACE", "write 5s")
	s.with("ORPHANWATCH_POLICY_GRACE=5").expect(exitUsage, []string{"config", "check"}, "write 5s")
}

func TestConfigShow(t *testing.T) {
	const jwtSecret = "redis://hunter22@a-secret-that-looks-like-a-URL"
	s := &site{tb: t, environ: []string{
		"DATABASE_URL=postgres://app:hunter22@db/app", "ORPHANWATCH_POLICY_GRACE=90s", "ORPHANWATCH_HTTP_JWT_SECRET=" + jwtSecret,
	}}
	for _, args := range [][]string{{"config", "show"}, {"config", "show", "-o", "json"}} {
		out := s.expect(exitOK, args, "postgres://app:***@db/app", "1m30s", "scan_tasks", "1GiB")
		if strings.Contains(out, "hunter22") || strings.Contains(out, "looks-like") {
			t.Errorf("%v shows a secret:\n%s", args, out)
		}
	}
}

// Every command has a help with an example.
func TestHelp(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if sub.Name() == "help" || sub.Name() == "completion" {
				continue
			}
			if sub.Short == "" || sub.Example == "" {
				t.Errorf("%s: short %q, example %q", sub.CommandPath(), sub.Short, sub.Example)
			}
			walk(sub)
		}
	}
	walk((&cli{}).root())
}

func TestAsk(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, "YES\n": true, "y": true, "\n": false, "": false, "no\n": false, "yikes\n": false} {
		var out strings.Builder
		err := ask(strings.NewReader(answer), &out, "Drop it?")
		var refused notAllowedError
		if (err == nil) != want || err != nil && !errors.As(err, &refused) {
			t.Errorf("answer %q: %v", answer, err)
		}
		if out.String() != "Drop it? [y/N] " {
			t.Errorf("asked %q", out.String())
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 0: "0 s", 12 * time.Second: "12 s", 3 * time.Minute: "3 min",
		5 * time.Hour: "5 h", 72 * time.Hour: "3 d",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%s) = %q, want %q", d, got, want)
		}
	}
}
