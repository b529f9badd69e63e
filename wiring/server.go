package wiring

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/httpapi"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// Server is the HTTP listener; it listens from the moment that it is made, so
// that an address in use is an error at start.
type Server struct {
	http     *http.Server
	listener net.Listener
	// stop ends the requests under way.
	stop context.CancelFunc
}

// NewServer listens on http.addr.
func NewServer(c *Config, services httpapi.Services, controller *watcher.Controller, pulse *watcher.Pulse, telemetry *Telemetry, version Version, log *slog.Logger) (*Server, error) {
	return newServer(c, httpapi.Options{
		Ready: controller.Ready, Alive: pulse.Alive, Metrics: telemetry.Handler(), Services: services, Version: string(version), Log: log,
	})
}

func newServer(c *Config, o httpapi.Options) (*Server, error) {
	audit, err := OpenAudit(c, o.Log)
	if err != nil { // the daemon's own work goes on without it
		o.Log.ErrorContext(context.Background(), "the audit log cannot be written: the HTTP API changes nothing until it can be", "error", err)
	}
	o.Audit = audit
	security, err := newTLS(c, o.Log)
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", c.HTTP.Addr)
	if err != nil {
		return nil, reconciler.Hint(fmt.Errorf("listen on http.addr: %w", err), "set ORPHANWATCH_HTTP_ADDR=127.0.0.1:PORT to a free port")
	}
	if o.Auth, err = newAuth(c, listener.Addr(), o.Log); err != nil {
		_ = listener.Close()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Server{listener: listener, stop: stop, http: &http.Server{
		Handler: httpapi.New(o), BaseContext: func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
		TLSConfig:                    security,
	}}, nil
}

// newAuth is who may call.
func newAuth(c *Config, addr net.Addr, log *slog.Logger) (httpapi.Auth, error) {
	auth := httpapi.Auth{}
	if at, ok := addr.(*net.TCPAddr); ok {
		auth.Loopback = at.IP.IsLoopback()
	}
	if c.HTTP.TokensFile != "" {
		tokens, err := httpapi.NewTokens(c.HTTP.TokensFile, time.Now, log)
		if err != nil {
			return auth, fmt.Errorf("http.tokens_file: %w", err)
		}
		auth.Tokens = tokens
	}
	if !c.HTTP.JWTSecret.IsZero() {
		scopes, err := httpapi.ParseScopes(c.HTTP.JWTScopes)
		if err != nil {
			return auth, fmt.Errorf("http.jwt_scopes: %w", err)
		}
		auth.JWT = httpapi.NewJWT(httpapi.JWTOptions{
			Secret: []byte(c.HTTP.JWTSecret.Reveal()), Issuer: c.HTTP.JWTIssuer, Audience: c.HTTP.JWTAudience, Scopes: scopes,
		})
	}
	return auth, nil
}

// newTLS serves the certificate that the files hold now; nil where there are none.
func newTLS(c *Config, log *slog.Logger) (*tls.Config, error) {
	h := c.HTTP
	if h.TLSCert == "" {
		return nil, nil
	}
	certificate, err := httpapi.NewWatched([]string{h.TLSCert, h.TLSKey}, func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(h.TLSCert, h.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		return &pair, nil
	}, time.Now, log)
	if err != nil {
		return nil, reconciler.Hint(fmt.Errorf("http.tls_cert, http.tls_key: %w", err), "make them PEM files of a certificate with its chain, and of its key, that the daemon may read")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate.Get(), nil },
	}, nil
}

// Addr is where it listens.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	defer s.stop()
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.stop() // a cleanup under way stops where it is whole, and answers so
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if s.http.Shutdown(bounded) != nil {
			_ = s.http.Close() // what has not ended by then is cut off
		}
	})
	serve := s.http.Serve
	if s.http.TLSConfig != nil {
		serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
	}
	err := serve(s.listener)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve HTTP on %s: %w", s.Addr(), err)
}
