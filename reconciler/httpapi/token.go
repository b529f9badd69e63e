package httpapi

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Scope is what a token may do.
type Scope string

// The scopes. A token has those that it lists; admin has all.
const (
	ScopeRead    Scope = "read"
	ScopeCleanup Scope = "cleanup"
	ScopePurge   Scope = "purge"
	ScopeAdmin   Scope = "admin"
)

// public routes need no token.
const public Scope = "public"

// Scopes are all of them.
var Scopes = []Scope{ScopeRead, ScopeCleanup, ScopePurge, ScopeAdmin}

// ParseScopes reads scope names; each must exist, and there must be one.
func ParseScopes(names []string) ([]Scope, error) {
	var out []Scope
	for _, name := range names {
		scope := Scope(strings.TrimSpace(name))
		if !slices.Contains(Scopes, scope) {
			return nil, fmt.Errorf("%q is not a scope; write any of read, cleanup, purge, admin", name)
		}
		if !slices.Contains(out, scope) {
			out = append(out, scope)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no scope is given; write any of read, cleanup, purge, admin")
	}
	return out, nil
}

// A token is owt_<id>_<secret>_<crc>: the id finds it, the secret proves it, and the
// checksum (CRC-32 of what stands before) tells a mistyped token from a wrong one.
const tokenPrefix = "owt_"

// Token is a static token as the tokens file has it: a digest, never the token.
type Token struct {
	ID     string  `json:"id"`
	Name   string  `json:"name"`
	Scopes []Scope `json:"scopes"`
	// Created, and Expires; zero for never.
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	// Digest is the SHA-256 of the whole token.
	Digest [sha256.Size]byte `json:"-"`
}

var (
	idPattern   = regexp.MustCompile(`^[a-z0-9]{4,32}$`)
	namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)
)

// NewToken makes a token. The text is what its holder sends; it is not kept.
func NewToken(name string, scopes []Scope, created, expires time.Time) (Token, string, error) {
	if !namePattern.MatchString(name) {
		return Token{}, "", fmt.Errorf("%q cannot be a token's name; use 1 to 64 letters, digits and . _ @ - that begin with a letter or digit", name)
	}
	id := strings.ToLower(rand.Text()[:8])
	text := tokenPrefix + id + "_" + strings.ToLower(rand.Text()+rand.Text()) // 260 random bits
	text += "_" + checksum(text)
	t := Token{ID: id, Name: name, Scopes: scopes, Created: created.UTC().Truncate(time.Second), Digest: sha256.Sum256([]byte(text))}
	if !expires.IsZero() {
		t.Expires = expires.UTC().Truncate(time.Second)
	}
	return t, text, nil
}

func checksum(text string) string { return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(text))) }

// tokenID is the id in a token whose form and checksum are right.
func tokenID(text string) (string, bool) {
	at := strings.LastIndexByte(text, '_')
	if at < 0 || checksum(text[:at]) != text[at+1:] {
		return "", false
	}
	id, _, ok := strings.Cut(strings.TrimPrefix(text, tokenPrefix), "_")
	return id, ok && id != ""
}

// is tells in constant time whether text is the token.
func (t Token) is(text string) bool {
	digest := sha256.Sum256([]byte(text))
	return subtle.ConstantTimeCompare(digest[:], t.Digest[:]) == 1
}

// expired tells whether the token has ended.
func (t Token) expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

// Line is the token in the tokens file.
func (t Token) Line() string {
	expires := "never"
	if !t.Expires.IsZero() {
		expires = t.Expires.Format(time.RFC3339)
	}
	scopes := make([]string, len(t.Scopes))
	for i, s := range t.Scopes {
		scopes[i] = string(s)
	}
	return fmt.Sprintf("id=%s name=%s scopes=%s created=%s expires=%s sha256=%s",
		t.ID, t.Name, strings.Join(scopes, ","), t.Created.Format(time.RFC3339), expires, hex.EncodeToString(t.Digest[:]))
}

// ParseTokens reads a tokens file: a token a line (Line), empty lines and comments
// with #. Errors do not repeat what a line holds: it may be a token in the wrong place.
func ParseTokens(text []byte) ([]Token, error) {
	var tokens []Token
	n := 0
	for line := range bytes.Lines(text) {
		n++
		content := strings.TrimSpace(string(line))
		if content == "" || strings.HasPrefix(content, "#") {
			continue
		}
		t, err := parseLine(content)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if slices.ContainsFunc(tokens, func(o Token) bool { return o.ID == t.ID }) {
			return nil, fmt.Errorf("line %d: there is a token with this id already", n)
		}
		tokens = append(tokens, t)
	}
	return tokens, nil
}

func parseLine(line string) (Token, error) {
	values := map[string]string{}
	for _, field := range strings.Fields(line) {
		key, value, ok := strings.Cut(field, "=")
		if _, again := values[key]; !ok || again || !slices.Contains(lineKeys, key) {
			return Token{}, fmt.Errorf("is not id=… name=… scopes=… created=… expires=… sha256=…, each once")
		}
		values[key] = value
	}
	for _, key := range lineKeys {
		if values[key] == "" {
			return Token{}, fmt.Errorf("%s is missing", key)
		}
	}
	t := Token{ID: values["id"], Name: values["name"]}
	if !idPattern.MatchString(t.ID) {
		return Token{}, fmt.Errorf("id is not one: 4 to 32 lower-case letters and digits")
	}
	if !namePattern.MatchString(t.Name) {
		return Token{}, fmt.Errorf("name is not one: 1 to 64 letters, digits and . _ @ -")
	}
	var err error
	if t.Scopes, err = ParseScopes(strings.Split(values["scopes"], ",")); err != nil {
		return Token{}, fmt.Errorf("scopes holds what is not a scope; write any of read,cleanup,purge,admin")
	}
	if t.Created, err = time.Parse(time.RFC3339, values["created"]); err != nil {
		return Token{}, fmt.Errorf("created is not a time such as 2026-01-31T12:00:00Z")
	}
	if values["expires"] != "never" {
		if t.Expires, err = time.Parse(time.RFC3339, values["expires"]); err != nil {
			return Token{}, fmt.Errorf("expires is neither never nor a time such as 2026-01-31T12:00:00Z")
		}
	}
	digest, err := hex.DecodeString(values["sha256"])
	if err != nil || len(digest) != sha256.Size {
		return Token{}, fmt.Errorf("sha256 is not 64 hexadecimal digits")
	}
	copy(t.Digest[:], digest)
	return t, nil
}

var lineKeys = []string{"id", "name", "scopes", "created", "expires", "sha256"}
