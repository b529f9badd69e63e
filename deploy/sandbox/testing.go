package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

// TB is the part of testing.TB that the helpers use, so that the demo does not carry
// package testing.
type TB interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
}

// New starts a sandbox for one test and closes it at its end. At most one Options may
// be given. A test that fails gets the last lines of the servers' logs.
func New(tb TB, opts ...Options) *Sandbox {
	tb.Helper()
	var o Options
	if len(opts) > 0 {
		o = opts[0]
	}
	sb, err := Start(tb.Context(), o)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("%s", sb.Tails())
		}
		if err := sb.Close(); err != nil {
			tb.Fatalf("%v", err)
		}
	})
	return sb
}

// NewRedis starts a Redis of its own for one test (some 20 ms).
func NewRedis(tb TB, opts ...RedisOptions) *Redis {
	tb.Helper()
	var o RedisOptions
	if len(opts) > 0 {
		o = opts[0]
	}
	return New(tb, Options{WithoutPostgres: true, Redis: o}).Redis
}

// NewPostgres starts a PostgreSQL of its own for one test that breaks or reconfigures it.
func NewPostgres(tb TB, opts ...PostgresOptions) *Postgres {
	tb.Helper()
	var o PostgresOptions
	if len(opts) > 0 {
		o = opts[0]
	}
	return New(tb, Options{WithoutRedis: true, Postgres: o}).Postgres
}

// NewProxy puts a faulty connection before upstream (host:port, as Postgres.Addr and
// Redis.Addr return it) for one test.
func NewProxy(tb TB, upstream string) *Proxy {
	tb.Helper()
	p, err := StartProxy(upstream)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(p.Close)
	return p
}

// FreeAddr is an address of 127.0.0.1 for one test, on which nothing listens: no other
// sandbox gets its port, nor does an outgoing connection.
func FreeAddr(tb TB) string {
	tb.Helper()
	port, token, err := reservePort()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { shut(token) })
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// AwaitTB is Await with a timeout; the test fails when it passes.
func AwaitTB(tb TB, timeout time.Duration, what string, cond func() error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), timeout)
	defer cancel()
	if err := Await(ctx, what, cond); err != nil {
		tb.Fatalf("%v", err)
	}
}

// Until makes a condition for Await of a plain question.
func Until(question func() bool) func() error {
	return func() error {
		if question() {
			return nil
		}
		return errNotYet
	}
}

var errNotYet = errors.New("not yet")

var shared struct {
	mu sync.Mutex
	sb *Sandbox
}

// SharedPostgres is the one PostgreSQL of this test process, started at first use. A
// test that stops, breaks or reconfigures a server uses NewPostgres. The package's
// TestMain closes it: goleak.VerifyTestMain(sandbox.Shared(m)).
func SharedPostgres(tb TB) *Postgres {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.sb == nil {
		sb, err := Start(context.Background(), Options{WithoutRedis: true})
		if err != nil {
			tb.Fatalf("%v", err)
		}
		shared.sb = sb
	}
	return shared.sb.Postgres
}

// NewDatabase creates an empty database on the shared server and returns its URL. At
// the test's end it is dropped with its replication slots.
func NewDatabase(tb TB) string {
	tb.Helper()
	return newDatabase(tb, (*Postgres).NewDatabase)
}

// NewExampleDatabase is NewDatabase with ExampleSchema in it.
func NewExampleDatabase(tb TB) string {
	tb.Helper()
	return newDatabase(tb, (*Postgres).NewExampleDatabase)
}

func newDatabase(tb TB, create func(*Postgres, context.Context) (string, error)) string {
	tb.Helper()
	pg := SharedPostgres(tb)
	dsn, err := create(pg, tb.Context())
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := pg.DropDatabase(ctx, dsn); err != nil {
			tb.Fatalf("%v", err)
		}
	})
	return dsn
}

// Main is what TestMain gets.
type Main interface{ Run() (code int) }

// Shared wraps TestMain's m: after the tests the shared server is closed, so that
// goleak, which looks next, finds nothing.
func Shared(m Main) Main { return sharedMain{m} }

type sharedMain struct{ Main }

// Run runs the tests and closes the shared server.
func (m sharedMain) Run() int {
	code := m.Main.Run()
	if err := CloseShared(); err != nil && code == 0 {
		code = 1
	}
	return code
}

// CloseShared closes the shared server, if there is one.
func CloseShared() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.sb == nil {
		return nil
	}
	err := shared.sb.Close()
	shared.sb = nil
	if err != nil {
		return fmt.Errorf("close shared servers: %w", err)
	}
	return nil
}
