package wiring_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// asChecker makes the test binary a client of the check: its arguments are the URL, the
// token and ids.
const asChecker = "E2E_AS_CHECKER"

const (
	checkerProcesses = 8
	checkerConns     = 4 // of each process
	checkerTime      = 10 * time.Second
	checkerWarmUp    = 2 * time.Second // eight processes start
)

// TestMeasureChecks measures the check before a task runs, asked by 8 processes:
//
//	go test ./wiring -run TestMeasureChecks -measure -v
func TestMeasureChecks(t *testing.T) {
	if !*measure {
		return
	}
	w := newWorld(t, sandbox.Options{})
	token := w.withTokens("read")
	rows := w.rows(1000)
	d := w.run()
	w.firstPass()
	cpu := d.cpu(t)
	var wg sync.WaitGroup
	all := make([][]time.Duration, checkerProcesses)
	for i := range checkerProcesses {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0], append([]string{"http://" + d.addr, token}, rows...)...)
			cmd.Env = []string{asChecker + "=1"}
			out, err := cmd.Output()
			if err == nil {
				err = json.Unmarshal(out, &all[i])
			}
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	took := slices.Sorted(slices.Values(slices.Concat(all...)))
	require.NotEmpty(t, took)
	t.Logf("%.0f checks a second by %d processes with %d connections each: p50 %v, p99 %v, max %v; the daemon used %.0f %% of a core, RSS %d MiB",
		float64(len(took))/checkerTime.Seconds(), checkerProcesses, checkerConns, took[len(took)/2], took[len(took)*99/100], took[len(took)-1],
		(d.cpu(t)-cpu).Seconds()/(checkerTime+checkerWarmUp).Seconds()*100, d.rss(t))
}

// runChecker asks on each connection again as soon as it has an answer, and prints how
// long each took that was asked after the warm-up.
func runChecker(args []string) int {
	url, token, ids := args[0], args[1], args[2:]
	begin := time.Now()
	warm, end := begin.Add(checkerWarmUp), begin.Add(checkerWarmUp+checkerTime)
	all := make([][]time.Duration, checkerConns)
	errs := make([]error, checkerConns)
	var wg sync.WaitGroup
	for i := range checkerConns {
		wg.Go(func() {
			c := checkerConn{addr: strings.TrimPrefix(url, "http://"), token: token}
			defer c.close()
			for at := time.Now(); at.Before(end) && errs[i] == nil; at = time.Now() {
				errs[i] = c.check(ids[at.Nanosecond()%len(ids)])
				if at.After(warm) {
					all[i] = append(all[i], time.Since(at))
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stdout, err)
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(slices.Concat(all...)) // the parent sees that it is not whole
	return 0
}

// checkerConn is a client that costs next to nothing: it shares the machine with what
// is measured.
type checkerConn struct {
	addr, token string
	conn        net.Conn
	in          *bufio.Reader
}

func (c *checkerConn) close() {
	if c.conn != nil {
		_ = c.conn.Close() // all is read
	}
}

func (c *checkerConn) check(id string) (err error) {
	if c.conn == nil {
		if c.conn, err = net.DialTimeout("tcp", c.addr, 10*time.Second); err != nil {
			return err
		}
		c.in = bufio.NewReader(c.conn)
	}
	_ = c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c.conn, "GET /api/v1/tasks/%s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", id, c.token); err != nil {
		return err
	}
	length := 0
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		if n, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			length, _ = strconv.Atoi(string(bytes.TrimSpace(n)))
		}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return err
	}
	if !bytes.Contains(body, []byte(`"exists":true`)) {
		return fmt.Errorf("answered %s", body)
	}
	return nil
}
