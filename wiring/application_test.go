package wiring_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// How a task leads to its row.
const (
	byArgument = "args:0"
	byID       = "celery_id"
)

// variant is how an application uses Celery.
type variant struct {
	name       string
	match      string         // empty: byArgument
	config     map[string]any // Celery's settings
	prefix     string         // the broker's global_keyprefix
	separate   bool           // results on another server, in another database
	priorities []int          // of queued tasks, in turn
	daemonEnv  []string
}

// application is a world with real Celery in it, and what its tasks did.
type application struct {
	*world
	variant
	celery   sandbox.Celery
	broker   *redis.Client
	runs     *redis.Client
	producer *sandbox.Producer
	workers  []*sandbox.Worker

	want   map[string]int    // task id -> how often it is to run
	rowOf  map[string]string // task id -> row, of ScanTask
	seen   []sandbox.Run
	serial int
}

func newApplication(t *testing.T, v variant) *application {
	t.Helper()
	a := &application{
		world: newWorld(t, sandbox.Options{}), variant: v,
		want: map[string]int{}, rowOf: map[string]string{},
	}
	if a.match == "" {
		a.match = byArgument
	}
	a.broker, a.runs = a.client(a.sb.Redis, 0), a.client(a.sb.Redis, 9)
	transport := map[string]any{}
	a.env = append(a.env, "ORPHANWATCH_MATCH="+a.match, "ORPHANWATCH_NAMES="+sandbox.ScanTask)
	if v.prefix != "" {
		transport["global_keyprefix"] = v.prefix
		a.env = append(a.env, "ORPHANWATCH_CELERY_GLOBAL_KEYPREFIX="+v.prefix)
	}
	a.celery = sandbox.Celery{
		Broker: a.sb.Redis.URL(), Backend: a.sb.Redis.URL(), Runs: a.sb.Redis.DB(9), Database: a.dbURL,
		Config: map[string]any{"broker_transport_options": transport},
	}
	maps.Copy(a.celery.Config, v.config)
	if v.separate {
		results, err := a.sb.StartRedis(t.Context(), sandbox.RedisOptions{ACLFile: usersACL})
		require.NoError(t, err)
		a.useResults(results, 3)
		a.celery.Backend = results.DB(3)
		a.env = append(a.env, "CELERY_BROKER_URL="+a.redisURL(), "CELERY_RESULT_BACKEND="+sandbox.As(a.celery.Backend, role, password))
	}
	// What is the application's own is none of its business.
	require.NoError(t, a.broker.LPush(t.Context(), private, "x").Err())
	a.env = append(a.env, v.daemonEnv...)
	if v.prefix != "" || v.separate {
		a.permit()
	}
	var err error
	a.producer, err = a.sb.StartProducer(t.Context(), a.celery)
	require.NoError(t, err)
	return a
}

// work starts a worker with a prefork pool; config is over the application's.
func (a *application) work(concurrency int, config map[string]any) *sandbox.Worker {
	a.t.Helper()
	app := a.celery
	app.Config = maps.Clone(app.Config)
	maps.Copy(app.Config, config)
	w, err := a.sb.StartWorker(a.t.Context(), sandbox.WorkerOptions{Celery: app, Pool: "prefork", Concurrency: concurrency})
	require.NoError(a.t, err)
	a.workers = append(a.workers, w)
	return w
}

// scan is a task of a row.
func (a *application) scan(row string, kwargs, options map[string]any) sandbox.Task {
	t := sandbox.Task{Name: sandbox.ScanTask, Args: []any{row}, Kwargs: kwargs, Options: options}
	if a.match == byID {
		t.ID = row
	}
	return t
}

// scans are tasks of rows.
func (a *application) scans(rows []string, kwargs, options map[string]any) []sandbox.Task {
	tasks := make([]sandbox.Task, len(rows))
	for i, row := range rows {
		tasks[i] = a.scan(row, kwargs, options)
	}
	return tasks
}

// others are n tasks that no row has to do with.
func others(n int, kwargs, options map[string]any) []sandbox.Task {
	return slices.Repeat([]sandbox.Task{{Name: sandbox.OtherTask, Args: []any{"x"}, Kwargs: kwargs, Options: options}}, n)
}

// queued gives tasks the variant's priorities in turn.
func (a *application) queued(tasks []sandbox.Task) []sandbox.Task {
	for i := range tasks {
		if len(a.priorities) > 0 {
			tasks[i].Options = map[string]any{"priority": a.priorities[a.serial%len(a.priorities)]}
			a.serial++
		}
	}
	return tasks
}

// never is how often a task runs that is not to run; some may not be judged at all.
const (
	never    = 0
	unjudged = -1
)

// send sends tasks that are each to run so many times.
func (a *application) send(times int, tasks ...sandbox.Task) []string {
	a.t.Helper()
	ids, err := a.producer.Send(a.t.Context(), tasks...)
	require.NoError(a.t, err)
	for i, id := range ids {
		a.expect(id, times, tasks[i])
	}
	return ids
}

func (a *application) expect(id string, times int, task sandbox.Task) {
	if times > never {
		a.want[id] = times
	}
	if task.Name == sandbox.ScanTask {
		a.rowOf[id] = task.Args[0].(string)
	}
}

// idsOf are the task ids of rows.
func (a *application) idsOf(rows []string) []string {
	of := set(rows)
	var out []string
	for id, row := range a.rowOf {
		if of[row] {
			out = append(out, id)
		}
	}
	return out
}

