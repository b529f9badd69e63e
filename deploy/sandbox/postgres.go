package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresOptions say how a PostgreSQL is started.
type PostgresOptions struct {
	// Durable turns on fsync and full_page_writes, which throw-away servers do without.
	Durable bool
	// Settings are further lines of postgresql.conf, such as "wal_sender_timeout": "2s".
	Settings map[string]string
}

// Postgres is a running cluster with wal_level logical. Everybody on this machine may
// connect to it as superuser "postgres" without a password, also for replication.
type Postgres struct {
	server
	port int
	data string
}

const superuser = "postgres"

// defaults leave room for parallel tests with slots; they are in postgresql.conf and
// not on the command line, so that ALTER SYSTEM can override them.
const defaults = `
listen_addresses = '127.0.0.1'
wal_level = logical
max_wal_senders = 10
max_replication_slots = 10
max_prepared_transactions = 10
shared_buffers = 32MB
dynamic_shared_memory_type = mmap   # files that vanish with the directory
logging_collector = off
log_line_prefix = '%m [%p] %q%a %d '
timezone = 'UTC'
log_timezone = 'UTC'
`

// StartPostgres starts one more PostgreSQL in the sandbox.
func (sb *Sandbox) StartPostgres(ctx context.Context, opts PostgresOptions) (*Postgres, error) {
	install, err := findPostgres()
	if err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	name, dir, err := sb.serverDir("postgres")
	if err != nil {
		return nil, err
	}
	if err := install.give(dir); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	port, err := sb.reservePort()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	pg := &Postgres{port: port, data: filepath.Join(dir, "data")}
	pg.server = server{
		sandbox:    sb,
		stopSignal: syscall.SIGINT, // "fast"
		program: program{
			name: name, dir: dir, argv: []string{filepath.Join(install.bin, "postgres"), "-D", pg.data},
			env: environment(), log: filepath.Join(dir, "postgres.log"), credential: install.credential,
			farewell: syscall.SIGQUIT, // "immediate"
		},
		before: pg.removeLockFiles,
		ready:  pg.awaitReady,
	}
	if err := install.createCluster(ctx, sb, pg.data); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := pg.configure(opts, dir); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := pg.Start(ctx); err != nil {
		return nil, err
	}
	return pg, nil
}

// Addr is the TCP address, 127.0.0.1:port.
func (pg *Postgres) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(pg.port)) }

// URL is the TCP URL of the database "postgres".
func (pg *Postgres) URL() string { return pg.DSN("postgres") }

// DSN is the TCP URL of a database.
func (pg *Postgres) DSN(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User(superuser), Host: pg.Addr(), Path: "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// SocketDSN is the URL of a database over the Unix socket, which no proxy cuts.
func (pg *Postgres) SocketDSN(database string) string {
	q := url.Values{"host": {pg.program.dir}, "port": {strconv.Itoa(pg.port)}}
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/" + database, RawQuery: q.Encode()}
	return u.String()
}

// Exec runs statements in a database over the Unix socket.
func (pg *Postgres) Exec(ctx context.Context, database string, statements ...string) error {
	conn, err := pgx.Connect(ctx, pg.SocketDSN(database))
	if err != nil {
		return fmt.Errorf("execute on %s: %w", pg.program.name, err)
	}
	defer hangUp(ctx, conn)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			return fmt.Errorf("execute %q on %s: %w", s, pg.program.name, err)
		}
	}
	return nil
}

// Reconfigure changes settings for good (ALTER SYSTEM; the empty value resets) and
// returns when they are in force: after a reload, or after a restart where a setting
// needs one.
func (pg *Postgres) Reconfigure(ctx context.Context, settings map[string]string) error {
	conn, err := pgx.Connect(ctx, pg.SocketDSN("postgres"))
	if err != nil {
		return fmt.Errorf("reconfigure %s: %w", pg.program.name, err)
	}
	defer hangUp(ctx, conn)
	restart := false
	for name, value := range settings {
		statement := "ALTER SYSTEM SET " + pgx.Identifier{name}.Sanitize() + " = " + literal(value)
		if value == "" {
			statement = "ALTER SYSTEM RESET " + pgx.Identifier{name}.Sanitize()
		}
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("reconfigure %s: set %s to %q: %w", pg.program.name, name, value, err)
		}
		var atStart bool
		err := conn.QueryRow(ctx, "SELECT context = 'postmaster' FROM pg_settings WHERE name = $1", name).Scan(&atStart)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("reconfigure %s: %w", pg.program.name, err)
		}
		restart = restart || atStart
	}
	if restart {
		hangUp(ctx, conn)
		return pg.Restart(ctx)
	}
	var before time.Time
	if err := conn.QueryRow(ctx, "SELECT pg_conf_load_time() FROM pg_reload_conf()").Scan(&before); err != nil {
		return fmt.Errorf("reconfigure %s: %w", pg.program.name, err)
	}
	// Our own backend answers from what it has loaded; later ones start from the postmaster's.
	return Await(ctx, pg.program.name+" has loaded its configuration", func() error {
		fresh, err := pgx.Connect(ctx, pg.SocketDSN("postgres"))
		if err != nil {
			return err
		}
		defer hangUp(ctx, fresh)
		var loaded time.Time
		if err := fresh.QueryRow(ctx, "SELECT pg_conf_load_time()").Scan(&loaded); err != nil {
			return err
		}
		if !loaded.After(before) {
			return fmt.Errorf("the configuration is of %v", loaded)
		}
		return nil
	})
}

// configure appends to the template's postgresql.conf.
func (pg *Postgres) configure(opts PostgresOptions, socketDir string) error {
	var b strings.Builder
	b.WriteString(defaults)
	fmt.Fprintf(&b, "port = %d\nunix_socket_directories = %s\n", pg.port, literal(socketDir))
	if !opts.Durable {
		b.WriteString("fsync = off\nfull_page_writes = off\n")
	}
	names := make([]string, 0, len(opts.Settings))
	for name := range opts.Settings {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(&b, "%s = %s\n", name, literal(opts.Settings[name]))
	}
	file, err := os.OpenFile(filepath.Join(pg.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	_, err = file.WriteString(b.String())
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	return nil
}

// hangUp says goodbye even when ctx has ended: a killed connection logs an error.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// removeLockFiles removes what a killed postmaster left: it would refuse to start if
// its number had been given to another process.
func (pg *Postgres) removeLockFiles() error {
	socket := filepath.Join(pg.program.dir, ".s.PGSQL."+strconv.Itoa(pg.port))
	for _, file := range []string{filepath.Join(pg.data, "postmaster.pid"), socket, socket + ".lock"} {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove stale lock: %w", err)
		}
	}
	return nil
}

// awaitReady reads postmaster.pid as pg_ctl does: its eighth line is the status.
func (pg *Postgres) awaitReady(ctx context.Context, _ *process) error {
	return Await(ctx, pg.program.name+" is ready", func() error {
		text, err := os.ReadFile(filepath.Join(pg.data, "postmaster.pid"))
		if err != nil {
			return err
		}
		lines := strings.Split(string(text), "\n")
		if len(lines) < 8 || strings.TrimSpace(lines[7]) != "ready" {
			return errors.New("postmaster.pid does not say ready")
		}
		return nil
	})
}
