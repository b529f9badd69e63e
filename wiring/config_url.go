package wiring

import (
	"net/url"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

const (
	postgresForm = "write postgres://user:password@host:5432/database"
	redisForm    = "write redis://[user:password@]host:6379/0 or unix:///path?db=0"
	encodeHint   = "characters such as @ : / ? # % in a password must be percent-encoded"
)

// sslModes are the values of sslmode; asyncpg's ssl= has the same.
var sslModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

// foreignPostgres are parameters of SQLAlchemy's drivers and of libpq that
// mean nothing to pgx, which would send them to the server as settings.
var foreignPostgres = []string{
	"prepared_statement_cache_size", "prepared_statement_name_func", "statement_cache_size", "command_timeout",
	"async_fallback", "timeout", "direct_tls", "client_encoding", "keepalives", "keepalives_idle", "keepalives_interval",
	"keepalives_count", "tcp_user_timeout", "gssencmode", "sslcompression", "load_balance_hosts",
}

// foreignRedis are parameters of redis-py, kombu and Celery that mean nothing
// to go-redis, which would refuse them.
var foreignRedis = []string{
	"socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval", "retry_on_timeout",
	"retry_on_error", "max_connections", "visibility_timeout", "encoding", "decode_responses", "timeout",
}

// normalizePostgres turns a URL as SQLAlchemy or libpq write it into one that
// pgx reads. The fault never repeats the URL: it may hold a password.
func normalizePostgres(text string) (string, *fault) {
	text = strings.TrimSpace(text)
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return "", &fault{"is not a URL", postgresForm}
	}
	base, _, _ := strings.Cut(strings.ToLower(scheme), "+")
	if base != "postgres" && base != "postgresql" {
		return "", &fault{"is not a PostgreSQL URL" + foundScheme(scheme), postgresForm}
	}
	u, bad := parseURL("postgres", rest, postgresForm)
	if bad != nil {
		return "", bad
	}
	sslMode := u.Query().Get("sslmode")
	rest, bad = rewriteQuery(rest, func(key, value string) (string, string, *fault) {
		switch {
		case slices.Contains(foreignPostgres, key):
			return "", "", nil
		case key == "ssl" && sslMode != "":
			return "", "", &fault{"has both ssl and sslmode", "leave out ssl"}
		case key == "ssl" || key == "sslmode":
			if !slices.Contains(sslModes, value) {
				return "", "", &fault{key + " has a value that is not known", "write sslmode=" + orList(sslModes)}
			}
			return "sslmode", value, nil
		}
		return key, value, nil
	})
	return "postgres://" + rest, bad
}

// normalizeRedis turns a URL as redis-py, kombu or Celery write it into one
// that go-redis reads. The fault never repeats the URL.
func normalizeRedis(text string) (string, *fault) {
	text = strings.TrimSpace(text)
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return "", &fault{"is not a URL", redisForm}
	}
	scheme = strings.ToLower(scheme)
	switch {
	case strings.Contains(scheme, "sentinel"):
		return "", &fault{"not supported yet: Redis Sentinel", "give the address of the primary: redis://host:6379/0"}
	case strings.Contains(scheme, "cluster"):
		return "", &fault{"not supported: Redis Cluster (Celery does not run on it)", redisForm}
	case scheme == "rediss":
		return "", &fault{"not supported yet: TLS to Redis (rediss://)", "use redis:// over a trusted network or a local TLS proxy"}
	case scheme == "redis+socket" || scheme == "unix":
		scheme = "unix"
	case scheme != "redis":
		return "", &fault{"is not a Redis URL" + foundScheme(scheme) + ": orphanwatch looks after brokers and result backends in Redis only", redisForm}
	}
	if strings.Contains(rest, ";") {
		return "", &fault{"holds several URLs, separated by semicolons", "give the one that is in use"}
	}
	u, bad := parseURL(scheme, rest, redisForm)
	if bad != nil {
		return "", bad
	}
	if scheme == "unix" && (u.Host != "" || len(u.Path) < 2) {
		return "", &fault{"names no socket", "write unix:///path/of/redis.sock?db=0 (three slashes)"}
	}
	if db := strings.Trim(u.Path, "/"); scheme == "redis" && strings.Trim(db, "0123456789") != "" {
		return "", &fault{"the database after the slash is not a number", redisForm}
	}
	rest, bad = rewriteQuery(rest, func(key, value string) (string, string, *fault) {
		switch {
		case slices.Contains(foreignRedis, key):
			return "", "", nil
		case key == "virtual_host":
			key, value = "db", strings.Trim(value, "/")
		}
		if key == "db" && (value == "" || strings.Trim(value, "0123456789") != "") {
			return "", "", &fault{"the database is not a number", redisForm}
		}
		return key, value, nil
	})
	if bad != nil {
		return "", bad
	}
	text = scheme + "://" + rest
	if _, err := redis.ParseURL(text); err != nil {
		return "", &fault{"is not a URL that the Redis client understands", redisForm + "; leave out other parameters"}
	}
	return text, nil
}

// foundScheme shows the scheme that was found, if it can be nothing else.
func foundScheme(scheme string) string {
	if schemePattern.MatchString(scheme) {
		return " (found " + scheme + "://)"
	}
	return ""
}

// parseURL parses what stands after the scheme.
func parseURL(scheme, rest, form string) (*url.URL, *fault) {
	u, err := url.Parse(scheme + "://" + rest)
	// A "#", or an "@" behind a "?", comes from a password that is not encoded.
	if err != nil || strings.Contains(rest, "#") || strings.Contains(u.RawQuery, "@") {
		return nil, &fault{"is not a valid URL", form + "; " + encodeHint}
	}
	if _, err := url.ParseQuery(u.RawQuery); err != nil {
		return nil, &fault{"is not a valid URL (its parameters cannot be read)", form + "; " + encodeHint}
	}
	return u, nil
}

// rewriteQuery calls each with every parameter, decoded, and puts what it gives
// in its place; an empty key leaves the parameter out. What each leaves alone
// keeps its spelling.
func rewriteQuery(rest string, each func(key, value string) (string, string, *fault)) (string, *fault) {
	place, query, ok := strings.Cut(rest, "?")
	if !ok {
		return rest, nil
	}
	var kept []string
	for _, pair := range strings.Split(query, "&") {
		if pair == "" {
			continue
		}
		rawKey, rawValue, _ := strings.Cut(pair, "=")
		key, _ := url.QueryUnescape(rawKey) // parseURL has read them all
		value, _ := url.QueryUnescape(rawValue)
		newKey, newValue, bad := each(key, value)
		switch {
		case bad != nil:
			return "", bad
		case newKey == "":
		case newKey == key && newValue == value:
			kept = append(kept, pair)
		default:
			kept = append(kept, url.QueryEscape(newKey)+"="+url.QueryEscape(newValue))
		}
	}
	if len(kept) == 0 {
		return place, nil
	}
	return place + "?" + strings.Join(kept, "&"), nil
}
