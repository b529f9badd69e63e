package httpapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Auth says who may call. With neither Tokens nor JWT only reads work, and only from
// this machine.
type Auth struct {
	// Tokens are the static tokens; nil where no tokens file is configured.
	Tokens *Tokens
	// JWT are the application's own; nil where no secret is configured.
	JWT *JWT
	// Loopback: the listener cannot be reached from other machines.
	Loopback bool
}

// Principal is who calls.
type Principal struct {
	// Name is token:NAME/ID, jwt:SUBJECT or anonymous.
	Name   string
	Scopes []Scope
}

// Has tells whether the principal may do what needs the scope.
func (p Principal) Has(s Scope) bool {
	return slices.Contains(p.Scopes, s) || slices.Contains(p.Scopes, ScopeAdmin)
}

// anonymous is who calls from this machine where no tokens are configured.
var anonymous = Principal{Name: "anonymous", Scopes: []Scope{ScopeRead}}

type callerKey struct{}

// caller is who a request is of, and from where.
type caller struct {
	Principal
	from string
}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// identify is who sent the request. The error is fit for the sender.
func (a Auth) identify(r *http.Request, from netip.Addr, now time.Time) (Principal, error) {
	headers := r.Header.Values("Authorization")
	if a.Tokens == nil && a.JWT == nil {
		return a.withoutTokens(r, headers, from)
	}
	if len(headers) == 0 {
		return Principal{}, errors.New("a token is needed: send the header Authorization: Bearer TOKEN")
	}
	scheme, text, ok := strings.Cut(headers[0], " ")
	if text = strings.TrimSpace(text); !ok || text == "" || len(headers) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return Principal{}, errors.New("the header Authorization must be there once, as Bearer TOKEN")
	}
	switch {
	case strings.HasPrefix(text, tokenPrefix) && a.Tokens != nil:
		return a.static(text, now)
	case a.JWT != nil:
		return a.JWT.verify(text)
	}
	return Principal{}, errors.New("the token is none of ours: they begin with owt_")
}

func (a Auth) static(text string, now time.Time) (Principal, error) {
	id, ok := tokenID(text)
	if !ok {
		return Principal{}, errors.New("the token is not whole: its checksum is wrong")
	}
	t, ok := a.Tokens.Get()[id]
	if !ok || !t.is(text) {
		return Principal{}, errors.New("the token is not known, or was revoked")
	}
	if t.expired(now) {
		return Principal{}, errors.New("the token has expired, at " + t.Expires.Format(time.RFC3339))
	}
	return Principal{Name: "token:" + t.Name + "/" + t.ID, Scopes: t.Scopes}, nil
}

// withoutTokens lets this machine read. A browser on it must not be made to read for
// a foreign page: the page's host name, if it leads here, is not one of ours.
func (a Auth) withoutTokens(r *http.Request, headers []string, from netip.Addr) (Principal, error) {
	site := r.Header.Get("Sec-Fetch-Site")
	switch {
	case len(headers) > 0:
		return Principal{}, errors.New("no tokens are configured, so that yours cannot be verified: set http.tokens_file or http.jwt_secret")
	case !a.Loopback || !from.Unmap().IsLoopback():
		return Principal{}, errors.New("no tokens are configured, so that only reads from this machine work: set http.tokens_file or http.jwt_secret")
	case !localHost(r.Host) || site != "" && site != "none" && site != "same-origin":
		return Principal{}, errors.New("no tokens are configured, so that only reads by the name localhost or an IP address work, not from other web pages")
	}
	return anonymous, nil
}

// localHost tells whether a Host header is an IP address or localhost.
func localHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	_, err := netip.ParseAddr(host)
	return err == nil || strings.EqualFold(host, "localhost")
}

// peer is the address of the other end of the connection; what a proxy says in headers
// is not believed.
func peer(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // not loopback
	}
	return at.Addr()
}
