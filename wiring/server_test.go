package wiring

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler/httpapi"
)

// orders pauses until it is told to stop.
type orders struct {
	httpapi.Orders
	begun chan struct{}
}

func (o orders) Pause(ctx context.Context, _ string) (any, error) {
	close(o.begun)
	<-ctx.Done()
	return nil, ctx.Err()
}

type reader struct{ httpapi.Reader }

func (reader) Status(context.Context) (any, error) {
	return map[string]bool{"redis_connected": true}, nil
}

// logged is a log that a test reads while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serve runs a server until the test ends, or stop.
func serve(t *testing.T, c *Config, services httpapi.Services) (addr string, log *logged, stop func()) {
	t.Helper()
	log = &logged{}
	c.HTTP.Addr = "127.0.0.1:0"
	s, err := newServer(c, httpapi.Options{
		Ready: func() (bool, string) { return true, "leader" }, Metrics: http.NotFoundHandler(),
		Services: services, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return s.Addr(), log, stop
}

func ask(t *testing.T, client *http.Client, method, url, token string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

func plainClient(t *testing.T) *http.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestServerWithoutTokens(t *testing.T) {
	addr, _, _ := serve(t, Default(), httpapi.Services{Reader: reader{}})
	client := plainClient(t)
	code, body := ask(t, client, "GET", "http://"+addr+"/api/v1/cache/status", "")
	require.Equal(t, 200, code, body)
	code, body = ask(t, client, "POST", "http://"+addr+"/api/v1/pause", "")
	require.Equal(t, 401, code, body)
	code, body = ask(t, client, "OPTIONS", "http://"+addr+"/api/v1/pause", "")
	require.Equal(t, 405, code, body)
}

func TestServerWithTokens(t *testing.T) {
	dir := t.TempDir()
	c := Default()
	c.HTTP.TokensFile = filepath.Join(dir, "tokens")
	c.HTTP.AuditFile = filepath.Join(dir, "none", "audit")
	c.HTTP.JWTSecret, c.HTTP.JWTIssuer = NewPassphrase(jwtSecret), "app"
	addr, log, _ := serve(t, c, httpapi.Services{Reader: reader{}, Orders: orders{begun: make(chan struct{})}})
	client := plainClient(t)
	status := "http://" + addr + "/api/v1/cache/status"
	code, _ := ask(t, client, "GET", status, "")
	require.Equal(t, 401, code)
	require.Contains(t, log.String(), "there is no tokens file")

	_, text, err := CreateToken(t.Context(), c.HTTP.TokensFile, "ops", []string{"admin"}, time.Hour)
	require.NoError(t, err)
	sandbox.AwaitTB(t, 5*time.Second, "the new token", func() error {
		if code, body := ask(t, client, "GET", status, text); code != 200 {
			return errors.New(body)
		}
		return nil
	})
	signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"iss": "app", "exp": time.Now().Add(time.Hour).Unix()}).SignedString([]byte(jwtSecret))
	require.NoError(t, err)
	code, body := ask(t, client, "GET", status, signed)
	require.Equal(t, 200, code, body)
	code, body = ask(t, client, "POST", "http://"+addr+"/api/v1/pause", signed)
	require.Equal(t, 403, code, body)

	// The audit log cannot be written: reads work, orders do not.
	code, body = ask(t, client, "POST", "http://"+addr+"/api/v1/pause", text)
	require.Equal(t, 503, code)
	require.Contains(t, body, "http.audit_file")
	require.Contains(t, log.String(), "the audit log cannot be written")
	for _, secret := range []string{text, signed, jwtSecret} {
		require.NotContains(t, log.String(), secret)
	}
}

func TestServerRefusesBrokenFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "broken")
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o600))
	for text, change := range map[string]func(*HTTPConfig){
		"http.tokens_file":            func(h *HTTPConfig) { h.TokensFile = file },
		"http.tls_cert, http.tls_key": func(h *HTTPConfig) { h.TLSCert, h.TLSKey = file, file },
	} {
		c := Default()
		c.HTTP.Addr = "127.0.0.1:0"
		change(&c.HTTP)
		_, err := newServer(c, httpapi.Options{Metrics: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler)})
		require.ErrorContains(t, err, text)
	}
}

