package wiring

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// anyConfig draws a valid configuration in its normal form.
func anyConfig(t *rapid.T) *Config {
	name := rapid.StringMatching(`[a-zA-Zäß_ -][a-z0-9_$-]{0,20}`).Filter(identifier)
	task := rapid.StringMatching(`[a-z]{1,8}(\.[a-z0-9_]{1,8}){0,3}`)
	text := rapid.String()
	duration := rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.Int64Range(0, int64(1000*time.Hour)).Draw(t, "ns"))
	})
	redisURL := rapid.StringMatching(`(redis://(:[a-z0-9%]{0}[a-z0-9]{1,9}@)?[a-z]{1,9}(:[1-9][0-9]{0,3})?(/[0-9])?)|(unix:///run/[a-z]{1,9}\?db=[0-9])`)
	secret := func(g *rapid.Generator[string], what string) Secret { return NewSecret(g.Draw(t, what)) }

	c := Default()
	c.Postgres.URL = secret(rapid.StringMatching(`postgres://[a-z]{1,5}:[a-z0-9]{0,9}@[a-z]{1,9}/[a-z]{1,9}(\?sslmode=disable)?`), "postgres")
	c.Replication = ReplicationConfig{
		Slot:        rapid.StringMatching(`[a-z0-9_]{1,63}`).Draw(t, "slot"),
		Publication: name.Draw(t, "publication"),
		MaxWAL:      ByteSize(rapid.Int64Range(1, 1<<60).Draw(t, "max_wal")),
	}
	c.Redis = RedisConfig{secret(redisURL, "url"), Secret{}, Secret{}, rapid.SampledFrom([]string{"auto", "never"}).Draw(t, "configure"), rapid.Float64Range(1e-9, 1).Draw(t, "share")}
	if rapid.Bool().Draw(t, "separate") {
		c.Redis.BrokerURL, c.Redis.ResultBackend = secret(redisURL, "broker"), secret(redisURL, "backend")
	}
	tables := rapid.SliceOfNDistinct(name, 1, 5, rapid.ID[string]).Draw(t, "tables")
	c.Tasks = nil
	for _, table := range tables {
		match := rapid.SampledFrom([][]string{{"celery_id"}, {"column:c"}, {"celery_id", "column:c", "column:d"}})
		c.Tasks = append(c.Tasks, TaskConfig{
			Table: "public." + table, Key: name.Draw(t, "key"), Match: match.Draw(t, "match"),
			Names:     rapid.SliceOf(task).Draw(t, "names"),
			Exclusive: rapid.Bool().Draw(t, "exclusive"),
			Children: rapid.SliceOf(rapid.Map(name, func(n string) string { return "public." + n + ".task_id" })).
				Draw(t, "children"),
			Companions: rapid.SliceOf(rapid.Map(name, func(n string) string { return "app:" + n + ":{key}" })).
				Draw(t, "companions"),
		})
	}
	c.Celery = CeleryConfig{
		GlobalKeyprefix: text.Draw(t, "prefix"), ResultKeyprefix: text.Draw(t, "prefix"),
		Queues:        rapid.SliceOf(text.Filter(func(s string) bool { return s != "" })).Draw(t, "queues"),
		PrioritySteps: rapid.SampledFrom([][]int{{0}, {0, 3, 6, 9}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}).Draw(t, "steps"),
		Sep:           text.Filter(func(s string) bool { return s != "" && !strings.Contains(s, `\`) }).Draw(t, "sep"),

		ControlExchange: text.Filter(func(s string) bool { return s != "" }).Draw(t, "exchange"),
		Terminate:       rapid.SampledFrom([]string{"off", "SIGTERM", "SIGKILL"}).Draw(t, "terminate"),
	}
	quarantine := duration.Draw(t, "quarantine")
	c.Policy = PolicyConfig{
		Remove:              rapid.SampledFrom([]string{"all", "deleted", "none"}).Draw(t, "remove"),
		Grace:               duration.Draw(t, "grace"),
		ResyncInterval:      time.Second + duration.Draw(t, "resync"),
		FullCleanupInterval: duration.Draw(t, "cleanup"),
		MaxAgeHours:         rapid.IntRange(1, 168).Draw(t, "age"),
		CleanupOnStartup:    rapid.Bool().Draw(t, "startup"),
		Quarantine:          quarantine,
		Remember:            quarantine + duration.Draw(t, "remember"),
		InflightLimit:       duration.Draw(t, "inflight"),
		MaxAbsentRatio:      rapid.Float64Range(1e-9, 1).Draw(t, "ratio"),
		MinSample:           rapid.IntRange(0, 1<<40).Draw(t, "sample"),
		Chords:              rapid.SampledFrom([]string{"keep", "remove"}).Draw(t, "chords"),
	}
	c.HTTP = HTTPConfig{
		Addr:       rapid.SampledFrom([]string{"127.0.0.1:0", "[::1]:8000", "localhost:65535"}).Draw(t, "addr"),
		TokensFile: text.Draw(t, "tokens"), Insecure: rapid.Bool().Draw(t, "insecure"), AuditFile: text.Draw(t, "audit"),
		JWTScopes: rapid.SampledFrom([][]string{{"read"}, {"read", "cleanup"}, {"admin"}}).Draw(t, "scopes"),
	}
	if rapid.Bool().Draw(t, "jwt") {
		c.HTTP.JWTSecret = NewPassphrase(rapid.StringN(32, -1, -1).Draw(t, "jwt secret"))
		c.HTTP.JWTIssuer, c.HTTP.JWTAudience = text.Draw(t, "issuer"), text.Draw(t, "audience")
	}
	if rapid.Bool().Draw(t, "tls") {
		c.HTTP.TLSCert, c.HTTP.TLSKey, c.HTTP.Addr = "cert", "key", "0.0.0.0:1"
	}
	c.Log = LogConfig{"warn", "text"}
	return c
}

func TestConfigRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyConfig(t)
		file, err := want.encode(true)
		require.NoError(t, err)
		got, err := loadText(string(file))
		require.NoError(t, err, "%s", file)
		require.Equal(t, want, got, "%s", file)
	})
}

// TestSecretsNeverLeak plants a password of any characters, encoded or not, in
// every URL: neither errors nor what is shown hold it.
func TestSecretsNeverLeak(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const marker = "hunter22"
		odd := rapid.StringOfN(rapid.SampledFrom([]rune("@:/?#%&=;, []*ä\n")), 0, 4, -1)
		password := odd.Draw(t, "before") + marker + odd.Draw(t, "after")
		scheme := rapid.SampledFrom([]string{
			"postgres://u:", "postgresql+asyncpg://u:", "redis://:", "redis://", "rediss://:", "unix://:", "amqp://u:", "", "host=h password=",
			"postgres://h/d?password=", "redis://h?password=", "postgres://h/d?sslpassword=",
		}).Draw(t, "scheme")
		rest := rapid.SampledFrom([]string{"@h/1", "@/run/a.sock", "", "@h:1/d?ssl=require"}).Draw(t, "rest")
		if rest == "" {
			// Without a host after it, what stands after an "@", or has no
			// colon before it, is a host.
			if scheme == "redis://" {
				return
			}
			password = strings.ReplaceAll(password, "@", "")
		}
		value := scheme + password + rest
		require.NotContains(t, NewSecret(value).String(), marker)
		for _, v := range variables {
			if !v.secret {
				continue
			}
			c, err := loadText("", database, v.name+"="+value)
			if err != nil {
				require.NotContains(t, err.Error(), marker)
				continue
			}
			shown, err := c.Redacted()
			require.NoError(t, err)
			require.NotContains(t, string(shown), marker)
		}
	})
}

// FuzzLoad: whatever the file and the environment hold, Load gives problems or
// a configuration that loads again as the same.
func FuzzLoad(f *testing.F) {
	f.Add("", "")
	f.Add("policy: {grace: 5s}\ntasks: [{table: a}]", "ORPHANWATCH_POLICY_GRACE=2s\nORPHANWATCH_TABLE=b")
	f.Add("tasks: [{table: a, match: [column: c]}, 1, null]\n\"tasks[0]\": {table: 1}", "DATABASE_URL_FILE=c.yaml")
	f.Add("a.b: 1\n1: 2\n? [x]\n: y", "REDIS_URL=redis://%zz\nORPHANWATCH_CELERY_SEP=\\x06\\x16")
	f.Add("<<: &a {b: *a}\n\"\": 1", "ORPHANWATCH_=\n=")
	f.Fuzz(func(t *testing.T, file, environ string) {
		c, err := loadText(file, append(strings.Split(environ, "\n"), database)...)
		if err != nil {
			var ce *ConfigError
			if !errors.As(err, &ce) || len(ce.Problems) == 0 || c != nil {
				t.Fatalf("not a list of problems: %v", err)
			}
			return
		}
		text, err := c.encode(true)
		require.NoError(t, err)
		again, err := loadText(string(text))
		require.NoError(t, err, "%s", text)
		require.Equal(t, c, again)
	})
}
