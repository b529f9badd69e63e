package main

import (
	"strings"
	"testing"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

const flags = "notify-keyspace-events"

func TestDoctorNames(t *testing.T) {
	pg := sandbox.NewPostgres(t, sandbox.PostgresOptions{Settings: map[string]string{"wal_level": "replica"}})
	database, err := pg.NewExampleDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := newOwner(t, database)
	walFix := "ALTER SYSTEM SET wal_level = 'logical';  -- then restart PostgreSQL"
	s.expect(exitFindings, []string{"doctor"},
		"wal_level is replica, not logical", "fix: "+walFix,
		`notify-keyspace-events is ""`, "writes of results", "new messages")
	// One server is told the same for results and messages: two commands would undo each other.
	var d struct{ Checks []struct{ Fix string } }
	s.decode(exitFindings, &d, "doctor")
	told := 0
	for _, c := range d.Checks {
		if strings.Contains(c.Fix, "CONFIG SET "+flags) {
			if told++; !strings.HasPrefix(c.Fix, "redis-cli CONFIG SET "+flags+" 'K$Els', and in redis.conf") {
				t.Errorf("fix: %s", c.Fix)
			}
		}
	}
	if told != 2 {
		t.Errorf("%d fixes of flags, not 2", told)
	}

	// run refuses with the same words.
	s.expect(exitError, []string{"run"}, "wal_level: wal_level is replica, not logical", "fix: "+walFix)

	// --fix mends Redis and leaves PostgreSQL, which it cannot.
	s.expect(exitFindings, []string{"doctor", "--fix"}, "done: CONFIG SET notify-keyspace-events 'K$'", "done: CONFIG SET notify-keyspace-events '$KEls'", walFix)
}

func TestDoctorFix(t *testing.T) {
	s := newOwner(t, sandbox.NewExampleDatabase(t))
	if err := s.redis.Reconfigure(t.Context(), map[string]string{flags: "Ex"}); err != nil {
		t.Fatal(err)
	}
	out := s.expect(exitFindings, []string{"doctor"}, "slot and publication", "is missing", "CREATE PUBLICATION", "pg_create_logical_replication_slot")
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "max_slot_wal_keep_size is unlimited") && !strings.HasPrefix(line, "warn") {
			t.Errorf("not a recommendation: %s", line)
		}
	}
	s.with("ORPHANWATCH_REDIS_CONFIGURE=never").expect(exitFindings, []string{"doctor", "--fix"}, "done: CREATE PUBLICATION", "writes of results are not announced", "new messages are not announced")
	s.expect(exitOK, []string{"doctor", "--fix"}, "done: CONFIG SET notify-keyspace-events 'xEK$'", "0 to mend")
	have, err := s.client.ConfigGet(t.Context(), flags).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range "ExK$ls" {
		if !strings.ContainsRune(have[flags], flag) {
			t.Errorf("flags are %q: %c is missing", have[flags], flag)
		}
	}
	s.expect(exitOK, []string{"doctor"}, "nobody reads slot", "no queue is found", "may not read every list", "0 to mend", "4 recommended")
	s.expect(exitOK, []string{"doctor", "--fix"}, "nothing that --fix may mend")

	var d struct {
		Checks []struct {
			Store, Name string
			OK          bool
		}
		Unreachable, Fixed []string
	}
	s.decode(exitOK, &d, "doctor")
	seen := map[string]bool{}
	for _, c := range d.Checks {
		if name := c.Store + " " + c.Name; seen[name] {
			t.Errorf("said twice: %s", name)
		} else {
			seen[name] = true
		}
	}
	for _, name := range []string{"redis redis keyspace events", "broker celery queues", "postgres wal_level", "postgres table public.scan_tasks", "postgres same database"} {
		if !seen[name] {
			t.Errorf("%s is not checked: %v", name, seen)
		}
	}
}

func TestDoctorWithDaemon(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.daemon()
	s.expect(exitOK, []string{"doctor"}, "slot is read", "by pid", "same database", "0 to mend")
}

func TestDoctorUnreachable(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	pg := sandbox.NewProxy(t, sandbox.SharedPostgres(t).Addr())
	redis := sandbox.NewProxy(t, s.redis.Addr())
	s = s.with("DATABASE_URL="+sandbox.As(pg.URL(s.database), role, password), "REDIS_URL="+sandbox.As(redis.URL(s.redis.URL()), role, password))
	pg.Cut()
	s.expect(exitUnreachable, []string{"doctor"}, "postgres answers", "connection refused", "start PostgreSQL at "+pg.Addr()+"/", "redis answers")
	redis.Cut()
	s.expect(exitUnreachable, []string{"doctor"}, "start Redis at "+redis.Addr())
	if err := pg.Heal(); err != nil {
		t.Fatal(err)
	}
	if err := redis.Heal(); err != nil {
		t.Fatal(err)
	}
	pg.Stall()
	redis.Stall()
	s.expect(exitUnreachable, []string{"doctor"}, "start PostgreSQL at ", "start Redis at ")
}

func TestDoctorAnswersNo(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	locked := sandbox.NewRedis(t, sandbox.RedisOptions{Password: "secret"})
	s.with("REDIS_URL=redis://"+locked.Addr()+"/0").expect(exitFindings, []string{"doctor"}, "put the right user and password into redis.url")
	wrong := strings.Replace(sandbox.As(s.database, role, password), "/db", "/nodb", 1)
	s.with("DATABASE_URL="+wrong).expect(exitFindings, []string{"doctor"}, "does not exist", "correct user, password and database")
}

func TestDoctorOtherDatabase(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	if err := s.client.HSet(t.Context(), "orphanwatch:control", "identity", "1/other").Err(); err != nil {
		t.Fatal(err)
	}
	s.expect(exitFindings, []string{"doctor"}, "this is not the database of the first start", "that was 1/other", "orphanwatch resume --accept-absent")
}
