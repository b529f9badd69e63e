package keyspace

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// named finds what was found of a thing.
func named(t *testing.T, findings []Finding, name string) Finding {
	t.Helper()
	for _, f := range findings {
		if f.OK != (f.Fix == "") {
			t.Errorf("%+v: a fix for what is well, or none for what is not", f)
		}
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding %q among %+v", name, findings)
	return Finding{}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	f := &fixture{t: t, server: server, client: dial(t, server.URL())}
	o := Options{Client: f.client, Keys: newKeys("task_created:{key}")}
	check := func(name string) Finding {
		t.Helper()
		return named(t, Check(t.Context(), o), name)
	}

	flags := check(nameFlags)
	if flags.OK || flags.Fatal || !strings.Contains(flags.Fix, `in redis.conf: notify-keyspace-events "K$"`) {
		t.Errorf("without flags: %+v", flags)
	}
	f.shell(fixes("fix: " + flags.Fix)[0])
	if !check(nameFlags).OK {
		t.Error("the fix does not mend it")
	}
	f.do("CONFIG", "SET", flagsName, "Ex")
	if done, err := flags.Mend(t.Context()); err != nil || done != "CONFIG SET notify-keyspace-events 'xEK$'" {
		t.Errorf("Mend: %q, %v", done, err)
	}
	o.Configure = ConfigureNever
	f.do("CONFIG", "SET", flagsName, "")
	if got := check(nameFlags); got.OK || got.Mend != nil {
		t.Errorf("with configure: never: %+v", got)
	}
	f.do("CONFIG", "SET", flagsName, "K$")
	for _, finding := range Check(t.Context(), o) {
		if !finding.OK {
			t.Errorf("after the fix: %+v", finding)
		}
	}

	f.do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	eviction := check(nameEviction)
	f.shell(fixes("fix: " + eviction.Fix)[0])
	if got := check(nameEviction); eviction.OK || !got.OK {
		t.Errorf("eviction: %+v, after the fix %+v", eviction, got)
	}

	f.do("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
	buffer := check(nameBuffer)
	f.shell(buffer.Fix)
	if got := check(nameBuffer); buffer.OK || !got.OK {
		t.Errorf("buffer: %+v, after the fix %+v", buffer, got)
	}

	if _, err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := check(nameReachable); got.OK || !got.Fatal || !strings.Contains(got.Detail, server.Addr()) {
		t.Errorf("down: %+v", got)
	}
}

// TestCheckRights: the one command of the finding gives a bare user all that is needed.
func TestCheckRights(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	admin := dial(t, server.URL())
	f := &fixture{t: t, server: server}
	rights := func(user string, o Options) Finding {
		t.Helper()
		o.Client = dial(t, strings.Replace(server.URL(), "redis://", "redis://"+user+":x@", 1))
		o.Keys = newKeys("task_[x]:{key}")
		return named(t, Check(t.Context(), o), nameRights)
	}
	for _, c := range []struct {
		user      string
		configure string
		rules     []any
		want      string
	}{
		{"nothing", "", []any{"+acl", "+ping", "+hello"}, "SCAN 0"},
		{"no-channels", "", []any{"+@all", "~*", "resetchannels"}, "PSUBSCRIBE __keyspace@0__:celery-task-meta-*"},
		{"no-keys", "", []any{"+@all", "&*"}, "RENAMENX celery-task-meta-* orphanwatch:undo:celery-task-meta-*"},
		{"foreign-keys", "", []any{"+@all", "&*", "~celery-*", "~task_*"}, "SET orphanwatch:canary:x x"},
		{"no-renamenx", "", []any{"+@all", "-renamenx", "&*", "~*"}, "RENAMENX celery-task-meta-* orphanwatch:undo:celery-task-meta-*"},
		{"no-psubscribe", "", []any{"+@all", "-psubscribe", "&*", "~*"}, "PSUBSCRIBE __keyspace@0__:celery-task-meta-*"},
		{"read-only", "", []any{"+@all", "&*", "%R~*"}, "UNLINK celery-task-meta-*"},
		{"no-set", ConfigureNever, []any{"+@all", "-config|set", "&*", "~*"}, ""},
	} {
		t.Run(c.user, func(t *testing.T) {
			if err := admin.Do(t.Context(), append([]any{"ACL", "SETUSER", c.user, "on", ">x"}, c.rules...)...).Err(); err != nil {
				t.Fatal(err)
			}
			o := Options{Configure: c.configure}
			got := rights(c.user, o)
			if c.want == "" {
				if !got.OK {
					t.Errorf("%+v, want ok", got)
				}
				return
			}
			if got.OK || !strings.Contains(got.Detail, c.want) {
				t.Fatalf("%+v, want %s", got, c.want)
			}
			f.shell(got.Fix)
			if got := rights(c.user, o); !got.OK || !strings.Contains(got.Detail, "may do all") {
				t.Errorf("after the fix: %+v", got)
			}
		})
	}
	// Another database than the first takes one more command, which the connection sends.
	t.Run("no-select", func(t *testing.T) {
		if err := admin.Do(t.Context(), "ACL", "SETUSER", "no-select", "on", ">x", "+@all", "-select", "~*", "&*").Err(); err != nil {
			t.Fatal(err)
		}
		third := dial(t, strings.NewReplacer("redis://", "redis://no-select:x@", "/0", "/3").Replace(server.URL()))
		got := named(t, Check(t.Context(), Options{Client: third, Keys: newKeys()}), nameReachable)
		if got.OK || !strings.Contains(got.Fix, "'+select'") {
			t.Fatalf("%+v", got)
		}
		f.shell(got.Fix)
		if got := named(t, Check(t.Context(), Options{Client: third, Keys: newKeys()}), nameRights); !got.OK {
			t.Errorf("after the fix: %+v", got)
		}
	})
	t.Run("may not ask", func(t *testing.T) {
		if err := admin.Do(t.Context(), "ACL", "SETUSER", "blind", "on", ">x", "+@all", "-acl", "~*", "&*").Err(); err != nil {
			t.Fatal(err)
		}
		got := rights("blind", Options{})
		if got.OK {
			t.Fatalf("%+v", got)
		}
		f.shell(got.Fix)
		if got := rights("blind", Options{}); !got.OK {
			t.Errorf("after the fix: %+v", got)
		}
	})
	t.Run("wrong password", func(t *testing.T) {
		o := Options{Client: dial(t, strings.Replace(server.URL(), "redis://", "redis://default:wrong@", 1)), Keys: newKeys()}
		if err := admin.Do(t.Context(), "ACL", "SETUSER", "default", ">right").Err(); err != nil {
			t.Fatal(err)
		}
		got := named(t, Check(t.Context(), o), nameReachable)
		if !got.Fatal || !strings.Contains(got.Fix, "right user and password") {
			t.Errorf("%+v", got)
		}
	})
}

func TestCheckServer(t *testing.T) {
	t.Parallel()
	got := named(t, Check(t.Context(), Options{Client: dial(t, cluster(t).URL()), Keys: newKeys()}), nameMode)
	if !got.Fatal || got.OK {
		t.Errorf("cluster: %+v", got)
	}
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	host, port, _ := strings.Cut(sb.Redis.Addr(), ":")
	replica, err := sb.StartRedis(t.Context(), sandbox.RedisOptions{Args: []string{"--replicaof", host + " " + port}})
	if err != nil {
		t.Fatal(err)
	}
	got = named(t, Check(t.Context(), Options{Client: dial(t, replica.URL()), Keys: newKeys()}), nameRole)
	if !got.Fatal || !strings.Contains(got.Fix, host+":"+port) {
		t.Errorf("replica: %+v", got)
	}
	for version, below := range map[string]bool{
		"6.0.20": true, "5.9": true, "6.2.0": false, "7.0.15": false, "8.0.6": false, "10.1": false, "unknown": false, "": false,
	} {
		if versionBelow(version, 6, 2) != below {
			t.Errorf("version %q: below 6.2 is not %t", version, below)
		}
	}
}

// TestRightsCoverScripts: what the scripts call is among the rights that are checked.
func TestRightsCoverScripts(t *testing.T) {
	t.Parallel()
	checked := map[string]bool{"PUBLISH": true} // for each of Options.Publish
	all := []string{serverCommands, ownCommands, artifactCommands}
	for _, commands := range brokerCommands {
		all = append(all, commands)
	}
	for _, line := range strings.Split(strings.Join(all, "\n"), "\n") {
		checked[strings.Fields(line)[0]] = true
	}
	scripts, err := filepath.Glob("../../reconciler/celery/*.lua")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	call := regexp.MustCompile(`\bp?call\('([A-Z]+)'`)
	for _, path := range scripts {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(text), -1) {
			if !checked[m[1]] {
				t.Errorf("%s calls %s, whose right is not checked", path, m[1])
			}
		}
	}
}
