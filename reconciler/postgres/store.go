package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Application is the application_name of our connections. Running leaves out those
// of it that belong to our own role.
const Application = "orphanwatch"

// Options of a Store.
type Options struct {
	// URL of the primary, as libpq takes it.
	URL      string
	Bindings []reconciler.Binding
	// StatementTimeout bounds each lookup, 0 for 10 s; LockTimeout the wait for a
	// lock, 0 for 5 s; CopyTimeout a pass over a whole table, 0 for 1 h.
	StatementTimeout, LockTimeout, CopyTimeout time.Duration
	// MaxConns is how many connections are open at once, 0 for 4.
	MaxConns int
}

// Store is the database that holds the rows. It is safe for concurrent use.
type Store struct {
	pool    *pgxpool.Pool
	options Options
	// tables is nil while it is not known what the bound tables look like.
	tables atomic.Pointer[catalog]
}

var _ reconciler.Rows = (*Store)(nil)

// New makes a Store. It connects, and reads what the bound tables look like, when
// it is first asked something, so that a server that is away at start is waited
// for like one that goes away later. Check tells what is wrong with the tables.
func New(o Options) (*Store, error) {
	if len(o.Bindings) > reconciler.MaxBindings {
		return nil, fmt.Errorf("postgres: %d bindings, the most is %d", len(o.Bindings), reconciler.MaxBindings)
	}
	if o.CopyTimeout == 0 {
		o.CopyTimeout = time.Hour
	}
	if o.StatementTimeout == 0 {
		o.StatementTimeout = 10 * time.Second
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = 5 * time.Second
	}
	if o.MaxConns == 0 {
		o.MaxConns = 4
	}
	config, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		return nil, fmt.Errorf("postgres: read the URL: %w", err)
	}
	config.MaxConns = int32(o.MaxConns) //nolint:gosec // a handful
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	for name, value := range map[string]string{
		"application_name":              Application,
		"client_encoding":               "UTF8",
		"row_security":                  "off",
		"default_transaction_isolation": "read committed",
		"statement_timeout":             milliseconds(o.StatementTimeout),
		"lock_timeout":                  milliseconds(o.LockTimeout),
	} {
		config.ConnConfig.RuntimeParams[name] = value
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	return &Store{pool: pool, options: o}, nil
}

// Close ends all connections, those in use when their queries have ended.
func (s *Store) Close() { s.pool.Close() }

// with runs f on a connection of its own.
func (s *Store) with(ctx context.Context, f func(*pgx.Conn) error) error {
	defer reconciler.Beat(ctx)
	return s.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return f(c.Conn()) })
}

// Reset forgets all connections: they may lead to a server that is no longer the
// one behind the URL.
func (s *Store) Reset() { s.pool.Reset() }

// rollback ends tx, unless it has been committed.
func rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerSlack)
	defer cancel()
	_ = tx.Rollback(ctx)
}

// answerSlack is how much longer than a statement may take its answer may.
const answerSlack = 2 * time.Second

func milliseconds(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }

// sessionSQL is the first statement of every batch: whether its session may be
// believed, and its snapshot. Later statements see at least as much.
const sessionSQL = `SELECT pg_is_in_recovery(), pg_current_snapshot()::text,
	current_setting('transaction_isolation'), current_setting('row_security'), clock_timestamp()`

// ErrRecovery is a server that is not the primary: it may be behind.
var ErrRecovery = errors.New("the server is in recovery, not the primary")

func checkSession(row pgx.Row) (reconciler.Snapshot, error) {
	var recovery bool
	var snapshot, isolation, security string
	var at time.Time
	if err := row.Scan(&recovery, &snapshot, &isolation, &security, &at); err != nil {
		return reconciler.Snapshot{}, err
	}
	switch {
	case recovery:
		return reconciler.Snapshot{}, ErrRecovery
	case isolation != "read committed" || security != "off":
		return reconciler.Snapshot{}, fmt.Errorf("the session has transaction_isolation=%s, row_security=%s: something between us and the server drops its settings", isolation, security)
	}
	s, err := parseSnapshot(snapshot)
	s.At = at
	return s, err
}

// batch sends statements in one round trip, after sessionSQL. Their results are
// read by the callbacks of b's queries.
func (s *Store) batch(ctx context.Context, b *pgx.Batch) (snapshot reconciler.Snapshot, err error) {
	all := &pgx.Batch{}
	all.Queue(sessionSQL).QueryRow(func(row pgx.Row) error {
		snapshot, err = checkSession(row)
		return err
	})
	all.QueuedQueries = append(all.QueuedQueries, b.QueuedQueries...)
	// The server's own timeout does not help where its answer does not arrive.
	ctx, cancel := context.WithTimeout(ctx, s.options.StatementTimeout+answerSlack)
	defer cancel()
	err = s.with(ctx, func(conn *pgx.Conn) error { return conn.SendBatch(ctx, all).Close() })
	return snapshot, err
}

// failed says what was being done, and marks what means that the server is away.
func failed(what string, err error) error {
	if err == nil {
		return nil
	}
	if unreachable(err) {
		return fmt.Errorf("postgres: %s: %w: %w", what, reconciler.ErrUnreachable, err)
	}
	return fmt.Errorf("postgres: %s: %w", what, err)
}

func unreachable(err error) bool {
	var server *pgconn.PgError
	if errors.As(err, &server) {
		switch server.Code {
		case "57P01", "57P02", "57P03", "53300": // shutdown, crash, cannot connect now, too many connections
			return true
		}
		return strings.HasPrefix(server.Code, "08")
	}
	if errors.Is(err, context.Canceled) {
		return false
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || pgconn.Timeout(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		strings.Contains(err.Error(), "conn closed")
}