// An order under way ends with the daemon, in time, and its end is written down.
func TestServerStopsWithAnOrderUnderWay(t *testing.T) {
	c, dir := Default(), t.TempDir()
	c.HTTP.TokensFile, c.HTTP.AuditFile = filepath.Join(dir, "tokens"), filepath.Join(dir, "audit")
	_, text, err := CreateToken(t.Context(), c.HTTP.TokensFile, "ops", []string{"admin"}, 0)
	require.NoError(t, err)
	o := orders{begun: make(chan struct{})}
	addr, _, stop := serve(t, c, httpapi.Services{Orders: o})
	client := plainClient(t)
	answered := make(chan string, 1)
	go func() {
		code, body := ask(t, client, "POST", "http://"+addr+"/api/v1/pause", text)
		answered <- fmt.Sprint(code, body)
	}()
	<-o.begun
	began := time.Now()
	stop()
	require.Less(t, time.Since(began), 2*time.Second)
	require.Contains(t, <-answered, "503")
	lines := auditLines(t, c.HTTP.AuditFile)
	require.Len(t, lines, 2)
	require.Equal(t, "failed", lines[1]["outcome"])
	require.Contains(t, lines[1]["who"], "token:ops/")
	require.Equal(t, "127.0.0.1", lines[1]["from"])
}

// certify writes a certificate with that serial number.
func certify(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
}

func TestServerTLS(t *testing.T) {
	dir, c := t.TempDir(), Default()
	c.HTTP.TLSCert, c.HTTP.TLSKey = filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	certify(t, c.HTTP.TLSCert, c.HTTP.TLSKey, 1)
	addr, log, _ := serve(t, c, httpapi.Services{Reader: reader{}})

	serial := func() int64 {
		conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(t.Context(), "tcp", addr) //nolint:gosec // the test made the certificate
		require.NoError(t, err)
		defer conn.Close()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	require.EqualValues(t, 1, serial())
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true} //nolint:gosec // as above
	t.Cleanup(transport.CloseIdleConnections)
	code, body := ask(t, &http.Client{Transport: transport}, "GET", "https://"+addr+"/api/v1/cache/status", "")
	require.Equal(t, 200, code, body)

	// Broken: the old one stays. Renewed: the new one, without a restart.
	require.NoError(t, os.WriteFile(c.HTTP.TLSCert, []byte("x"), 0o600))
	sandbox.AwaitTB(t, 5*time.Second, "the broken certificate to be noticed", func() error {
		require.EqualValues(t, 1, serial())
		if !bytes.Contains([]byte(log.String()), []byte("stays in force")) {
			return errors.New("not yet")
		}
		return nil
	})
	certify(t, c.HTTP.TLSCert, c.HTTP.TLSKey, 2)
	sandbox.AwaitTB(t, 5*time.Second, "the new certificate", func() error {
		if n := serial(); n != 2 {
			return fmt.Errorf("serial %d", n)
		}
		return nil
	})
}

func TestListenBeyondLoopback(t *testing.T) {
	for _, test := range []struct {
		http, problem string
	}{
		{`{addr: "0.0.0.0:8000"}`, "without TLS"},
		{`{addr: ":8000"}`, "without TLS"},
		{`{addr: "[::]:8000"}`, "without TLS"},
		{`{addr: "192.0.2.1:8000"}`, "without TLS"},
		{`{addr: "host.example:8000"}`, "without TLS"},
		{`{addr: "0.0.0.0:8000", insecure: true}`, ""},
		{`{addr: "0.0.0.0:8000", tls_cert: c, tls_key: k}`, ""},
		{`{addr: "0.0.0.0:8000", tls_cert: c}`, "http.tls_key: is not set"},
		{`{addr: "0.0.0.0:8000", tls_key: k}`, "http.tls_cert: is not set"},
		{`{jwt_secret: short}`, "has 5 bytes"},
		{`{jwt_secret: 1234567890123456789012345678901234}`, "must be text"},
		{`{jwt_issuer: app}`, "http.jwt_secret is not"},
		{`{jwt_audience: app}`, "http.jwt_secret is not"},
	} {
		_, err := loadText("http: "+test.http, database)
		if test.problem == "" {
			require.NoError(t, err, test.http)
		} else {
			require.ErrorContains(t, err, test.problem, test.http)
		}
	}
}
