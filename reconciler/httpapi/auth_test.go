package httpapi

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const (
	statusPath = "/api/v1/cache/status"
	pausePath  = "/api/v1/pause"
	fullPath   = "/api/v1/cache/cleanup/full"
)

func TestJWT(t *testing.T) {
	w := newWorld(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	good := func(change func(jwt.MapClaims)) jwt.MapClaims {
		c := jwt.MapClaims{"sub": "alice", "iss": "app", "aud": []string{"x", "orphanwatch"}, "exp": w.now.Add(time.Minute).Unix(), "scope": "openid cleanup read"}
		if change != nil {
			change(c)
		}
		return c
	}
	set := func(name string, value any) jwt.MapClaims { return good(func(c jwt.MapClaims) { c[name] = value }) }
	without := func(name string) jwt.MapClaims { return good(func(c jwt.MapClaims) { delete(c, name) }) }
	sign := func(method jwt.SigningMethod, key any, c jwt.Claims) string {
		text, err := jwt.NewWithClaims(method, c).SignedString(key)
		require.NoError(t, err)
		return text
	}
	secret := []byte(jwtTestSecret)
	hs := func(c jwt.Claims) string { return sign(jwt.SigningMethodHS256, secret, c) }
	critical := jwt.NewWithClaims(jwt.SigningMethodHS256, good(nil))
	critical.Header["crit"] = []string{"b64"}
	criticalText, err := critical.SignedString(secret)
	require.NoError(t, err)
	whole := hs(good(nil))
	head, rest, _ := strings.Cut(whole, ".")

	for name, test := range map[string]struct {
		token, why string
	}{
		"none":           {sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good(nil)), "HS256"},
		"RS256":          {sign(jwt.SigningMethodRS256, key, good(nil)), "HS256"},
		"HS512":          {sign(jwt.SigningMethodHS512, secret, good(nil)), "HS256"},
		"other secret":   {sign(jwt.SigningMethodHS256, []byte("x"+jwtTestSecret), good(nil)), "HS256"},
		"empty secret":   {sign(jwt.SigningMethodHS256, []byte{}, good(nil)), "HS256"},
		"no signature":   {whole[:strings.LastIndex(whole, ".")+1], "HS256"},
		"other header":   {strings.TrimRight("eyJhbGciOiJub25lIn0", "=") + "." + rest, "HS256"},
		"critical":       {criticalText, "HS256"},
		"two parts":      {head, "HS256"},
		"wrong iss":      {hs(set("iss", "other")), "iss"},
		"no iss":         {hs(without("iss")), "required"},
		"wrong aud":      {hs(set("aud", "other")), "aud"},
		"no aud":         {hs(without("aud")), "required"},
		"no exp":         {hs(without("exp")), "exp"},
		"expired":        {hs(set("exp", w.now.Add(-time.Second).Unix())), "expired"},
		"exp in words":   {hs(set("exp", "tomorrow")), "HS256"},
		"not yet":        {hs(set("nbf", w.now.Add(time.Minute).Unix())), "nbf"},
		"scope as list":  {hs(set("scope", []string{"admin"})), "HS256"},
		"static in name": {"owt_" + whole, "not whole"},
	} {
		got := w.send(http.MethodGet, statusPath, test.token, "")
		require.Equal(t, 401, got.code, "%s: %s", name, got.text)
		got.want(t, 401, test.why)
		require.Contains(t, got.header.Get("WWW-Authenticate"), "invalid_token")
	}
	w.send(http.MethodGet, statusPath, whole, "").want(t, 200)
	w.send(http.MethodPost, fullPath, whole, "").want(t, 200)
	w.send(http.MethodPost, pausePath, whole, "").want(t, 403, "admin", "jwt:alice")
	w.send(http.MethodPost, pausePath, hs(set("scope", "admin")), "").want(t, 200)
	require.Contains(t, strings.Join(w.services.took(), "\n"), "pause jwt:alice")
	// Without a scope claim, http.jwt_scopes; with one that is empty, none.
	w.send(http.MethodGet, statusPath, hs(without("scope")), "").want(t, 200)
	w.send(http.MethodPost, fullPath, hs(without("scope")), "").want(t, 403, "cleanup")
	w.send(http.MethodGet, statusPath, hs(set("scope", "openid")), "").want(t, 403, "read")
	require.NotContains(t, w.log.String(), jwtTestSecret)
	require.NotContains(t, w.log.String(), rest)
}

func TestAuthorizationHeader(t *testing.T) {
	w := newWorld(t)
	ask := func(values ...string) reply {
		r := httptest.NewRequest(http.MethodGet, statusPath, nil)
		r.Header["Authorization"] = values
		return w.do(r)
	}
	token := w.tokens["read"]
	ask("Bearer "+token).want(t, 200)
	ask("bearer   "+token).want(t, 200)
	for _, bad := range [][]string{{token}, {"Bearer"}, {"Bearer "}, {"Basic " + token}, {"Bearer " + token, "Bearer " + token}, {"Bearer " + token + " x"}, {"Bearer owt_"}, {"Bearer owt__"}} {
		ask(bad...).want(t, 401)
	}
	// Nowhere else is a token looked for.
	w.send(http.MethodGet, statusPath+"?token="+token, "", "").want(t, 401)
}

