package postgres

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// idleTrusted is how long an idle connection is used again without a ping.
const idleTrusted = time.Second

// pool keeps a few connections. It has no goroutine and no timer, so that it
// costs nothing at rest.
type pool struct {
	config *pgx.ConnConfig
	// slots has room for as many as may be in use.
	slots chan struct{}

	mu     sync.Mutex
	idle   []idleConn
	closed bool
}

type idleConn struct {
	*pgx.Conn
	since time.Time
}

func newPool(config *pgx.ConnConfig, size int) *pool {
	return &pool{config: config, slots: make(chan struct{}, size)}
}

// with runs f on a connection of its own.
func (p *pool) with(ctx context.Context, f func(*pgx.Conn) error) error {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.slots }()
	conn, err := p.acquire(ctx)
	if err != nil {
		return err
	}
	defer p.release(conn)
	return f(conn)
}

func (p *pool) acquire(ctx context.Context) (*pgx.Conn, error) {
	for {
		conn, ok, err := p.take()
		if err != nil {
			return nil, err
		}
		if !ok {
			return pgx.ConnectConfig(ctx, p.config)
		}
		if time.Since(conn.since) < idleTrusted {
			return conn.Conn, nil
		}
		if err := conn.Ping(ctx); err == nil {
			return conn.Conn, nil
		}
		discard(conn.Conn)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

var errClosed = errors.New("the store is closed")

// take gives the connection that was idle for the shortest time.
func (p *pool) take() (conn idleConn, ok bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return conn, false, errClosed
	}
	n := len(p.idle)
	if n == 0 {
		return conn, false, nil
	}
	conn, p.idle = p.idle[n-1], p.idle[:n-1]
	return conn, true, nil
}

// release keeps a connection that is fit for use, outside a transaction.
func (p *pool) release(conn *pgx.Conn) {
	p.mu.Lock()
	keep := !p.closed && !conn.IsClosed() && conn.PgConn().TxStatus() == 'I'
	if keep {
		p.idle = append(p.idle, idleConn{conn, time.Now()})
	}
	p.mu.Unlock()
	if !keep {
		discard(conn)
	}
}

// close ends the idle connections, and the others when they are released.
func (p *pool) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, conn := range idle {
		discard(conn.Conn)
	}
}

func discard(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
	<-conn.PgConn().CleanupDone()
}
