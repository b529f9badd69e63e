package wiring

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const jwtSecret = "jwt-s3cret-0123456789-0123456789-0"

const database = "DATABASE_URL=postgres://app:pw@db/app"

// files plays the file system of a Load.
type files map[string]string

func (f files) read(path string) ([]byte, error) {
	text, ok := f[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return []byte(text), nil
}

// loadText loads text as c.yaml, or no file for "", under the environment.
func loadText(text string, environ ...string) (*Config, error) {
	o := LoadOptions{Environ: environ, ReadFile: files{"c.yaml": text}.read}
	if text != "" {
		o.Path = "c.yaml"
	}
	return Load(o)
}

// full is testdata/design.yaml as Load should give it.
func full() *Config {
	return &Config{
		Postgres:    PostgresConfig{NewSecret("postgres://app:s3cret@db:5432/app?sslmode=require")},
		Replication: ReplicationConfig{"watch_a", "watch_b", 512_000_000},
		Redis: RedisConfig{
			NewSecret("redis://redis:6379/1"), NewSecret("redis://redis:6379/2"),
			NewSecret("unix:///run/redis.sock?db=3"), "never", 0.25,
		},
		Tasks: []TaskConfig{{
			Table: "app.scan_tasks", Key: "uid", Match: []string{"celery_id", "column:celery_task_id"},
			Names: []string{"app.scan", "app.rescan"}, Exclusive: true,
			Children:   []string{"public.task_logs.task_id", "app.findings.task_id"},
			Companions: []string{"task_created:{key}", "scan:{key}:lock"},
		}},
		Celery: CeleryConfig{"p:", "r_", []string{"celery", "slow"}, []int{0, 5}, ":", "ctl", "off"},
		Policy: PolicyConfig{
			Remove: "deleted", Grace: 2 * time.Second, ResyncInterval: time.Minute, FullCleanupInterval: 12 * time.Hour,
			MaxAgeHours: 48, Quarantine: 30 * time.Minute, Remember: 48 * time.Hour,
			MaxAbsentRatio: 0.25, MinSample: 10, Chords: "remove",
		},
		HTTP: HTTPConfig{
			"0.0.0.0:9000", "/etc/tokens", true, "/var/log/audit", "/etc/tls.crt", "/etc/tls.key",
			NewPassphrase(jwtSecret), "app", "orphanwatch",
			[]string{"read", "cleanup"},
		},
		Log: LogConfig{"debug", "json"},
	}
}

// fullEnviron sets by variables what testdata/design.yaml sets.
var fullEnviron = []string{
	"DATABASE_URL=postgresql+asyncpg://app:s3cret@db:5432/app?ssl=require",
	"REDIS_URL=redis://redis:6379/1", "CELERY_BROKER_URL=redis://redis:6379/2",
	"CELERY_RESULT_BACKEND=redis+socket:///run/redis.sock?virtual_host=3",
	"ORPHANWATCH_REPLICATION_SLOT=watch_a", "ORPHANWATCH_REPLICATION_PUBLICATION=watch_b", "ORPHANWATCH_REPLICATION_MAX_WAL=512MB",
	"ORPHANWATCH_REDIS_CONFIGURE=never", "ORPHANWATCH_REDIS_SHARE=0.25",
	"ORPHANWATCH_TABLE=app.scan_tasks", "ORPHANWATCH_KEY=uid", "ORPHANWATCH_MATCH=celery_id, column:celery_task_id",
	"ORPHANWATCH_NAMES=app.scan,app.rescan", "ORPHANWATCH_EXCLUSIVE=true",
	"ORPHANWATCH_CHILDREN=task_logs.task_id,app.findings.task_id", "ORPHANWATCH_COMPANIONS=task_created:{key},scan:{key}:lock",
	"ORPHANWATCH_CELERY_GLOBAL_KEYPREFIX=p:", "ORPHANWATCH_CELERY_RESULT_KEYPREFIX=r_", "ORPHANWATCH_CELERY_QUEUES=celery,slow",
	"ORPHANWATCH_CELERY_PRIORITY_STEPS=0,5", "ORPHANWATCH_CELERY_SEP=:", "ORPHANWATCH_CELERY_CONTROL_EXCHANGE=ctl",
	"ORPHANWATCH_CELERY_TERMINATE=off",
	"ORPHANWATCH_POLICY_REMOVE=deleted", "ORPHANWATCH_POLICY_GRACE=2s", "ORPHANWATCH_POLICY_RESYNC_INTERVAL=1m",
	"ORPHANWATCH_POLICY_FULL_CLEANUP_INTERVAL=12h", "ORPHANWATCH_POLICY_MAX_AGE_HOURS=48", "ORPHANWATCH_POLICY_CLEANUP_ON_STARTUP=false",
	"ORPHANWATCH_POLICY_QUARANTINE=30m", "ORPHANWATCH_POLICY_REMEMBER=48h", "ORPHANWATCH_POLICY_INFLIGHT_LIMIT=0",
	"ORPHANWATCH_POLICY_MAX_ABSENT_RATIO=0.25", "ORPHANWATCH_POLICY_MIN_SAMPLE=10", "ORPHANWATCH_POLICY_CHORDS=remove",
	"ORPHANWATCH_HTTP_ADDR=0.0.0.0:9000", "ORPHANWATCH_HTTP_TOKENS_FILE=/etc/tokens", "ORPHANWATCH_HTTP_INSECURE=true",
	"ORPHANWATCH_HTTP_AUDIT_FILE=/var/log/audit", "ORPHANWATCH_HTTP_TLS_CERT=/etc/tls.crt", "ORPHANWATCH_HTTP_TLS_KEY=/etc/tls.key",
	"ORPHANWATCH_HTTP_JWT_SECRET=" + jwtSecret, "ORPHANWATCH_HTTP_JWT_ISSUER=app", "ORPHANWATCH_HTTP_JWT_AUDIENCE=orphanwatch",
	"ORPHANWATCH_HTTP_JWT_SCOPES=read,cleanup",
	"ORPHANWATCH_LOG_LEVEL=debug", "ORPHANWATCH_LOG_FORMAT=json",
}

func TestLoadEveryKeyFromFile(t *testing.T) {
	c, err := Load(LoadOptions{Path: "testdata/design.yaml"})
	require.NoError(t, err)
	require.Equal(t, full(), c)
}

func TestLoadEveryKeyFromEnvironment(t *testing.T) {
	c, err := loadText("", fullEnviron...)
	require.NoError(t, err)
	require.Equal(t, full(), c)

	// Nothing is left out above: each key's own variable is in the list.
	for _, v := range variables {
		if v.path == "postgres.url" || strings.HasPrefix(v.path, "redis.") && v.secret {
			continue // set by the well-known names
		}
		require.Condition(t, func() bool {
			for _, e := range fullEnviron {
				if strings.HasPrefix(e, v.name+"=") {
					return true
				}
			}
			return false
		}, v.name)
	}
	c, err = loadText("", "ORPHANWATCH_POSTGRES_URL=postgres://a/b", "ORPHANWATCH_REDIS_URL=redis://a",
		"ORPHANWATCH_REDIS_BROKER_URL=redis://b", "ORPHANWATCH_REDIS_RESULT_BACKEND=redis://c")
	require.NoError(t, err)
	require.Equal(t, "redis://a redis://b redis://c", fmt.Sprint(c.Redis.URL, " ", c.Redis.Broker(), " ", c.Redis.Results()))
}

func TestLoadDefaults(t *testing.T) {
	want := Default()
	want.Postgres.URL = NewSecret("postgres://app:pw@db/app")
	for _, text := range []string{"", "# nothing\n", "tasks: []\npolicy:\nhttp: {addr: }\n"} {
		c, err := loadText(text, database, "HOME=/root", "ORPHANWATCH_POLICY_GRACE=", "broken")
		require.NoError(t, err)
		require.Equal(t, want, c)
	}
	require.Equal(t, "public.scan_tasks", want.Tasks[0].Table)
	require.Equal(t, want.Redis.URL, want.Redis.Broker())
	require.Equal(t, want.Redis.URL, want.Redis.Results())
}

func TestLoadPrecedence(t *testing.T) {
	const file = "policy: {grace: 3s, remove: none}\ntasks: [{table: a}, {table: b, key: k}]\n"
	c, err := loadText(file, database, "ORPHANWATCH_POLICY_GRACE=2s", "ORPHANWATCH_KEY=uid")
	require.NoError(t, err)
	require.Equal(t, 2*time.Second, c.Policy.Grace, "environment over file")
	require.Equal(t, "none", c.Policy.Remove, "file over default")
	require.Equal(t, 5*time.Minute, c.Policy.ResyncInterval, "default")
	require.Equal(t, []string{"public.a uid", "public.b k"},
		[]string{c.Tasks[0].Table + " " + c.Tasks[0].Key, c.Tasks[1].Table + " " + c.Tasks[1].Key})

	c, err = loadText("", database, "ORPHANWATCH_NAMES=app.scan")
	require.NoError(t, err)
	require.Equal(t, "public.scan_tasks", c.Tasks[0].Table)
	require.Equal(t, []string{"app.scan"}, c.Tasks[0].Names)

	c, err = loadText("", database, "ORPHANWATCH_POSTGRES_URL=postgres://own/db")
	require.NoError(t, err)
	require.Equal(t, "postgres://own/db", c.Postgres.URL.Reveal(), "our variable over the application's")

	read := files{"flag.yaml": "log: {level: warn}", "env.yaml": "log: {level: error}"}.read
	c, err = Load(LoadOptions{Path: "flag.yaml", Environ: []string{database, "ORPHANWATCH_CONFIG=env.yaml"}, ReadFile: read})
	require.NoError(t, err)
	require.Equal(t, "warn", c.Log.Level)
	c, err = Load(LoadOptions{Environ: []string{database, "ORPHANWATCH_CONFIG=env.yaml"}, ReadFile: read})
	require.NoError(t, err)
	require.Equal(t, "error", c.Log.Level)
}

func TestLoadRedisFollowsCelery(t *testing.T) {
	for _, tc := range []struct {
		environ []string
		want    string
	}{
		{nil, DefaultRedisURL},
		{[]string{"CELERY_BROKER_URL=redis://b/1"}, "redis://b/1"},
		{[]string{"CELERY_BROKER_URL=redis://b/1", "CELERY_RESULT_BACKEND=redis://r/2"}, "redis://r/2"},
		{[]string{"CELERY_BROKER_URL=redis://b/1", "REDIS_URL=redis://u/3"}, "redis://u/3"},
	} {
		c, err := loadText("", append(tc.environ, database)...)
		require.NoError(t, err)
		require.Equal(t, tc.want, c.Redis.URL.Reveal(), tc.environ)
	}
}

func TestLoadSecretsFromFiles(t *testing.T) {
	read := files{"/s/pg": "postgres://u:pw@h/d\n", "/s/redis": "redis://:pw@h/1\r\n", "/s/empty": "\n"}.read
	c, err := Load(LoadOptions{ReadFile: read, Environ: []string{"DATABASE_URL_FILE=/s/pg", "ORPHANWATCH_REDIS_URL_FILE=/s/redis"}})
	require.NoError(t, err)
	require.Equal(t, "postgres://u:pw@h/d", c.Postgres.URL.Reveal())
	require.Equal(t, "redis://:pw@h/1", c.Redis.URL.Reveal())

	_, err = Load(LoadOptions{ReadFile: read, Environ: []string{
		"DATABASE_URL_FILE=/s/pg", database, "REDIS_URL_FILE=/s/none", "CELERY_BROKER_URL_FILE=/s/empty",
	}})
	require.EqualError(t, err, `configuration: 3 problems
  DATABASE_URL: is set, and DATABASE_URL_FILE too; set one of them
  REDIS_URL_FILE: cannot be read: open /s/none: file does not exist; make it the path of a readable file that holds the value of REDIS_URL
  CELERY_BROKER_URL_FILE: the file "/s/empty" is empty; put the value of CELERY_BROKER_URL in it`)
}

func TestLoadIgnoresServiceLinksOfKubernetes(t *testing.T) {
	_, err := loadText("", database, "ORPHANWATCH_SERVICE_HOST=10.0.0.7", "ORPHANWATCH_SERVICE_PORT=8000", "ORPHANWATCH_SERVICE_PORT_HTTP=8000",
		"ORPHANWATCH_PORT=tcp://10.0.0.7:8000", "ORPHANWATCH_PORT_8000_TCP=tcp://10.0.0.7:8000", "ORPHANWATCH_PORT_8000_TCP_PROTO=tcp",
		"ORPHANWATCH_PORT_8000_TCP_PORT=8000", "ORPHANWATCH_PORT_8000_TCP_ADDR=10.0.0.7", "ORPHANWATCH_METRICS_SERVICE_HOST=10.0.0.8")
	require.NoError(t, err)
	_, err = loadText("", database, "ORPHANWATCH_HTTP_PORT=9000")
	require.ErrorContains(t, err, "ORPHANWATCH_HTTP_PORT: unknown variable")
}

func TestSecretShowsItselfNowhere(t *testing.T) {
	s := NewSecret("postgres://user:hunter22@host/db")
	text, err := s.MarshalText()
	require.NoError(t, err)
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("m", slog.Any("url", s), slog.Any("config", *full()))
	all := fmt.Sprintf("%s %v %+v %#v %q %x %d", s, s, s, s, s, s, s) + string(text) + logged.String() + fmt.Sprintf("%+v", full())
	require.NotContains(t, all, "hunter22")
	require.NotContains(t, all, "s3cret")
	require.Equal(t, "postgres://user:***@host/db", s.String())
	require.Equal(t, `"postgres://user:***@host/db"`, fmt.Sprintf("%q", s))

	shown, err := full().Redacted()
	require.NoError(t, err)
	require.NotContains(t, string(shown), "s3cret")
	require.Contains(t, string(shown), "url: postgres://app:***@db:5432/app?sslmode=require\n")
	require.Contains(t, string(shown), "grace: 2s\n")
	require.Contains(t, string(shown), "max_wal: 512MB\n")
	require.Contains(t, string(shown), "jwt_secret: '***'\n")
	_, err = loadText(string(shown), "ORPHANWATCH_HTTP_JWT_SECRET="+jwtSecret)
	require.NoError(t, err, "what is shown is a valid file, but for what cannot be shown")
	_, err = loadText(string(shown))
	require.ErrorContains(t, err, "http.jwt_secret: is hidden")
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "",
		"hunter2":                             "***",
		"host=h password=hunter2":             "***",
		"redis://:hunter2@h:1/0":              "redis://***@h:1/0",
		"redis://hunter2@h/0":                 "redis://***@h/0",
		"postgres://user@h/d":                 "postgres://user@h/d",
		"postgres://u:hun@ter2@h/d":           "postgres://u:***@h/d",
		"postgres://u:hun?ter2@h/d":           "postgres://***",
		"postgres://u:hun/ter2@h/d":           "postgres://u:***@h/d",
		"postgres://h/d?a=b&password=hunter2": "postgres://h/d?a=b&password=***",
		"postgres://h/d?p%61ssword=hunter2":   "postgres://h/d?p%61ssword=***",
		"postgres://h/d?password=hun&ter2":    "postgres://h/d?password=***",
		"postgres://u:hunter2":                "postgres://***",
		"postgres://h/d#hunter2":              "postgres://h/d#***",
	} {
		require.Equal(t, want, redact(in))
	}
}

func TestConfigErrorIsFound(t *testing.T) {
	_, err := loadText("")
	var ce *ConfigError
	require.True(t, errors.As(fmt.Errorf("start: %w", err), &ce))
	require.Len(t, ce.Problems, 1)
}

func TestByteSizeString(t *testing.T) {
	for size, want := range map[ByteSize]string{0: "0B", 1 << 30: "1GiB", 512_000_000: "512MB", 1536: "1536B", 3 << 10: "3KiB", -1: "-1B"} {
		require.Equal(t, want, size.String())
	}
	size, bad := parseByteSize(" 1.5 gib ")
	require.Nil(t, bad)
	require.Equal(t, ByteSize(3<<29), size)
}