// Who knows an id, which is no secret, and can compute a checksum, is not in.
func TestForgedToken(t *testing.T) {
	w := newWorld(t)
	parts := strings.Split(w.tokens["admin"], "_")
	forged := "owt_" + parts[1] + "_" + strings.Repeat("a", len(parts[2]))
	forged += "_" + checksum(forged)
	_, ok := tokenID(forged)
	require.True(t, ok)
	w.send(http.MethodGet, statusPath, forged, "").want(t, 401, "not known")
	w.send(http.MethodPost, pausePath, forged, "").want(t, 401, "not known")
	require.Empty(t, w.services.took())
}

func TestTokensFileIsReadAgain(t *testing.T) {
	w := newWorld(t)
	status := func(token string) int { return w.send(http.MethodGet, statusPath, token, "").code }
	later := func() { w.now = w.now.Add(checkEvery) }
	old, err := os.ReadFile(w.file)
	require.NoError(t, err)
	fresh, text, err := NewToken("fresh", []Scope{ScopeRead}, w.now, w.now.Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, 401, status(text))

	// A second token: both are in force.
	require.NoError(t, os.WriteFile(w.file, append(old, fresh.Line()+"\n"...), 0o600))
	later()
	require.Equal(t, 200, status(text))
	require.Equal(t, 200, status("read"))

	// Broken in any way: what it said before stays, and that is logged once.
	for _, broken := range []string{"id=x", string(old) + text, string(old[:len(old)-3])} {
		require.NoError(t, os.WriteFile(w.file, []byte(broken), 0o600))
		later()
		require.Equal(t, 200, status(text))
		later()
		require.Equal(t, 200, status(text))
	}
	require.Equal(t, 3, strings.Count(w.log.String(), "stays in force"))
	require.NoError(t, os.WriteFile(w.file, old, 0o600))
	require.NoError(t, os.Chmod(w.file, 0o666))
	later()
	require.Equal(t, 200, status(text))
	require.Contains(t, w.log.String(), "chmod 600 "+w.file)

	// Mended, and without the second token: it is revoked.
	require.NoError(t, os.Chmod(w.file, 0o640))
	later()
	require.Equal(t, 401, status(text))
	require.Equal(t, 200, status("read"))
	// Gone: nobody gets in.
	require.NoError(t, os.Remove(w.file))
	later()
	require.Equal(t, 401, status("read"))
	// An expiry needs no change of the file.
	require.NoError(t, os.WriteFile(w.file, []byte(fresh.Line()), 0o600))
	later()
	require.Equal(t, 200, status(text))
	w.now = w.now.Add(time.Hour)
	w.send(http.MethodGet, statusPath, text, "").want(t, 401, "expired")
	require.NotContains(t, w.log.String(), text, "a token in the wrong place is not repeated")
	require.NotContains(t, w.log.String(), text[len(text)-8:])
}

func TestTokenLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scopes := rapid.SliceOfNDistinct(rapid.SampledFrom(Scopes), 1, 4, rapid.ID[Scope]).Draw(t, "scopes")
		created := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "created"), 0).UTC()
		expires := time.Time{}
		if rapid.Bool().Draw(t, "expires") {
			expires = created.Add(time.Hour)
		}
		want, text, err := NewToken(rapid.StringMatching(namePattern.String()).Draw(t, "name"), scopes, created, expires)
		require.NoError(t, err)
		got, err := ParseTokens([]byte("# a comment\n\n" + want.Line()))
		require.NoError(t, err)
		require.Equal(t, []Token{want}, got)
		id, ok := tokenID(text)
		require.True(t, ok)
		require.Equal(t, want.ID, id)
		require.True(t, want.is(text))
		// Any other character is found out, nearly always by the checksum and else by the digest.
		at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		wrong := text[:at] + string(text[at]^1) + text[at+1:]
		require.False(t, want.is(wrong))
	})
}

func FuzzParseTokens(f *testing.F) {
	f.Add([]byte("id=abcd name=a scopes=read created=2026-01-31T12:00:00Z expires=never sha256=" + strings.Repeat("0", 64)))
	f.Fuzz(func(t *testing.T, text []byte) {
		tokens, err := ParseTokens(text)
		if err != nil {
			return
		}
		for _, token := range tokens {
			again, err := ParseTokens([]byte(token.Line()))
			require.NoError(t, err)
			require.Equal(t, token.Line(), again[0].Line())
		}
	})
}

