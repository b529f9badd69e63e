package replication

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Keys of log lines.
const (
	keySlot    = "slot"
	keyReason  = "reason"
	keyCheck   = "check"
	keyFix     = "fix"
	keySQL     = "sql"
	keyTable   = "table"
	keyColumn  = "column"
	keyBytes   = "bytes"
	keyLimit   = "limit"
	keyDropped = "dropped"
)

// SQLSTATEs that mean something to us.
const (
	stateObjectInUse  = "55006"
	stateNotPermitted = "42501"
	stateDuplicate    = "42710"
	stateUndefined    = "42704"
	stateTooManyConns = "53300"
	stateBadAuth      = "28000"
)

const (
	// senderTimeout is wal_sender_timeout of our connection: how long the server
	// waits for a status, and so how soon a dead holder's slot is free.
	senderTimeout = 10 * time.Second
	statusEvery   = senderTimeout * 6 / 10
	// ioTimeout bounds what a healthy server does at once.
	ioTimeout = 10 * time.Second
	// readBuffer is the client's read buffer of the stream, in bytes.
	readBuffer = 64 << 10
)

// applicationName is unique, so that synchronous_standby_names cannot name it.
func applicationName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	tail := fmt.Sprintf("-%d-%04x", os.Getpid(), rand.N(1<<16)) //nolint:gosec // not a secret
	name := "orphanwatch-" + host
	return name[:min(len(name), 63-len(tail))] + tail
}

// dial finds within half a minute that a host is gone without a word, also where a statement
// may take any time (creating a slot waits for transactions); pgx's own takes an hour.
var dial = net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}}

// connect opens a normal connection, on which waiting for nothing is allowed.
func (s *Source) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(s.opts.URL)
	if err != nil {
		return nil, fmt.Errorf("postgres url: %w", err)
	}
	cfg.RuntimeParams["application_name"] = applicationName()
	cfg.RuntimeParams["idle_session_timeout"] = "0"
	cfg.RuntimeParams["statement_timeout"] = "0" // creating a slot waits for running transactions
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = ioTimeout
	}
	cfg.DialFunc = dial.DialContext
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, unreachable("connect to postgres", hintConnect(err))
	}
	return conn, nil
}

// bounded runs what a healthy server answers at once. One that is gone without a word, or
// hangs, would be waited for as long as TCP tries, while nobody leads.
func bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	return f(ctx)
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// startReplication opens a replication connection and takes the slot with it.
// 0/0 lets the server go on where the slot stands.
func (s *Source) startReplication(ctx context.Context) (*pgconn.HijackedConn, Identity, error) {
	var id Identity
	cfg, err := pgconn.ParseConfig(s.opts.URL)
	if err != nil {
		return nil, id, fmt.Errorf("postgres url: %w", err)
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = applicationName()
	cfg.RuntimeParams["options"] = strings.TrimSpace(fmt.Sprintf("%s -c wal_sender_timeout=%dms",
		cfg.RuntimeParams["options"], senderTimeout.Milliseconds()))
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = ioTimeout
	}
	cfg.DialFunc = dial.DialContext
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(bufio.NewReaderSize(r, readBuffer), w)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, id, hintReplication(err)
	}
	var hijacked *pgconn.HijackedConn
	err = bounded(ctx, func(ctx context.Context) (err error) {
		hijacked, id, err = s.start(ctx, conn)
		return err
	})
	if err != nil {
		closeCtx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(closeCtx)
		return nil, id, err
	}
	return hijacked, id, nil
}

func (s *Source) start(ctx context.Context, conn *pgconn.PgConn) (*pgconn.HijackedConn, Identity, error) {
	id, err := identify(ctx, conn)
	if err != nil {
		return nil, id, err
	}
	err = pglogrepl.StartReplication(ctx, conn, ident(s.opts.Slot), 0, pglogrepl.StartReplicationOptions{
		Mode:       pglogrepl.LogicalReplication,
		PluginArgs: []string{"proto_version '1'", "publication_names " + literal(ident(s.opts.Publication)), "messages 'true'"},
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == stateObjectInUse {
		return nil, id, &slotInUse{pgErr.Message}
	}
	if err != nil {
		return nil, id, fmt.Errorf("start replication: %w", err)
	}
	// From here on its owner reads the messages itself, without an allocation a row.
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, id, fmt.Errorf("start replication: %w", err)
	}
	return hijacked, id, nil
}

func identify(ctx context.Context, conn *pgconn.PgConn) (Identity, error) {
	system, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return Identity{}, fmt.Errorf("identify system: %w", err)
	}
	return Identity{SystemID: system.SystemID, Timeline: system.Timeline, Database: system.DBName}, nil
}

// unreachable marks what may pass by itself: no answer, or a server that is
// starting, stopping or full. Other errors keep what they are.
func unreachable(op string, err error) error {
	var pgErr *pgconn.PgError
	var hinted *reconciler.Hinted
	var connectErr *pgconn.ConnectError
	switch {
	case errors.Is(err, reconciler.ErrUnreachable):
		return fmt.Errorf("%s: %w", op, err)
	case errors.As(err, &connectErr):
	case errors.As(err, &pgErr):
		if !passing(pgErr.Code) {
			return fmt.Errorf("%s: %w", op, err)
		}
	case errors.As(err, &hinted), errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s: %w: %w", op, reconciler.ErrUnreachable, err)
}

// passing tells whether an error is of the server's state, not of what we asked:
// connection exceptions, lack of resources, operator intervention, system errors,
// and locks or a slot that others hold.
func passing(code string) bool {
	for _, class := range []string{"08", "53", "55", "57", "58", "40"} {
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return false
}

// hintConnect adds what to do about a refused connection.
func hintConnect(err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	switch {
	case strings.Contains(pgErr.Message, "unsupported startup parameter"):
		return reconciler.Hint(err, "this is PgBouncer; connect to PostgreSQL directly: replication does not pass a pooler")
	case pgErr.Code == "28P01" || pgErr.Code == "3D000" || pgErr.Code == stateBadAuth:
		return reconciler.Hint(err, "correct user, password and database in the connection string (postgres.url, DATABASE_URL)")
	}
	return err
}

// hintReplication adds what to do when a normal connection works and this does not.
func hintReplication(err error) error {
	err = fmt.Errorf("open replication connection: %w", err)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	switch {
	case pgErr.Code == stateBadAuth:
		return reconciler.Hint(err, "logical replication needs a line for the database in pg_hba.conf (not one for \"replication\"): host <database> <role> <address> scram-sha-256")
	case pgErr.Code == stateTooManyConns:
		return reconciler.Hint(err, "ALTER SYSTEM SET max_wal_senders = 20;  -- then restart PostgreSQL")
	case strings.HasPrefix(pgErr.Code, "08"):
		return reconciler.Hint(err, "if this is a pooler such as PgBouncer, connect to PostgreSQL directly")
	}
	return err
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}

func hasState(err error, code string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == code
}

// ident quotes an identifier, literal a string.
func ident(name string) string { return pgx.Identifier{name}.Sanitize() }

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
