package keyspace

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
)

// fast tries for a better way often.
func fast(o *Options) { o.RetryEvery = 100 * time.Millisecond }

func never(o *Options) { fast(o); o.Configure = ConfigureNever }

// celeryWrites is how Celery stores a result (facts, 1.4).
func (f *fixture) celeryWrites(id string) {
	f.t.Helper()
	_, err := f.client.TxPipelined(context.Background(), func(p redis.Pipeliner) error {
		p.SetEx(context.Background(), meta+id, `{"status": "SUCCESS"}`, time.Hour)
		p.Publish(context.Background(), meta+id, `{"status": "SUCCESS"}`)
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// shell runs a fix as it is printed.
func (f *fixture) shell(command string) {
	f.t.Helper()
	_, port, err := net.SplitHostPort(f.server.Addr())
	if err != nil {
		f.t.Fatal(err)
	}
	command = strings.ReplaceAll(command, "redis-cli", "redis-cli -p "+port)
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil || !strings.Contains(string(out), "OK") {
		f.t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// fixes are the commands in a text of ours.
func fixes(text string) []string {
	var out []string
	for _, part := range strings.Split(text, "fix: ")[1:] {
		part, _, _ = strings.Cut(part, "; ")
		part, _, _ = strings.Cut(part, ", and in redis.conf")
		out = append(out, part)
	}
	return out
}

// TestCeleryPublish: without permission to set flags, Celery's own messages tell of
// its results; and once an operator sets them, events are used.
func TestCeleryPublish(t *testing.T) {
	t.Parallel()
	f := watching(t, sandbox.NewRedis(t), func(o *Options) {
		never(o)
		o.CanaryEvery = 50 * time.Millisecond
	})
	why := f.awaitMode(ModePublish)
	if want := `notify-keyspace-events is "" and redis.configure is never`; !strings.Contains(why, want) {
		t.Errorf("why: %s, want %s", why, want)
	}
	f.celeryWrites("a")
	f.await("the result", func() bool { return f.sink.saw("a") })
	f.await("a canary", func() bool {
		events, _, _ := f.sink.now()
		return len(events) > 0 && events[len(events)-1].Subject.Kind == reconciler.Canary
	})
	if have, err := readFlags(t.Context(), f.client); err != nil || have != "" {
		t.Errorf("flags %q, %v; want them untouched", have, err)
	}
	f.shell(fixes(why)[0])
	f.awaitMode(ModeKeyspace)
	f.awaitGap(gapLadder)
	f.alive()
	f.sink.clear()
	f.celeryWrites("b")
	f.settle()
	if got := f.sink.ids(); !reflect.DeepEqual(got, []string{"b"}) {
		t.Errorf("hints of %q, want b", got)
	}
}

// TestPrefix: the patterns are of the configured prefix in both ways of watching.
func TestPrefix(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	f := watching(t, server, func(o *Options) {
		never(o)
		o.Keys = prefixed{}
	})
	f.awaitMode(ModePublish)
	for _, channel := range []string{meta + "x", "p[1]_" + meta + "a", "p1_" + meta + "y"} {
		f.do("PUBLISH", channel, "v")
	}
	f.await("the one with the prefix", func() bool { return f.sink.saw("a") })
	if got := f.sink.ids(); !reflect.DeepEqual(got, []string{"a"}) {
		t.Errorf("hints of %q, want a", got)
	}
}

// prefixed is what Celery keys look like under result_keyprefix p[1]_.
type prefixed struct{}

func (prefixed) Patterns() []string { return []string{`p\[1\]_` + meta + "*"} }

func (prefixed) AppendLooks(to []reconciler.Look, key string) []reconciler.Look {
	id, _ := strings.CutPrefix(key, "p[1]_"+meta)
	return append(to, reconciler.Look{Subject: reconciler.TaskSubject(id)})
}

// as starts a source with a user of these rights.
func as(t *testing.T, server *sandbox.Redis, change func(*Options), rules ...any) *fixture {
	t.Helper()
	admin := dial(t, server.URL())
	command := append([]any{"ACL", "SETUSER", "watch", "on", ">secret"}, rules...)
	if err := admin.Do(t.Context(), command...).Err(); err != nil {
		t.Fatal(err)
	}
	f := run(t, server, strings.Replace(server.URL(), "redis://", "redis://watch:secret@", 1), change)
	f.awaitReady()
	return f
}

// TestNoChannels: new ACL users have no channels; the fix in the status, run as it
// stands, brings the events.
func TestNoChannels(t *testing.T) {
	t.Parallel()
	f := as(t, sandbox.NewRedis(t), func(o *Options) {
		fast(o)
		o.Keys = newKeys("task's:{key}")
	}, "+@all", "~*", "resetchannels")
	why := f.awaitMode(ModeScan)
	commands := fixes(why)
	if len(commands) != 2 || !strings.Contains(commands[0], "'&__keyspace@0__:celery-task-meta-*'") ||
		!strings.Contains(commands[1], "'&celery-task-meta-*'") {
		t.Fatalf("fixes %q of %s", commands, why)
	}
	f.shell(commands[1])
	f.awaitMode(ModePublish)
	f.celeryWrites("a")
	f.await("the result", func() bool { return f.sink.saw("a") })
	f.shell(commands[0])
	f.awaitMode(ModeKeyspace)
	f.alive()
	f.do("SET", "task's:1", "x")
	f.await("the companion", func() bool { return f.sink.saw("1") })
}

// TestRightsTakenAway: Redis cuts the connection of a user who loses a channel.
func TestRightsTakenAway(t *testing.T) {
	t.Parallel()
	f := as(t, sandbox.NewRedis(t), nil, "+@all", "~*", "&*")
	f.awaitMode(ModeKeyspace)
	f.do("ACL", "SETUSER", "watch", "resetchannels", "&orphanwatch:*", "&celery-task-meta-*")
	f.awaitMode(ModePublish)
	f.awaitGap(gapReconnect)
}

// TestNoConfig: a user who may not use CONFIG and INFO, as with managed servers.
func TestNoConfig(t *testing.T) {
	t.Parallel()
	t.Run("events are on", func(t *testing.T) {
		t.Parallel()
		server := sandbox.NewRedis(t, sandbox.RedisOptions{Args: []string{"--notify-keyspace-events", "K$"}})
		f := as(t, server, nil, "+@all", "-@dangerous", "~*", "&*")
		f.awaitMode(ModeKeyspace)
		f.alive()
	})
	t.Run("events are off", func(t *testing.T) {
		t.Parallel()
		f := as(t, sandbox.NewRedis(t), nil, "+@all", "-@dangerous", "~*", "&*")
		why := f.awaitMode(ModePublish)
		if !strings.Contains(why, "canary: its event did not come within 3s; fix: redis-cli CONFIG SET notify-keyspace-events 'K$'") {
			t.Errorf("why: %s", why)
		}
	})
	t.Run("events are off, and only CONFIG SET is denied", func(t *testing.T) {
		t.Parallel()
		f := as(t, sandbox.NewRedis(t), nil, "+@all", "-config|set", "~*", "&*")
		why := f.awaitMode(ModePublish)
		if !strings.Contains(why, `notify-keyspace-events is "" and cannot be changed: NOPERM`) {
			t.Errorf("why: %s", why)
		}
	})
}

// TestNoCanary: without the right to its key there is no proof, so no trust.
func TestNoCanary(t *testing.T) {
	t.Parallel()
	f := as(t, sandbox.NewRedis(t), fast, "+@all", "~celery-*", "&*")
	why := f.awaitMode(ModePublish)
	f.shell(fixes(why)[0])
	f.awaitMode(ModeKeyspace)
	f.alive()
}

func TestWrongConfiguration(t *testing.T) {
	t.Parallel()
	t.Run("configure", func(t *testing.T) {
		t.Parallel()
		err := New(Options{Keys: newKeys(), Configure: "sometimes"}).Run(t.Context(), newSink(), nil)
		if err == nil || !strings.Contains(err.Error(), `"sometimes": must be auto or never`) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		err := New(Options{Client: dial(t, cluster(t).URL()), Keys: newKeys()}).Run(t.Context(), newSink(), nil)
		var hinted *reconciler.Hinted
		if !errors.As(err, &hinted) || !strings.Contains(err.Error(), "cluster mode, which Celery does not support") {
			t.Errorf("Run: %v", err)
		}
	})
}

// cluster is a Redis in cluster mode. Its bus needs a second port: that of a server
// that has ended, which the sandbox still reserves.
func cluster(t *testing.T) *sandbox.Redis {
	t.Helper()
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	_, port, err := net.SplitHostPort(sb.Redis.Addr())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Redis.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	server, err := sb.StartRedis(t.Context(), sandbox.RedisOptions{Args: []string{"--cluster-enabled", "yes", "--cluster-port", port}})
	if err != nil {
		t.Fatal(err)
	}
	return server
}
