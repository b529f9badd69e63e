package sandbox

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// RedisOptions say how a Redis is started.
type RedisOptions struct {
	// AppendOnly keeps the data over Restart and Kill (appendfsync always). Without
	// it a restarted Redis is empty.
	AppendOnly bool
	// Password, if any, is required from every client (requirepass).
	Password string
	// ACLFile is a file with users (aclfile), which may be ours: nobody writes it.
	ACLFile string
	// Args are further arguments of redis-server, such as "--maxmemory", "64mb".
	Args []string
}

// Redis is a running redis-server. Keyspace events are off, as in a fresh Redis.
type Redis struct {
	server
	port     int
	socket   string
	password string
}

// StartRedis starts one more Redis in the sandbox.
func (sb *Sandbox) StartRedis(ctx context.Context, opts RedisOptions) (*Redis, error) {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, fmt.Errorf("start redis: redis-server is not on the PATH (run deploy/install-deps.sh): %w", err)
	}
	name, dir, err := sb.serverDir("redis")
	if err != nil {
		return nil, err
	}
	port, err := sb.reservePort()
	if err != nil {
		return nil, fmt.Errorf("start redis: %w", err)
	}
	r := &Redis{port: port, socket: filepath.Join(dir, "redis.sock"), password: opts.Password}
	appendonly := "no"
	if opts.AppendOnly {
		appendonly = "yes"
	}
	argv := []string{
		binary, "--port", strconv.Itoa(port), "--bind", "127.0.0.1",
		"--unixsocket", r.socket, "--unixsocketperm", "700", "--dir", dir, "--daemonize", "no",
		"--save", "", "--appendonly", appendonly, "--appendfsync", "always",
		"--notify-keyspace-events", "",
	}
	if opts.Password != "" {
		argv = append(argv, "--requirepass", opts.Password)
	}
	if opts.ACLFile != "" {
		path, err := filepath.Abs(opts.ACLFile) // the server runs in a directory of its own
		if err != nil {
			return nil, fmt.Errorf("start redis: %w", err)
		}
		argv = append(argv, "--aclfile", path)
	}
	r.server = server{
		sandbox:    sb,
		stopSignal: syscall.SIGTERM,
		program: program{
			name: name, dir: dir, argv: append(argv, opts.Args...),
			env: environment(), log: filepath.Join(dir, "redis.log"),
		},
		ready: r.awaitPing,
	}
	if err := r.Start(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// Addr is the TCP address, 127.0.0.1:port.
func (r *Redis) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// Socket is the path of the Unix socket.
func (r *Redis) Socket() string { return r.socket }

// URL is the TCP URL of database 0, as Celery and go-redis take it.
func (r *Redis) URL() string { return r.DB(0) }

// DB is the TCP URL of the numbered database (0 to 15).
func (r *Redis) DB(n int) string {
	credentials := ""
	if r.password != "" {
		credentials = ":" + r.password + "@"
	}
	return "redis://" + credentials + r.Addr() + "/" + strconv.Itoa(n)
}

// Client returns a new go-redis client of database n over the Unix socket. The caller
// closes it.
func (r *Redis) Client(n int) *redis.Client {
	return redis.NewClient(&redis.Options{Network: "unix", Addr: r.socket, Password: r.password, DB: n})
}

// Reconfigure sets parameters of the running server (CONFIG SET). A restart forgets them.
func (r *Redis) Reconfigure(ctx context.Context, settings map[string]string) error {
	client := r.Client(0)
	defer shut(client)
	for name, value := range settings {
		if err := client.ConfigSet(ctx, name, value).Err(); err != nil {
			return fmt.Errorf("set %s of redis to %q: %w", name, value, err)
		}
	}
	return nil
}

func (r *Redis) awaitPing(ctx context.Context, _ *process) error {
	return Await(ctx, r.program.name+" answers PING", func() error {
		return ping(ctx, r.socket)
	})
}

// ping is one PING without a client: a client would log and retry. "-NOAUTH" is an
// answer of a server that serves; "-LOADING" is not.
func ping(ctx context.Context, socket string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer shut(conn)
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	answer := make([]byte, 128)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	line := strings.TrimSpace(string(answer[:n]))
	if line == "+PONG" || strings.HasPrefix(line, "-NOAUTH") {
		return nil
	}
	return fmt.Errorf("PING was answered by %q", line)
}
