package main

import (
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

func TestStatusWithoutDaemon(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.exec("INSERT INTO scan_tasks SELECT gen_random_uuid() FROM generate_series(1, 10)")
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		s.set(result+id, "{}")
	}
	s.set("other", "x")
	s.expect(exitOK, []string{"status"},
		"Redis       connected", "memory used", "keys 6", "PostgreSQL  connected", "does not exist; run makes it",
		"5 results in Redis", "10 rows in public.scan_tasks", "Orphans     unknown: no daemon leads",
		"none runs", "orphanwatch run", "Guard       armed")

	var r map[string]any
	s.decode(exitOK, &r, "status")
	for name, want := range map[string]any{
		"redis_connected": true, "celery_tasks_count": 5.0, "database_tasks_count": 10.0,
		"orphaned_tasks_count": nil, "celery_tasks_estimated": false, "guard": nil, "paused": nil,
	} {
		if got, ok := r[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if info, _ := r["redis_info"].(map[string]any); info["used_memory_human"] == "" || info["connected_clients"] == 0.0 {
		t.Errorf("redis_info is %v", info)
	}
}

func TestStatusWithDaemon(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.exec("INSERT INTO scan_tasks VALUES ('" + living + "')")
	s.set(result+living, "{}")
	s.daemon()
	s.expect(exitOK, []string{"status"},
		"leader since", "epoch 1", "source postgres: connected", "source redis: connected, keyspace events",
		"read by pid", "reserved", "Last pass", "(start)", "scanned 1 keys and 0 messages: 0 without a row", "none known", "Queue")

	s.expect(exitOK, []string{"pause"}, "removals are paused, by ")
	s.exec("DELETE FROM scan_tasks")
	sandbox.AwaitTB(t, 10*time.Second, "it to wait for the pause", sandbox.Until(func() bool {
		_, out, _ := s.run("status")
		return strings.Contains(out, "1 wait: removals are paused") && strings.Contains(out, "To go on: orphanwatch resume")
	}))
	var r wiring.Report
	s.decode(exitOK, &r, "status")
	if r.OrphanedTasks == nil || *r.OrphanedTasks != 1 || r.Paused == nil || !strings.Contains(r.Paused.By, "@") {
		t.Errorf("%+v", r)
	}
	s.expect(exitOK, []string{"resume"}, "removals go on; they were paused since")
	s.gone(result + living)
}

// With a store away it prints what it knows, in time.
func TestStatusStoreAway(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s.set(result+"a", "{}")
	proxy := sandbox.NewProxy(t, sandbox.SharedPostgres(t).Addr())
	redisProxy := sandbox.NewProxy(t, s.redis.Addr())
	s = s.with("DATABASE_URL="+sandbox.As(proxy.URL(s.database), role, password), "REDIS_URL="+sandbox.As(redisProxy.URL(s.redis.URL()), role, password))
	s.expect(exitOK, []string{"status"}, "PostgreSQL  connected")

	proxy.Cut()
	s.expect(exitUnreachable, []string{"status"}, "Redis       connected", "1 results in Redis", "PostgreSQL  away: ")
	var r wiring.Report
	s.decode(exitUnreachable, &r, "status")
	if r.DatabaseConnected || r.DatabaseError == "" || r.DatabaseTasks != nil || r.CeleryTasks == nil {
		t.Errorf("%+v", r)
	}
	for _, args := range [][]string{{"setup"}, {"teardown", "--yes"}} {
		s.expect(exitUnreachable, args, "orphanwatch: ")
	}
	if err := proxy.Heal(); err != nil {
		t.Fatal(err)
	}
	proxy.Stall()
	redisProxy.Stall()
	s.expect(exitUnreachable, []string{"status"}, "Redis       away: ", "PostgreSQL  away: ", "unknown: it tells of itself in Redis")
	proxy.Cut()
	redisProxy.Cut()
	s.expect(exitUnreachable, []string{"status"}, "Redis       away: ", "connection refused")
	for _, args := range [][]string{{"pause"}, {"resume"}, {"restore", "a"}, {"restore", "--since", "1m"}, {"restore", "--since", "1m", "--dry-run"}, {"history", "a"}} {
		s.expect(exitUnreachable, args, "orphanwatch: redis: ")
	}
}

func TestStatusWrongTable(t *testing.T) {
	s := newOwner(t, sandbox.NewDatabase(t))
	s.expect(exitOK, []string{"status"}, "public.scan_tasks: ", "does not exist")
}

func TestColor(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	if out := s.expect(exitOK, []string{"status"}); strings.Contains(out, "\x1b") {
		t.Errorf("colors without a terminal: %q", out)
	}
}

// A large Redis is not counted, which would take long: a part of it is.
func TestStatusEstimates(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	large := sandbox.NewRedis(t, sandbox.RedisOptions{ACLFile: usersACL, Args: []string{"--enable-debug-command", "yes"}})
	client := large.Client(0)
	defer client.Close()
	for _, populate := range [][]any{{"DEBUG", "POPULATE", 300_000, "celery-task-meta-", 5}, {"DEBUG", "POPULATE", 100_000, "other-", 5}} {
		if err := client.Do(t.Context(), populate...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	s = s.with("REDIS_URL=" + sandbox.As(large.URL(), role, password))
	began := time.Now()
	s.expect(exitOK, []string{"status"}, "keys 400000", "about ")
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("took %s", took)
	}
	var r wiring.Report
	s.decode(exitOK, &r, "status")
	if r.CeleryTasks == nil || *r.CeleryTasks < 285_000 || *r.CeleryTasks > 315_000 || !r.CeleryTasksEstimated {
		t.Errorf("%d, estimated %t, of 300000", *r.CeleryTasks, r.CeleryTasksEstimated)
	}
}
