package wiring_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
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
// token, the requests a second, the seconds, and ids.
const asChecker = "E2E_AS_CHECKER"

const (
	checkerProcesses = 8
	checkerRate      = 10_000 // a second, in all
	checkerSeconds   = 10
	checkerConns     = 8 // of each process
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
			cmd := exec.CommandContext(t.Context(), os.Args[0], append([]string{"http://" + d.addr, token, strconv.Itoa(checkerRate / checkerProcesses), strconv.Itoa(checkerSeconds)}, rows...)...)
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
	t.Logf("%d checks in %d s by %d processes: p50 %v, p99 %v, max %v; the daemon used %.0f %% of a core, RSS %d MiB",
		len(took), checkerSeconds, checkerProcesses, took[len(took)/2], took[len(took)*99/100], took[len(took)-1],
		(d.cpu(t)-cpu).Seconds()/checkerSeconds*100, d.rss(t))
}

// runChecker asks at a fixed rate, whatever the answers take, and prints how long each
// took from when it was due.
func runChecker(args []string) int {
	url, token, ids := args[0], args[1], args[4:]
	rate, _ := strconv.Atoi(args[2])
	seconds, _ := strconv.Atoi(args[3])
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: checkerConns}, Timeout: 10 * time.Second}
	due := make(chan time.Time, rate*seconds)
	go func() {
		begin := time.Now()
		for i := range rate * seconds {
			at := begin.Add(time.Duration(i) * time.Second / time.Duration(rate))
			time.Sleep(time.Until(at))
			due <- at
		}
		close(due)
	}()
	var mu sync.Mutex
	var took []time.Duration
	failed := ""
	var wg sync.WaitGroup
	for range checkerConns {
		wg.Go(func() {
			for at := range due {
				err := checkOnce(client, url+"/api/v1/tasks/"+ids[at.Nanosecond()%len(ids)], token)
				mu.Lock()
				if took = append(took, time.Since(at)); err != nil {
					failed = err.Error()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != "" {
		fmt.Fprintln(os.Stdout, failed)
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(took) // the parent sees that it is not whole
	return 0
}

func checkOnce(client *http.Client, url, token string) error {
	req, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && !strings.Contains(string(body), `"exists":true`) {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return err
}
