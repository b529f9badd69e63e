package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	goleak.VerifyTestMain(sandbox.Shared(m))
}

// site is one pair of stores, and the environment that leads to it.
type site struct {
	tb       *testing.T
	redis    *sandbox.Redis
	client   *redis.Client
	database string
	environ  []string
}

// Commands and the daemon have the rights of these files and no others; the tests
// themselves are superuser.
const (
	setupSQL = "../../deploy/sql/setup.sql"
	usersACL = "../../deploy/redis/users.acl"
	role     = "orphanwatch"
	password = "change-me" // of users.acl
)

// newSite has the rights of a user who has followed the README.
func newSite(t *testing.T, database string) *site {
	t.Helper()
	s := newOwner(t, database)
	s.setup()
	s.environ = append(s.environ, "DATABASE_URL="+sandbox.As(database, role, password))
	return s
}

// newOwner has the rights of the tables' owner in PostgreSQL, and nothing is set up: for
// what makes and drops publications, and what is missing.
func newOwner(t *testing.T, database string) *site {
	t.Helper()
	r := sandbox.NewRedis(t, sandbox.RedisOptions{ACLFile: usersACL})
	s := &site{tb: t, redis: r, client: r.Client(0), database: database}
	t.Cleanup(func() {
		refused, _ := s.client.ACLLog(context.Background(), 10).Result() // down: the test has left it so
		for _, e := range refused {
			if e.Username == role {
				t.Errorf("Redis refused %s: %s %s", role, e.Reason, e.Object)
			}
		}
		s.client.Close()
	})
	// Slots are the cluster's: each test has its own.
	slot := "ow_" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "_"))
	s.environ = []string{
		"DATABASE_URL=" + database, "REDIS_URL=" + sandbox.As(r.URL(), role, password),
		"ORPHANWATCH_REPLICATION_SLOT=" + slot[:min(len(slot), 63)], "ORPHANWATCH_HTTP_ADDR=127.0.0.1:0",
		"ORPHANWATCH_POLICY_GRACE=100ms",
	}
	return s
}

// setup runs setup.sql.
func (s *site) setup(variables ...string) {
	s.tb.Helper()
	if err := sandbox.SharedPostgres(s.tb).RunScript(s.tb.Context(), s.database, setupSQL, variables...); err != nil {
		s.tb.Fatal(err)
	}
}

// with is the site with other variables set.
func (s *site) with(variables ...string) *site {
	other := *s
	other.environ = append(append([]string{}, s.environ...), variables...)
	return &other
}

// run is one command: its exit code, stdout and stderr.
func (s *site) run(args ...string) (code int, stdout, stderr string) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.tb.Context(), 20*time.Second)
	defer cancel()
	var out, err bytes.Buffer
	began := time.Now()
	code = execute(ctx, args, streams{in: strings.NewReader(""), out: &out, err: &err}, s.environ)
	if took := time.Since(began); took > 10*time.Second {
		s.tb.Errorf("%v took %s", args, took)
	}
	return code, out.String(), err.String()
}

// expect runs a command and checks its code and that its output, stdout and
// stderr together, has all these texts.
func (s *site) expect(code int, args []string, texts ...string) string {
	s.tb.Helper()
	got, out, err := s.run(args...)
	if got != code {
		s.tb.Errorf("%v: exit code %d, want %d\n%s%s", args, got, code, out, err)
	}
	for _, text := range texts {
		if !strings.Contains(out+err, text) {
			s.tb.Errorf("%v: %q is missing in\n%s%s", args, text, out, err)
		}
	}
	return out
}

// decode runs a command with -o json.
func (s *site) decode(code int, into any, args ...string) {
	s.tb.Helper()
	out := s.expect(code, append(args, "-o", "json"))
	if err := json.Unmarshal([]byte(out), into); err != nil {
		s.tb.Fatalf("%v: %v in\n%s", args, err, out)
	}
}

// daemon runs the daemon until the test ends, and waits until it leads.
func (s *site) daemon() {
	s.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan string, 1)
	var log bytes.Buffer
	go func() {
		code := execute(ctx, []string{"run"}, streams{in: strings.NewReader(""), out: &log, err: &log}, s.environ)
		ended <- fmt.Sprintf("exit code %d\n%s", code, log.String())
	}()
	s.tb.Cleanup(func() {
		cancel()
		if text := <-ended; !strings.HasPrefix(text, "exit code 0") || s.tb.Failed() {
			s.tb.Errorf("the daemon: %s", text)
		}
	})
	sandbox.AwaitTB(s.tb, 15*time.Second, "a leader with a pass done", func() error {
		select {
		case text := <-ended:
			ended <- text
			s.tb.Fatalf("the daemon: %s", text)
		default:
		}
		var r wiring.Report
		s.decode(exitOK, &r, "status")
		if l := r.Leader(); l == nil || l.Pass.Stage != "done" {
			return fmt.Errorf("%+v", r.Daemons)
		}
		return nil
	})
}

// insert makes a row of scan_tasks, exec runs any SQL.
func (s *site) exec(sql string) {
	s.tb.Helper()
	name := s.database[strings.LastIndex(s.database, "/")+1:]
	name, _, _ = strings.Cut(name, "?")
	if err := sandbox.SharedPostgres(s.tb).Exec(s.tb.Context(), name, sql); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *site) set(key, value string) {
	s.tb.Helper()
	if err := s.client.Set(s.tb.Context(), key, value, 0).Err(); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *site) gone(key string) {
	s.tb.Helper()
	sandbox.AwaitTB(s.tb, 10*time.Second, key+" to be removed", func() error {
		n, err := s.client.Exists(s.tb.Context(), key).Result()
		if err == nil && n > 0 {
			err = fmt.Errorf("it is there")
		}
		return err
	})
}

const (
	living = "11111111-1111-4111-8111-111111111111"
	doomed = "22222222-2222-4222-8222-222222222222"
	result = "celery-task-meta-"
)

func contains(text string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}
