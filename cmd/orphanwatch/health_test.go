package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// A daemon is asked where it listens, with TLS or without, and as a leader or a standby.
// One that is not ready, or not there, is exit code 5, with the reason.
func TestHealth(t *testing.T) {
	s := newSite(t, sandbox.NewExampleDatabase(t))
	s = s.with("ORPHANWATCH_HTTP_ADDR=" + sandbox.FreeAddr(t))
	s.expect(exitUnreachable, []string{"health"}, "does not answer", "refused")
	s.daemon()
	s.expect(exitOK, []string{"health"}, "ok: leader")
	s.expect(exitOK, []string{"health", "--live"}, "ok: alive")
	var r healthReport
	s.decode(exitOK, &r, "health")
	if !r.OK || r.Status != 200 || r.Reason != "leader" {
		t.Errorf("%+v", r)
	}

	dir := t.TempDir()
	certify(t, dir)
	addr := sandbox.FreeAddr(t)
	standby := s.with("ORPHANWATCH_HTTP_ADDR="+addr, "ORPHANWATCH_HTTP_TLS_CERT="+filepath.Join(dir, "crt"), "ORPHANWATCH_HTTP_TLS_KEY="+filepath.Join(dir, "key"))
	standby.daemon()
	sandbox.AwaitTB(t, 10*time.Second, "the other copy to stand by", func() error {
		code, out, told := standby.run("health")
		if code != exitOK || !contains(out, "ok: standby: ", " leads") {
			return errors.New(out + told)
		}
		return nil
	})
	// Its name is another, which matters only where others would ask.
	s.expect(exitUnreachable, []string{"health", "--url", "https://" + addr}, "certificate")
	s.expect(exitUnreachable, []string{"health", "--url", "http://" + addr}, "answers 400")

	if err := s.redis.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	sandbox.AwaitTB(t, 15*time.Second, "it not to be ready", func() error {
		code, out, told := s.run("health")
		if code != exitUnreachable || !contains(told, "answers 503: ", "redis is not subscribed") {
			return errors.New(out + told)
		}
		return nil
	})
	s.expect(exitOK, []string{"health", "--live"})
	s.decode(exitUnreachable, &r, "health")
	if r.OK || r.Status != 503 {
		t.Errorf("%+v", r)
	}
}

// All addresses are asked at loopback; what does not answer is given up in time.
func TestHealthOfEveryAddress(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":0") // and accepts nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	s := &site{tb: t, environ: []string{"DATABASE_URL=postgres://app:secret@db/app", "ORPHANWATCH_HTTP_INSECURE=true"}}
	for addr, at := range map[string]string{
		"0.0.0.0:" + port: "http://127.0.0.1:" + port, "[::]:" + port: "http://127.0.0.1:" + port, ":" + port: "http://127.0.0.1:" + port,
		"127.0.0.1:" + port: "http://127.0.0.1:" + port, "localhost:" + port: "http://localhost:" + port,
	} {
		s.with("ORPHANWATCH_HTTP_ADDR="+addr).expect(exitUnreachable, []string{"health", "--timeout", "50ms"}, at+"/readyz does not answer: no answer within 50ms")
	}
	s.with("ORPHANWATCH_HTTP_ADDR=127.0.0.1:0").expect(exitUsage, []string{"health"}, "give --url")
	(&site{tb: t}).expect(exitUsage, []string{"health"}, "DATABASE_URL")
	(&site{tb: t}).expect(exitUnreachable, []string{"health", "--url", "http://127.0.0.1:" + port, "--timeout", "50ms"}, "no answer")
}

// certify writes crt and key of a certificate of its own, for another name than this machine's.
func certify(t *testing.T, dir string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "orphanwatch.internal"}, DNSNames: []string{"orphanwatch.internal"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	public, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"crt": {Type: "CERTIFICATE", Bytes: public}, "key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
