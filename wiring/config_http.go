package wiring

import (
	"fmt"
	"net"
	"strconv"

	"github.com/orphanwatch/orphanwatch/reconciler/httpapi"
)

func (l *loader) validateHTTP() {
	l.validateListener()
	l.validateJWT()
}

func (l *loader) validateListener() {
	h := l.config.HTTP
	switch {
	case h.TLSCert != "" && h.TLSKey == "":
		l.refuse("http.tls_key", "is not set, but http.tls_cert is", "set both to PEM files, or neither")
	case h.TLSKey != "" && h.TLSCert == "":
		l.refuse("http.tls_cert", "is not set, but http.tls_key is", "set both to PEM files, or neither")
	}
	host, port, err := net.SplitHostPort(h.Addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		l.refuse("http.addr", quote(h.Addr)+" is not host:port", "write 127.0.0.1:8000")
		return
	}
	ip := net.ParseIP(host)
	loopback := host == "localhost" || (ip != nil && ip.IsLoopback())
	if !loopback && h.TLSCert == "" && h.TLSKey == "" && !h.Insecure {
		l.refuse("http.addr", quote(h.Addr)+" is reachable from other machines, without TLS",
			"listen on 127.0.0.1, or set http.tls_cert and http.tls_key, or set http.insecure: true (ORPHANWATCH_HTTP_INSECURE=true) where the network is trusted")
	}
}

// minJWTSecret is how many bytes RFC 7518, 3.2 wants of an HS256 secret.
const minJWTSecret = 32

func (l *loader) validateJWT() {
	h := &l.config.HTTP
	const newSecret = "write at least 32 random bytes, such as the output of: openssl rand -base64 48"
	switch secret := h.JWTSecret.Reveal(); {
	case l.bad["http.jwt_secret"]:
	case secret == "":
		for _, set := range []struct{ path, value string }{{"http.jwt_issuer", h.JWTIssuer}, {"http.jwt_audience", h.JWTAudience}} {
			if set.value != "" {
				l.refuse(set.path, "is set, but http.jwt_secret is not, so that no JWT is accepted", "set ORPHANWATCH_HTTP_JWT_SECRET_FILE, or remove it")
			}
		}
	case secret == mask:
		l.refuse("http.jwt_secret", "is hidden, as config show prints it", "write the secret itself, or set ORPHANWATCH_HTTP_JWT_SECRET_FILE")
	case len(secret) < minJWTSecret:
		l.refuse("http.jwt_secret", fmt.Sprintf("has %d bytes, which can be guessed", len(secret)), newSecret)
	default:
		h.JWTSecret = NewPassphrase(secret)
	}
	if _, err := httpapi.ParseScopes(h.JWTScopes); err != nil && !l.bad["http.jwt_scopes"] {
		l.refuse("http.jwt_scopes", "is not a list of scopes", "write any of read, cleanup, purge, admin")
	}
}
