package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/wiring"
)

// healthReport is what a daemon answers to a probe.
type healthReport struct {
	URL string `json:"url"`
	OK  bool   `json:"ok"`
	// Status is that of HTTP, 0 for no answer.
	Status int    `json:"status"`
	Reason string `json:"reason"`
}

func (c *cli) healthCommand() *cobra.Command {
	var live bool
	var base string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the daemon on this machine whether it is ready",
		Long: `Ask the daemon on this machine, at http.addr, whether it is ready (/readyz): its
sources are subscribed, or it stands by. It is for a container's health check, and
needs neither a shell nor curl. The stores are not asked; that is what status does.
The configuration is the daemon's; with --url none is needed.

Exit code 0 if it is ready, 5 if it is not or does not answer.

With TLS the certificate is not verified: it is of the name by which others know this
machine, and nothing secret is sent. That of --url is verified.`,
		Example: `  orphanwatch health
  orphanwatch health --live --timeout 1s
  orphanwatch health --url https://orphanwatch.internal:8443`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return usageError{fmt.Errorf("--timeout is %s: it must be positive, such as 3s", timeout)}
			}
			at, client, err := c.probed(base)
			if err != nil {
				return err
			}
			path := "/readyz"
			if live {
				path = "/livez"
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			r := probe(ctx, client, at.JoinPath(path).String())
			if errors.Is(ctx.Err(), context.DeadlineExceeded) && r.Status == 0 {
				r.Reason = "no answer within " + timeout.String()
			}
			return c.printHealth(r)
		},
	}
	cmd.Flags().BoolVar(&live, "live", false, "ask whether it runs at all (/livez)")
	cmd.Flags().StringVar(&base, "url", "", "where it listens (default: http.addr)")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return cmd
}

// probed is where the daemon listens, and a client for it.
func (c *cli) probed(base string) (*url.URL, *http.Client, error) {
	transport := &http.Transport{DisableKeepAlives: true} // without a proxy, whatever HTTP_PROXY says
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if base != "" {
		at, err := url.Parse(base)
		if err != nil || at.Host == "" || (at.Scheme != "http" && at.Scheme != "https") {
			return nil, nil, usageError{errors.New("--url is no URL of HTTP: write http://HOST:PORT")}
		}
		return at, client, nil
	}
	config, err := c.load()
	if err != nil {
		return nil, nil, err
	}
	at, err := ownURL(config.HTTP)
	if err != nil {
		return nil, nil, err
	}
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // see the command's help
	return at, client, nil
}

// ownURL is where a daemon of this configuration is reached from its own machine.
func ownURL(c wiring.HTTPConfig) (*url.URL, error) {
	host, port, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return nil, usageError{fmt.Errorf("http.addr: %w", err)} // Load has checked it
	}
	if port == "0" {
		return nil, usageError{errors.New("http.addr has the port 0, which is any: give --url")}
	}
	if host == "" || net.ParseIP(host).IsUnspecified() { // :: takes connections of both kinds
		host = "127.0.0.1"
	}
	at := &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
	if c.TLSCert != "" {
		at.Scheme = "https"
	}
	return at, nil
}

// maxProbe is how much of an answer is read, in bytes.
const maxProbe = 64 << 10

func probe(ctx context.Context, client *http.Client, at string) healthReport {
	r := healthReport{URL: at}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		r.Reason = err.Error()
		return r
	}
	response, err := client.Do(request)
	if err != nil {
		var outer *url.Error
		if errors.As(err, &outer) {
			err = outer.Err // the URL is told apart
		}
		r.Reason = err.Error()
		return r
	}
	defer response.Body.Close()
	r.Status, r.OK = response.StatusCode, response.StatusCode == http.StatusOK
	body, err := io.ReadAll(io.LimitReader(response.Body, maxProbe))
	var answer struct {
		Message string `json:"message"`
	}
	switch {
	case err != nil:
		r.OK, r.Reason = false, err.Error()
	case json.Unmarshal(body, &answer) == nil && answer.Message != "":
		r.Reason = answer.Message
	default:
		r.Reason = response.Status
	}
	return r
}

func (c *cli) printHealth(r healthReport) error {
	if c.output == outputJSON {
		if err := c.printJSON(r); err != nil {
			return err
		}
	}
	switch {
	case r.OK && c.output == outputJSON:
		return nil
	case r.OK:
		_, err := fmt.Fprintln(c.out, "ok:", oneLine(r.Reason))
		return err
	case r.Status == 0:
		fmt.Fprintf(c.err, "orphanwatch: %s does not answer: %s\n", r.URL, oneLine(r.Reason))
	default:
		fmt.Fprintf(c.err, "orphanwatch: %s answers %d: %s\n", r.URL, r.Status, oneLine(r.Reason))
	}
	return exitCode(exitUnreachable)
}
