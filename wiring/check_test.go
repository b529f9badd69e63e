package wiring_test

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// withTokens gives the daemon a tokens file, and a token of each of these scopes.
func (w *world) withTokens(scopes ...string) (token string) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "tokens")
	_, token, err := wiring.CreateToken(w.t.Context(), file, "test", scopes, time.Hour)
	require.NoError(w.t, err)
	w.env = append(w.env, "ORPHANWATCH_HTTP_TOKENS_FILE="+file)
	return token
}

// call is a request to the daemon; data takes that of its answer.
func (d *daemon) call(method, path, token string, data any) int {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, "http://"+d.addr+path, http.NoBody)
	require.NoError(d.t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	require.NoError(d.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(d.t, err)
	if data != nil {
		answer := struct {
			Data any `json:"data"`
		}{data}
		require.NoError(d.t, json.Unmarshal(body, &answer), "%s", body)
	}
	return res.StatusCode
}

// checking makes the application's workers ask the daemon.
func (a *application) checking(d string, token string, options map[string]any) {
	a.celery.CheckDir, _ = filepath.Abs("../deploy/celery")
	a.celery.Check = map[string]any{"url": "http://" + d, "token": token, "row": "args:0"}
	for name, value := range options {
		a.celery.Check[name] = value
	}
}

// A task whose row is deleted while a worker holds it ends as ignored. Removals are
// paused, so that nothing but the check can be what stops it.
func TestTheCheckInsideWorkers(t *testing.T) {
	t.Parallel()
	a := newApplication(t, variant{})
	token := a.withTokens("read", "admin")
	rows := a.rows(4)
	d := a.run()
	a.firstPass()
	a.checking(d.addr, token, nil)
	w := a.work(1, nil)
	a.awaitStatus(recovery, "a pass that the worker has asked for", func(s wiring.DaemonStatus) bool { return s.Pass.Reason == "asked for" })

	a.block(1)
	held := a.send(never, a.scans(rows[:2], nil, nil)...)
	living := a.send(1, a.scans(rows[2:], nil, nil)...)
	a.awaitPlaces(0, len(rows))
	require.Equal(t, http.StatusOK, d.call(http.MethodPost, "/api/v1/pause", token, nil))
	a.delete(1, rows[:2])
	a.release(1)
	a.awaitRuns(recovery, 1, living)
	for _, id := range held {
		a.awaitLine(w, "scan_domain_task["+id+"] is not run: its row")
	}
	require.Equal(t, len(living), one[int](a.world, "SELECT count(*)::int FROM task_logs"), "a child row of each task that ran, and of no other")
	require.Empty(t, a.ranOf(held))

	// A row that is not committed yet is waited for; one that never comes is not, for ever.
	const late, none = "0b8f3c52-6b3c-4c1e-8f0a-2f6f5a3d9e01", "0b8f3c52-6b3c-4c1e-8f0a-2f6f5a3d9e02"
	tx, end := a.begin()
	defer end()
	_, err := tx.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", late)
	require.NoError(t, err)
	ids := a.send(1, a.scan(late, nil, nil))
	a.awaitLine(w, "Task scan_domain_task["+ids[0]+"] received")
	require.NoError(t, tx.Commit(t.Context()))
	a.awaitRuns(recovery, 1, ids)
	ids = a.send(never, a.scan(none, nil, nil))
	a.awaitLine(w, "scan_domain_task["+ids[0]+"] is not run: its row "+none+" is gone (absent)")
	require.Empty(t, a.ranOf(ids))

	// A transaction that is open for longer than the worker waits holds the task.
	const slow = "0b8f3c52-6b3c-4c1e-8f0a-2f6f5a3d9e03"
	tx, end = a.begin()
	defer end()
	_, err = tx.Exec(t.Context(), "INSERT INTO scan_tasks (id) VALUES ($1)", slow)
	require.NoError(t, err)
	ids = a.send(1, a.scan(slow, nil, nil))
	a.awaitLine(w, "scan_domain_task["+ids[0]+"] retry: Retry in")
	require.NoError(t, tx.Commit(t.Context()))
	a.awaitRuns(recovery, 1, ids)
	require.Zero(t, a.ranOf(ids)[0].Retries, "none of the task's own retries")

	// Tasks that no binding is about run, whatever their arguments look like.
	a.awaitRuns(recovery, 1, a.send(1, sandbox.Task{Name: sandbox.OtherTask, Args: []any{none}}))
}

// With the daemon down tasks run, the first of each process a second late at most.
func TestTheCheckFailsOpen(t *testing.T) {
	t.Parallel()
	a := newApplication(t, variant{})
	rows := a.rows(41)
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // it accepts, and never answers
	require.NoError(t, err)
	defer silent.Close()
	a.checking(silent.Addr().String(), "owt_none", map[string]any{"startup_timeout": 0})
	w := a.work(1, nil)
	began := time.Now()
	a.awaitRuns(recovery, 1, a.send(1, a.scan(rows[0], nil, nil)))
	first := time.Since(began)
	began = time.Now()
	a.awaitRuns(recovery, 1, a.send(1, a.scans(rows[1:], nil, nil)...))
	rest := time.Since(began)
	t.Logf("without an answer: the first task after %v, 40 more within %v", first, rest)
	require.Less(t, first, 5*time.Second)
	require.Less(t, rest, 5*time.Second, "40 times a timeout is 40 s")
	a.awaitLine(w, "tasks run unchecked: ")
}

// fail_open=False: tasks wait for the daemon, and do not lose a retry of their own.
func TestTheCheckFailsClosed(t *testing.T) {
	t.Parallel()
	a := newApplication(t, variant{})
	token := a.withTokens("read")
	rows := a.rows(1)
	addr := sandbox.FreeAddr(t)
	a.checking(addr, token, map[string]any{"startup_timeout": 0, "fail_open": false, "pause": 1})
	w := a.work(1, nil)
	ids := a.send(1, a.scan(rows[0], nil, nil))
	a.awaitLine(w, "orphanwatch cannot be asked, scan_domain_task["+ids[0]+"] is retried")
	require.Empty(t, a.ranOf(ids))
	a.start("ORPHANWATCH_HTTP_ADDR=" + addr)
	a.awaitRuns(recovery, 1, ids)
	require.Zero(t, a.ranOf(ids)[0].Retries)
}

// awaitLine waits until a worker has logged it.
func (a *application) awaitLine(w *sandbox.Worker, text string) {
	a.t.Helper()
	sandbox.AwaitTB(a.t, recovery, "the worker to log "+text, func() error {
		log, err := os.ReadFile(w.LogPath())
		if err == nil && !strings.Contains(string(log), text) {
			err = errors.New("it has not")
		}
		return err
	})
}

// ranOf are the runs of these tasks so far.
func (a *application) ranOf(ids []string) (runs []sandbox.Run) {
	of := set(ids)
	for _, run := range a.ran() {
		if of[run.ID] {
			runs = append(runs, run)
		}
	}
	return runs
}
