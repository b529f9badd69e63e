package deploy_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// demo is deploy/compose.yaml without containers: its services' own commands and
// environments, with servers of the sandbox in the place of its hosts.
type demo struct {
	t        *testing.T
	Services map[string]struct {
		Command     []string          `yaml:"command"`
		Environment map[string]string `yaml:"environment"`
		Healthcheck struct {
			Test []string `yaml:"test"`
		} `yaml:"healthcheck"`
	}
	hosts *strings.Replacer
	dir   string // where the example's image has its files
}

// TestTheExample: what the demo promises comes true with everything that compose.yaml
// gives to the stores, the application and the daemon.
func TestTheExample(t *testing.T) {
	d := &demo{t: t, dir: t.TempDir()}
	readYAML(t, "compose.yaml", d)
	for _, file := range []string{"example/app.py", "celery/orphanwatch_celery.py"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(d.dir, filepath.Base(file)), text, 0o600))
	}
	binary := filepath.Join(t.TempDir(), "orphanwatch")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "../cmd/orphanwatch").CombinedOutput()
	require.NoError(t, err, string(out))

	sb := d.stores()
	redis := d.redis(sb)
	addr := sandbox.FreeAddr(t)
	var traces atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if body, err := io.ReadAll(r.Body); err == nil && len(body) > 0 && r.URL.Path == "/v1/traces" {
			traces.Add(1)
		}
	}))
	t.Cleanup(collector.Close)
	d.hosts = strings.NewReplacer(
		"postgres:5432", sb.Postgres.Addr(), "redis:6379", sb.Redis.Addr(),
		"http://otel-collector:4318", collector.URL, "0.0.0.0:8000", addr, "orphanwatch:8000", addr,
	)

	d.start("orphanwatch", binary, "run")
	command := func(args ...string) error {
		cmd := exec.Command(binary, args...)
		cmd.Env = d.environ("orphanwatch")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	health := d.Services["orphanwatch"].Healthcheck.Test
	require.Equal(t, []string{"CMD", "orphanwatch"}, health[:2])
	await(t, 30*time.Second, "the daemon to be healthy", func() error { return command(health[2:]...) })
	require.NoError(t, command("doctor"), "both stores have all that doctor looks for")
	python := "/usr/bin/python3"
	if p := os.Getenv("ORPHANWATCH_PYTHON"); p != "" {
		python = p
	}
	require.Equal(t, "celery", d.Services["worker"].Command[0])
	worker := d.start("worker", append([]string{python, "-m"}, d.Services["worker"].Command...)...)
	await(t, 30*time.Second, "the worker to be ready", func() error { return says(worker, ` ready\.`) })
	require.Equal(t, "python", d.Services["producer"].Command[0])
	producer := d.start("producer", append([]string{python}, d.Services["producer"].Command[1:]...)...)

	row := func(what string) (id string) {
		await(t, 30*time.Second, "a row: "+what, func() error {
			m := regexp.MustCompile(`row (\S+): ` + what).FindStringSubmatch(read(t, producer))
			if m == nil {
				return errors.New("the producer has none yet")
			}
			id = m[1]
			return nil
		})
		return id
	}
	early, living := row("deleted before"), row("stays")
	await(t, 3*time.Second, "the message of the row that was deleted before its task ran to be gone", func() error {
		if strings.Contains(messages(t, redis), early) {
			return errors.New("it is there")
		}
		return nil
	})
	late := row("deleted after")
	await(t, 5*time.Second, "the result of the row that was deleted after its task ran to be gone", func() error {
		n, err := redis.Exists(t.Context(), "celery-task-meta-"+late).Result()
		if err == nil && n > 0 {
			err = errors.New("it is there")
		}
		return err
	})
	require.EqualValues(t, 1, redis.Exists(t.Context(), "celery-task-meta-"+living).Val(), "the result of the row that stays")

	log := read(t, worker)
	for _, id := range []string{late, living} {
		require.Contains(t, log, "["+id+"] succeeded")
	}
	for _, never := range []string{"succeeded", "raised", "is not run"} { // the daemon came before the worker could ask
		require.NotContains(t, log, "["+early+"] "+never)
	}
	require.NotContains(t, log, "unchecked", "the worker asks the daemon before each task")

	answer, err := get(t, addr, "/api/v1/tasks/"+early, d.Services["worker"].Environment["ORPHANWATCH_TOKEN"])
	require.NoError(t, err)
	require.Contains(t, answer, `"exists":false,"evidence":"deleted"`)
	metrics, err := get(t, addr, "/metrics", "")
	require.NoError(t, err)
	require.Regexp(t, `(?m)^orphanwatch_guard_tripped(\{.*\})? 0$`, metrics)
	require.Empty(t, redis.ACLLog(t.Context(), 10).Val(), "Redis refused somebody")
	await(t, 10*time.Second, "traces to reach the collector", sandbox.Until(func() bool { return traces.Load() > 0 }))
}