func set(list []string) map[string]bool {
	out := make(map[string]bool, len(list))
	for _, s := range list {
		out[s] = true
	}
	return out
}

// cut takes the first n of a list.
func cut(list *[]string, n int) []string {
	head := slices.Clip((*list)[:n])
	*list = (*list)[n:]
	return head
}

// delete deletes rows in so many transactions, in any order, and tells when each was
// committed.
func (a *application) delete(transactions int, rows []string) map[string]time.Time {
	a.t.Helper()
	if len(rows) == 0 {
		return nil
	}
	rows = slices.Clone(rows)
	rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	committed := map[string]time.Time{}
	for part := range slices.Chunk(rows, (len(rows)+transactions-1)/transactions) {
		a.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", part)
		for _, row := range part {
			committed[row] = time.Now()
		}
	}
	return committed
}

// letter is a message in the broker.
type letter struct {
	id   string // the task's; empty where it cannot be read
	list string // the queue's key; "unacked"
	raw  string
}

const unacked = "unacked"

// lists are the keys of the queue's lists, by priority.
func (a *application) lists() []string {
	out := []string{a.prefix + "celery"}
	for _, step := range []int{3, 6, 9} {
		out = append(out, a.prefix+"celery\x06\x16"+strconv.Itoa(step))
	}
	return out
}

// letters are all messages: the queued ones of each list from head to tail, then those
// that a worker holds, or held.
func (a *application) letters() (out []letter, err error) {
	for _, list := range a.lists() {
		raws, err := a.broker.LRange(a.t.Context(), list, 0, -1).Result()
		if err != nil {
			return nil, err
		}
		for _, raw := range raws {
			out = append(out, letter{idOf(json.RawMessage(raw)), list, raw})
		}
	}
	held, err := a.broker.HGetAll(a.t.Context(), a.prefix+unacked).Result()
	for _, tag := range slices.Sorted(maps.Keys(held)) {
		var message []json.RawMessage
		if json.Unmarshal([]byte(held[tag]), &message) != nil || len(message) == 0 {
			message = []json.RawMessage{nil}
		}
		out = append(out, letter{idOf(message[0]), unacked, held[tag]})
	}
	return out, err
}

func idOf(envelope json.RawMessage) string {
	var e struct{ Headers struct{ ID string } }
	_ = json.Unmarshal(envelope, &e) // some are not meant to be read
	return e.Headers.ID
}

// awaitPlaces waits until so many messages are queued and so many held.
func (a *application) awaitPlaces(queued, held int) {
	a.t.Helper()
	what := fmt.Sprintf("%d queued and %d held messages", queued, held)
	sandbox.AwaitTB(a.t, recovery, what, func() error {
		letters, err := a.letters()
		n := 0
		for _, l := range letters {
			if l.list == unacked {
				n++
			}
		}
		if err == nil && (len(letters)-n != queued || n != held) {
			err = fmt.Errorf("%d are queued and %d held", len(letters)-n, n)
		}
		return err
	})
}

// ran are all runs so far.
func (a *application) ran() []sandbox.Run {
	a.t.Helper()
	more, err := sandbox.ReadRuns(a.t.Context(), a.runs, len(a.seen))
	require.NoError(a.t, err)
	a.seen = append(a.seen, more...)
	return a.seen
}

// times are how often each task has run.
func (a *application) times() map[string]int {
	a.t.Helper()
	n := map[string]int{}
	for _, run := range a.ran() {
		n[run.ID]++
	}
	return n
}

// awaitRuns waits until each of the tasks has run so many times.
func (a *application) awaitRuns(timeout time.Duration, times int, ids []string) {
	a.t.Helper()
	sandbox.AwaitTB(a.t, timeout, fmt.Sprintf("%d tasks to run", len(ids)), func() error {
		ran, n := a.times(), 0
		for _, id := range ids {
			if ran[id] >= times {
				n++
			}
		}
		if n < len(ids) {
			return fmt.Errorf("%d have", n)
		}
		return nil
	})
}

// release lets n tasks go on that wait at the gate.
func (a *application) release(n int) {
	a.t.Helper()
	require.NoError(a.t, sandbox.Release(a.t.Context(), a.runs, "gate", n))
}

// block keeps n processes of the pool busy until release.
func (a *application) block(n int) {
	a.t.Helper()
	a.awaitRuns(recovery, 1, a.send(unjudged, others(n, map[string]any{"wait": "gate"}, nil)...))
}

// tellResult tells of one of the results that are left, and what the record says of it.
func (a *application) tellResult(ids []string, n int) string {
	if n == 0 {
		return ""
	}
	ctx := a.t.Context()
	for _, id := range ids {
		if v, err := a.redis.Get(ctx, resultKey(id)).Result(); err == nil {
			return fmt.Sprintf(", such as %s with the record %v", v, a.redis.HGetAll(ctx, "orphanwatch:record:task:"+id).Val())
		}
	}
	return ""
}

// left tells what of the tasks with these ids is in Redis.
func (a *application) left(ids []string) error {
	letters, err := a.letters()
	if err != nil {
		return err
	}
	of, n := set(ids), map[string]int{}
	for _, l := range letters {
		if of[l.id] {
			n[map[bool]string{true: "held", false: "queued"}[l.list == unacked]]++
		}
	}
	results, err := a.count(ids)
	if err == nil && len(n)+results > 0 {
		err = fmt.Errorf("%d queued, %d held messages and %d results of deleted rows are left%s", n["queued"], n["held"], results, a.tellResult(ids, results))
	}
	return err
}
