package keyspace

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// TestConnectionKilled: the connection of the subscription is a gap, once it is replaced.
func TestConnectionKilled(t *testing.T) {
	t.Parallel()
	f := watching(t, sandbox.NewRedis(t), nil)
	for range 3 {
		f.sink.clear()
		f.do("CLIENT", "KILL", "TYPE", "pubsub")
		f.awaitGap(gapReconnect)
		f.alive()
	}
	if !strings.Contains(f.log.String(), "blind_seconds=") {
		t.Errorf("the log does not say for how long it was blind: %s", f.log)
	}
}

// TestRestart: Redis comes back without flags, and with another run id.
func TestRestart(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	f := watching(t, server, nil)
	if err := server.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.await("it to say so", func() bool {
		_, _, h := f.sink.now()
		return !h.Connected && strings.Contains(h.Err, "connection refused")
	})
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.awaitGap(gapReconnect)
	f.alive()
	if !strings.Contains(f.log.String(), "another redis process answers") {
		t.Error("the log does not say that it is another process")
	}
}

// TestNotThereAtFirst: a Redis that comes later is waited for.
func TestNotThereAtFirst(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	if _, err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := run(t, server, server.URL(), nil)
	f.await("it to say so", func() bool {
		_, _, h := f.sink.now()
		return strings.Contains(h.Err, "connection refused")
	})
	select {
	case <-f.ready:
		t.Fatal("ready without a Redis")
	default:
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.awaitReady()
	f.alive()
	if _, gaps, _ := f.sink.now(); len(gaps) != 0 {
		t.Errorf("gaps %v before anything was watched", gaps)
	}
}

// TestPaused: a server that hangs keeps its connections; only silence shows it.
func TestPaused(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	f := watching(t, server, nil)
	if err := server.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer server.Resume()
	began := time.Now()
	f.awaitFor(5*time.Second, "it to notice", func() bool {
		_, _, h := f.sink.now()
		return !h.Connected
	})
	t.Logf("noticed after %s", time.Since(began))
	f.await("a second attempt", func() bool {
		_, _, h := f.sink.now()
		return !strings.Contains(h.Err, gapSilent)
	})
	server.Resume()
	f.awaitFor(10*time.Second, "gap", func() bool {
		_, gaps, _ := f.sink.now()
		return len(gaps) == 1 && gaps[0] == gapSilent
	})
	f.alive()
}

// TestStalled: the network loses every packet and tells nobody.
func TestStalled(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	proxy := sandbox.NewProxy(t, server.Addr())
	f := run(t, server, proxy.URL(server.URL()), nil)
	f.awaitReady()
	proxy.Stall()
	began := time.Now()
	f.awaitFor(5*time.Second, "it to notice", func() bool {
		_, _, h := f.sink.now()
		return !h.Connected
	})
	t.Logf("noticed after %s", time.Since(began))
	if err := proxy.Heal(); err != nil {
		t.Fatal(err)
	}
	f.awaitGap(gapSilent)
	f.alive()
	proxy.Cut()
	f.await("it to notice", func() bool {
		_, _, h := f.sink.now()
		return !h.Connected
	})
	f.sink.clear()
	if err := proxy.Heal(); err != nil {
		t.Fatal(err)
	}
	f.awaitGap(gapReconnect)
	f.alive()
}

// TestFlagsLost: only a canary notices that the events have been switched off.
func TestFlagsLost(t *testing.T) {
	t.Parallel()
	f := watching(t, sandbox.NewRedis(t), func(o *Options) { o.CanaryEvery = 200 * time.Millisecond })
	f.do("CONFIG", "SET", flagsName, "")
	began := time.Now()
	f.awaitGap(gapCanary)
	// With the default of 10 s between canaries instead of 0.2 s it is up to 9.8 s more.
	if took := time.Since(began); took > 15*time.Second-10*time.Second {
		t.Errorf("mended after %s", took)
	} else {
		t.Logf("mended after %s", took)
	}
	f.alive()
	if !strings.Contains(f.log.String(), `notify-keyspace-events is \"\"`) {
		t.Errorf("the log does not say what was found: %s", f.log)
	}
	f.do("CONFIG", "SET", flagsName, "Ex")
	f.sink.clear()
	f.awaitGap(gapCanary)
	if have, err := readFlags(t.Context(), f.client); err != nil || !hasFlags(have, "ExK$") {
		t.Errorf("flags %q, %v; want those of others kept", have, err)
	}
}

// TestRole: a master that becomes a replica is not trusted, and its return is a gap.
func TestRole(t *testing.T) {
	t.Parallel()
	sb := sandbox.New(t, sandbox.Options{WithoutPostgres: true})
	master, err := sb.StartRedis(t.Context(), sandbox.RedisOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f := watching(t, sb.Redis, func(o *Options) { o.CanaryEvery = 200 * time.Millisecond })
	host, port, _ := strings.Cut(master.Addr(), ":")
	f.do("REPLICAOF", host, port)
	f.await("it to say so", func() bool {
		_, _, h := f.sink.now()
		return !h.Connected && strings.Contains(h.Err, "redis is a replica; fix: name its master, "+host+":"+port)
	})
	f.do("REPLICAOF", "NO", "ONE")
	f.awaitGap(gapCanary)
	f.alive()
}

// TestFailover: the data is another's, though the connection never broke.
func TestFailover(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t, sandbox.RedisOptions{Args: []string{"--enable-debug-command", "yes"}})
	f := watching(t, server, func(o *Options) { o.CanaryEvery = 100 * time.Millisecond })
	f.do("DEBUG", "CHANGE-REPL-ID")
	f.awaitGap(gapIdentity)
	f.alive()
}

// TestFullMemory: a server that refuses writes for want of memory still announces
// what Celery publishes.
func TestFullMemory(t *testing.T) {
	t.Parallel()
	f := watching(t, sandbox.NewRedis(t), func(o *Options) {
		o.CanaryEvery, o.RetryEvery = 100*time.Millisecond, 100*time.Millisecond
	})
	f.do("CONFIG", "SET", "maxmemory", "1")
	if why := f.awaitMode(ModePublish); !strings.Contains(why, "OOM") {
		t.Errorf("why: %s", why)
	}
	f.do("CONFIG", "SET", "maxmemory", "0")
	f.awaitMode(ModeKeyspace)
	f.alive()
}

// TestFullDisk: such a server refuses PING too, which is a sign of life all the same.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t, sandbox.RedisOptions{Args: []string{"--save", "3600 1"}})
	f := watching(t, server, func(o *Options) { o.CanaryEvery = 100 * time.Millisecond })
	if err := os.RemoveAll(server.Dir()); err != nil {
		t.Fatal(err)
	}
	f.do("SET", "x", "y")
	f.do("BGSAVE")
	if why := f.awaitMode(ModePublish); !strings.Contains(why, "MISCONF") {
		t.Errorf("why: %s", why)
	}
	f.sink.clear()
	f.await("some time to pass", func() bool { // several pings
		events, _, _ := f.sink.now()
		return len(events) > 40
	})
	if _, gaps, h := f.sink.now(); len(gaps) != 0 || !h.Connected {
		t.Errorf("gaps %v, health %+v; want none and connected", gaps, h)
	}
}