// Without tokens this machine may read, and nobody else anything.
func TestWithoutTokens(t *testing.T) {
	w := newWorld(t)
	w.o.Auth = Auth{Loopback: true}
	ask := func(method, path, from, host string, headers ...string) reply {
		r := httptest.NewRequest(method, path, nil)
		r.RemoteAddr, r.Host = from, host
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		return w.do(r)
	}
	for _, from := range []string{"127.0.0.1:5", "127.8.8.8:5", "[::1]:5", "[::ffff:127.0.0.1]:5"} {
		for _, host := range []string{"localhost:8000", "127.0.0.1:8000", "[::1]:8000", "127.0.0.1", "LOCALHOST"} {
			ask(http.MethodGet, statusPath, from, host).want(t, 200)
		}
	}
	for _, host := range []string{"evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""} {
		ask(http.MethodGet, statusPath, "127.0.0.1:5", host).want(t, 401, "by the name localhost")
	}
	for _, from := range []string{"192.0.2.7:5", "[2001:db8::1]:5", "@", "", "10.0.0.1:5"} {
		ask(http.MethodGet, statusPath, from, "localhost").want(t, 401, "from this machine")
		ask(http.MethodGet, statusPath, from, "localhost", "X-Forwarded-For", "127.0.0.1", "Forwarded", "for=127.0.0.1", "X-Real-IP", "127.0.0.1").want(t, 401)
	}
	ask(http.MethodGet, statusPath, "127.0.0.1:5", "localhost", "Sec-Fetch-Site", "cross-site").want(t, 401, "web pages")
	got := ask(http.MethodGet, statusPath, "127.0.0.1:5", "localhost", "Origin", "http://evil.example")
	require.Empty(t, got.header.Get("Access-Control-Allow-Origin"))
	ask(http.MethodGet, statusPath, "127.0.0.1:5", "localhost", "Authorization", "Bearer "+w.tokens["admin"]).want(t, 401, "no tokens are configured")
	for route, scope := range design {
		if method, path, _ := strings.Cut(route, " "); scope != public && scope != ScopeRead {
			ask(method, path, "127.0.0.1:5", "localhost").want(t, 401, "http.tokens_file")
		}
	}
	w.services.took()
	// Also from this machine, where others can reach the listener: a proxy would be it.
	w.o.Auth.Loopback = false
	ask(http.MethodGet, statusPath, "127.0.0.1:5", "localhost").want(t, 401)
	require.Empty(t, w.services.took())
}

func TestFailuresAreLimited(t *testing.T) {
	w := newWorld(t)
	ask := func(from, token string) reply {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodGet, statusPath, nil)
		r.RemoteAddr = from
		r.Header.Set("Authorization", "Bearer "+token)
		return w.do(r)
	}
	for range failBurst {
		ask("192.0.2.7:1", "x").want(t, 401)
	}
	got := ask("192.0.2.7:2", "x")
	got.want(t, 429, "too many", "6 s")
	require.Equal(t, "6", got.header.Get("Retry-After"))
	require.Equal(t, failBurst, strings.Count(w.log.String(), "\n"), "nor is the log flooded")
	ask("192.0.2.7:3", w.tokens["read"]).want(t, 200) // nobody can lock out who has a token
	ask("192.0.2.8:1", "x").want(t, 401)
	w.now = w.now.Add(failEvery)
	ask("192.0.2.7:1", "x").want(t, 401)
	ask("192.0.2.7:1", "x").want(t, 429)
	// Of IPv6 it is the customer's network.
	for range failBurst {
		ask("[2001:db8::1]:1", "x").want(t, 401)
	}
	ask("[2001:db8::2]:1", "x").want(t, 429)
	ask("[2001:db8:0:1::2]:1", "x").want(t, 401)
	// An IPv4 address is one host, however it is written.
	ask("[::ffff:192.0.2.7]:1", "x").want(t, 429)
	ask("[::ffff:192.0.2.9]:1", "x").want(t, 401)
}

func TestCallsAreLimited(t *testing.T) {
	w := newWorld(t)
	for range ordersBurst {
		w.send(http.MethodPost, pausePath, "admin", "").want(t, 200)
	}
	got := w.send(http.MethodPost, pausePath, "admin", "")
	got.want(t, 429, "token:admin/")
	require.Equal(t, "1", got.header.Get("Retry-After"))
	require.Len(t, w.services.took(), ordersBurst)
	w.send(http.MethodPost, fullPath, "cleanup", "").want(t, 200) // another caller
	w.send(http.MethodGet, statusPath, "admin", "").want(t, 200)  // other calls
	w.send(http.MethodGet, "/api/v1/tasks/a", "admin", "").want(t, 200)
	w.now = w.now.Add(time.Second)
	for range ordersPerSecond {
		w.send(http.MethodPost, pausePath, "admin", "").want(t, 200)
	}
	w.send(http.MethodPost, pausePath, "admin", "").want(t, 429)
	w.send(http.MethodPost, pausePath, "read", "").want(t, 403)
}

func TestLimitsAreBounded(t *testing.T) {
	l, now := newLimits(1, 1), time.Now()
	for i := range 5 * maxLimiters {
		_, ok := l.take(strings.Repeat("x", i%7)+string(rune(i)), now)
		require.True(t, ok)
	}
	require.LessOrEqual(t, len(l.young)+len(l.old), 2*maxLimiters)
}