// stores starts both as compose.yaml configures them, and runs what its PostgreSQL runs at its first start.
func (d *demo) stores() *sandbox.Sandbox {
	d.t.Helper()
	settings := map[string]string{}
	for _, arg := range d.Services["postgres"].Command {
		if name, value, ok := strings.Cut(arg, "="); ok {
			settings[name] = value
		}
	}
	require.Equal(d.t, "logical", settings["wal_level"])
	command := d.Services["redis"].Command
	require.Equal(d.t, []string{"redis-server", "--aclfile"}, command[:2])
	var args []string
	for _, arg := range command[3:] {
		args = append(args, strings.ReplaceAll(arg, "$$", "$"))
	}
	sb := sandbox.New(d.t, sandbox.Options{
		Postgres: sandbox.PostgresOptions{Settings: settings},
		Redis:    sandbox.RedisOptions{ACLFile: "example/users.acl", Args: args},
	})
	env := d.Services["postgres"].Environment
	require.NoError(d.t, sb.Postgres.Exec(d.t.Context(), "postgres",
		fmt.Sprintf("CREATE ROLE %s SUPERUSER LOGIN PASSWORD '%s'", env["POSTGRES_USER"], env["POSTGRES_PASSWORD"]),
		"CREATE DATABASE "+env["POSTGRES_DB"]))
	d.t.Setenv("ORPHANWATCH_PASSWORD", env["ORPHANWATCH_PASSWORD"])
	require.NoError(d.t, sb.Postgres.RunScript(d.t.Context(), sb.Postgres.DSN(env["POSTGRES_DB"]), "example/database.sql"))
	return sb
}

// redis is a client with the application's rights.
func (d *demo) redis(sb *sandbox.Sandbox) *redis.Client {
	client := redis.NewClient(&redis.Options{
		Addr: sb.Redis.Addr(), Username: "app", Password: d.Services["redis"].Environment["REDISCLI_AUTH"],
	})
	d.t.Cleanup(func() { _ = client.Close() })
	return client
}

// environ is what a service gets.
func (d *demo) environ(service string) (env []string) {
	for name, value := range d.Services[service].Environment {
		env = append(env, name+"="+d.hosts.Replace(value))
	}
	return env
}

// start starts a program with a service's environment and none of ours, and gives the path of its log.
func (d *demo) start(service string, argv ...string) (path string) {
	d.t.Helper()
	log, err := os.Create(filepath.Join(d.t.TempDir(), service+".log"))
	require.NoError(d.t, err)
	defer func() { _ = log.Close() }()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = d.dir, log, log
	cmd.Env = append(d.environ(service), "PATH="+os.Getenv("PATH"), "HOME="+d.dir, "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	require.NoError(d.t, cmd.Start())
	d.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the worker's processes too
		_ = cmd.Wait()
		if d.t.Failed() {
			d.t.Logf("%s:\n%s", service, read(d.t, log.Name()))
		}
	})
	return log.Name()
}

// messages is all that Celery keeps of tasks that have not run.
func messages(t *testing.T, client *redis.Client) string {
	t.Helper()
	queued, err := client.LRange(t.Context(), "celery", 0, -1).Result()
	require.NoError(t, err)
	unacked, err := client.HVals(t.Context(), "unacked").Result()
	require.NoError(t, err)
	return strings.Join(append(queued, unacked...), "\n")
}

func await(t *testing.T, timeout time.Duration, what string, cond func() error) {
	t.Helper()
	sandbox.AwaitTB(t, timeout, what, cond)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// says tells whether a line of a log matches.
func says(path, pattern string) error {
	text, err := os.ReadFile(path)
	if err == nil && !regexp.MustCompile(pattern).Match(text) {
		err = fmt.Errorf("no line has %s", pattern)
	}
	return err
}

// get is the body of an answer; one that is not 200 is an error.
func get(t *testing.T, addr, path, token string) (string, error) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return "", err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}
