package wiring

import (
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"strings"
)

// Secret is text that may hold a password, such as a connection URL. Whatever
// prints, logs or marshals it shows it redacted: postgres://user:***@host/db.
// Only Reveal gives the text.
type Secret struct {
	text string
	// whole: it is no URL, and all of it is secret.
	whole bool
}

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{text: text} }

// NewPassphrase wraps text of which nothing may be seen.
func NewPassphrase(text string) Secret { return Secret{text: text, whole: true} }

// Reveal is the text itself, for the client that connects with it.
func (s Secret) Reveal() string { return s.text }

// IsZero tells whether there is no text.
func (s Secret) IsZero() bool { return s.text == "" }

// String is the redacted text.
func (s Secret) String() string {
	if s.whole && s.text != "" {
		return mask
	}
	return redact(s.text)
}

// Format prints the redacted text under every verb.
func (s Secret) Format(f fmt.State, verb rune) {
	if verb == 'q' {
		_, _ = fmt.Fprintf(f, "%q", s.String())
		return
	}
	_, _ = fmt.Fprint(f, s.String())
}

// LogValue is the redacted text.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is the redacted text.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML is the redacted text.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// mask stands where a secret was.
const mask = "***"

// schemePattern matches the schemes that people give us; what stands before
// "://" may be a part of a password, too.
var schemePattern = regexp.MustCompile(`^(?i)(postgres(ql)?|redis[a-z]?|redis-?(sentinel|cluster)|sentinel|unix|valkeys?|` +
	`(py)?amqps?|sqs|memory|rpc|cache|db|file|filesystem|mongodb|mysql|mariadb|sqlite|oracle|mssql|https?)(\+[a-z0-9_]{1,16})?$`)

// redact hides what may be a password. Text in which it cannot tell the parts
// apart (a raw "?" or "#" in a password) is hidden from there on: rather too
// much than too little.
func redact(text string) string {
	if text == "" {
		return ""
	}
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || !schemePattern.MatchString(scheme) {
		return mask
	}
	scheme += "://"
	userinfo := ""
	if at := strings.LastIndex(rest, "@"); at >= 0 {
		user, _, hasPassword := strings.Cut(rest[:at], ":")
		switch {
		case strings.ContainsAny(rest[:at], "?#"), strings.Contains(user, "/"):
			return scheme + mask
		case !strings.HasPrefix(scheme, "postgres"):
			// redis://password@host is a usual mistake: the user may be the secret.
			userinfo = mask + "@"
		case hasPassword:
			userinfo = user + ":" + mask + "@"
		default:
			userinfo = user + "@"
		}
		rest = rest[at+1:]
	}
	rest, _, hasFragment := strings.Cut(rest, "#")
	place, query, hasQuery := strings.Cut(rest, "?")
	hosts, _, _ := strings.Cut(place, "/")
	for host := range strings.SplitSeq(hosts, ",") {
		// user:password without @host looks like host:port.
		address := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
		if i := strings.LastIndex(host, ":"); i >= 0 && !address && !digits(host[i+1:]) {
			return scheme + userinfo + mask
		}
	}
	out := scheme + userinfo + place
	if hasQuery {
		out += "?" + redactQuery(query)
	}
	if hasFragment {
		out += "#" + mask
	}
	return out
}

// digits tells whether text is a number without a sign.
func digits(text string) bool { return text != "" && strings.Trim(text, "0123456789") == "" }

// redactQuery hides the first parameter that sounds like a secret and all
// after it, since a raw "&" may be a part of that secret.
func redactQuery(query string) string {
	pairs := strings.Split(query, "&")
	for i, pair := range pairs {
		key, _, ok := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(key)
		switch {
		case !ok || err != nil:
			pairs[i] = mask
		case secretParameter(name):
			pairs[i] = key + "=" + mask
			return strings.Join(pairs[:i+1], "&")
		}
	}
	return strings.Join(pairs, "&")
}

// secretParameter tells whether a URL parameter of that name holds a secret.
func secretParameter(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"pass", "pwd", "secret", "token", "auth", "credential"} {
		if strings.Contains(name, part) && name != "require_auth" && name != "passfile" {
			return true
		}
	}
	return false
}
