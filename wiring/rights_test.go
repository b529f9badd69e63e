package wiring_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// Every daemon and command of these tests has the rights of the files in deploy and no
// others; the tests themselves are superuser.
const (
	setupSQL = "../deploy/sql/setup.sql"
	usersACL = "../deploy/redis/users.acl"
	role     = "orphanwatch"
	password = "change-me" // of users.acl
)

// setup runs setup.sql in the world's database.
func (w *world) setup(variables ...string) {
	w.t.Helper()
	require.NoError(w.t, w.sb.Postgres.RunScript(w.t.Context(), w.dbURL, setupSQL, variables...))
}

// watchURL and redisURL are the stores as the daemon reaches them.
func (w *world) watchURL() string { return sandbox.As(w.dbURL, role, password) }
func (w *world) redisURL() string { return sandbox.As(w.sb.Redis.URL(), role, password) }

// allow gives the daemon's user rules for what is not in users.acl, because it is not
// everybody's. A restart of Redis forgets them.
func (w *world) allow(rules ...string) {
	w.t.Helper()
	grant(w.t, w.client(w.sb.Redis, 0), rules...)
}

func grant(t *testing.T, admin *redis.Client, rules ...string) {
	t.Helper()
	args := []any{"ACL", "SETUSER", role}
	for _, rule := range rules {
		args = append(args, rule)
	}
	require.NoError(t, admin.Do(t.Context(), args...).Err())
}

// permit does in Redis what doctor prints for a daemon with this environment.
func (w *world) permit(env ...string) {
	w.t.Helper()
	config, err := wiring.Load(wiring.LoadOptions{Environ: append(w.environ(), env...)})
	require.NoError(w.t, err)
	stores, err := wiring.OpenStores(config, wiring.NewLog(config, os.Stderr))
	require.NoError(w.t, err)
	defer func() { _ = stores.Close() }()
	admins := map[string]*redis.Client{"redis": w.redis, "broker": w.client(w.sb.Redis, 0)}
	asked := func() (fixes int) {
		for _, c := range stores.Diagnose(w.t.Context()).Checks {
			rules, ok := strings.CutPrefix(c.Fix, "redis-cli ACL SETUSER "+role+" ")
			if !ok || c.Status() != "wrong" {
				continue
			}
			w.t.Logf("doctor: %s: %s", c.Store, c.Fix)
			grant(w.t, admins[c.Store], strings.Fields(strings.ReplaceAll(rules, "'", ""))...)
			fixes++
		}
		return fixes
	}
	require.NotZero(w.t, asked(), "doctor asks for nothing")
	for asked() > 0 && w.t.Context().Err() == nil { // one that may not log in is told of the rest later
	}
	for _, admin := range admins {
		require.NoError(w.t, admin.ACLLogReset(w.t.Context()).Err())
	}
}

// private is a list of the application's own. What it holds is none of the daemon's
// business, which learns that when it looks for queues.
const private = "private"

// notRefused fails the test where the daemon lacked a right in Redis.
func (w *world) notRefused(client *redis.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	entries, err := client.ACLLog(ctx, 100).Result()
	if err != nil {
		return // the test has left the server down
	}
	for _, e := range entries {
		if e.Username == role && (e.Reason != "key" || e.Object != private) {
			assert.Fail(w.t, "Redis refused the daemon", "%s %s (%s)", e.Reason, e.Object, e.Context)
		}
	}
}