// TestStopWhilePaused: the end of Run waits for no answer for long.
func TestStopWhilePaused(t *testing.T) {
	t.Parallel()
	server := sandbox.NewRedis(t)
	f := watching(t, server, nil)
	if err := server.Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer server.Resume()
	began := time.Now()
	f.stop()
	if took := time.Since(began); took > time.Second {
		t.Errorf("Run took %s to end", took)
	}
}

// TestRepeatedSubscription: go-redis replaces a broken connection by itself, and only
// a second confirmation tells.
func TestRepeatedSubscription(t *testing.T) {
	t.Parallel()
	client := dial(t, sandbox.NewRedis(t).URL())
	s := &subscription{mode: ModeKeyspace, canary: "c", parse: func(c, p string) (string, bool) { return parse(channelPrefix(0), c, p) }, hint: func(string, time.Time) {}}
	s.start(t.Context(), client, []string{channelPrefix(0) + "c"}, []string{channelPrefix(0) + meta + "*"})
	defer s.close()
	select {
	case <-s.confirmed:
	case <-s.ctx.Done():
		t.Fatal(s.cause())
	}
	if err := s.pubsub.PSubscribe(t.Context(), channelPrefix(0)+meta+"*"); err != nil {
		t.Fatal(err)
	}
	<-s.ctx.Done()
	if got := s.cause(); got.gap != gapResubscribe {
		t.Errorf("ended by %v, want a gap %s", got, gapResubscribe)
	}
}
