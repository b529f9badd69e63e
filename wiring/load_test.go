package wiring_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

const (
	loadEvery = 10 * time.Millisecond // from one thing that the application does to the next
	loadRows  = 300                   // living ones that it begins with
)

// load is an application that goes on while leaders change, and what must be true of
// each row: a living one keeps its newest result and message, a dead one has neither.
type load struct {
	*application
	end func() error // stops it

	mu     sync.Mutex
	value  map[string]string // of a living row: its newest result
	serial map[string]int    // of a living row that has a message: the newest one's number
	gone   map[string]bool   // dead rows
	next   int
	did    map[string]int
}

// load starts one, which goes on until stop.
func (a *application) load() *load {
	a.t.Helper()
	l := &load{application: a, value: map[string]string{}, serial: map[string]int{}, gone: map[string]bool{}, did: map[string]int{}}
	l.birth(loadRows)
	ctx, cancel := context.WithCancel(a.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.run(ctx) }()
	l.end = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	a.t.Cleanup(func() { _ = l.end() })
	return l
}

func (l *load) stop() {
	l.t.Helper()
	require.NoError(l.t, l.end(), "the application's load")
}

func (l *load) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d living rows, %d dead ones, by %v", len(l.value), len(l.gone), l.did)
}

func (l *load) run(ctx context.Context) error {
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := l.step(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
}

// pick is any key of a map.
func pick[V any](m map[string]V) string {
	for k := range m {
		return k
	}
	return uuid.NewString()
}

func (l *load) step(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	name, err := "", error(nil)
	switch n := rand.IntN(100); {
	case n < 25 || len(l.value) < loadRows/2:
		name, err = "insert", l.insert(ctx, uuid.NewString())
	case n < 30:
		name, err = "insert and send", l.insertAndSend(ctx)
	case n < 35:
		name, err = "write before the commit", l.insertLate(ctx, uuid.NewString())
	case n < 45:
		name, err = "insert again", l.insert(ctx, pick(l.gone))
	case n < 70:
		name, err = "delete", l.remove(ctx, pick(l.value))
	case n < 75:
		name, err = "delete and insert in one transaction", l.replace(ctx, pick(l.value))
	case n < 77:
		name, err = "write late", l.set(ctx, pick(l.gone), "late")
	default:
		id := pick(l.value)
		name, err = "write", l.write(ctx, id)
	}
	l.did[name]++
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return err
}

func (l *load) insert(ctx context.Context, id string) error {
	if _, err := l.db.Exec(ctx, "INSERT INTO scan_tasks (id) VALUES ($1)", id); err != nil {
		return err
	}
	delete(l.gone, id)
	return l.write(ctx, id)
}

// insertLate stores the result while the insert is under way.
func (l *load) insertLate(ctx context.Context, id string) error {
	return pgx.BeginFunc(ctx, l.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO scan_tasks (id) VALUES ($1)", id); err != nil {
			return err
		}
		return l.write(ctx, id)
	})
}

func (l *load) insertAndSend(ctx context.Context) error {
	id := uuid.NewString()
	if err := l.insert(ctx, id); err != nil {
		return err
	}
	return l.sendTo(ctx, id)
}

func (l *load) sendTo(ctx context.Context, rows ...string) error {
	tasks := make([]sandbox.Task, len(rows))
	for i, id := range rows {
		l.next++
		l.serial[id] = l.next
		tasks[i] = l.scan(id, map[string]any{"sleep": l.next}, nil)
	}
	_, err := l.producer.Send(ctx, tasks...)
	return err
}

func (l *load) remove(ctx context.Context, id string) error {
	l.forget(id)
	_, err := l.db.Exec(ctx, "DELETE FROM scan_tasks WHERE id = $1", id)
	return err
}

func (l *load) forget(id string) {
	delete(l.value, id)
	delete(l.serial, id)
	l.gone[id] = true
}

func (l *load) replace(ctx context.Context, id string) error {
	return pgx.BeginFunc(ctx, l.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "DELETE FROM scan_tasks WHERE id = $1", id)
		if err == nil {
			_, err = tx.Exec(ctx, "INSERT INTO scan_tasks (id) VALUES ($1)", id)
		}
		return err
	})
}

// write stores a new result of a living row.
func (l *load) write(ctx context.Context, id string) error {
	l.next++
	l.value[id] = fmt.Sprintf(`{"status": "SUCCESS", "result": %d, "task_id": %q}`, l.next, id)
	return l.set(ctx, id, l.value[id])
}

func (l *load) set(ctx context.Context, id, value string) error {
	return l.redis.Set(ctx, resultKey(id), value, time.Hour).Err()
}

// birth inserts n rows with results, and the first quarter of them with messages.
func (l *load) birth(n int) (rows []string, messages int) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	rows, messages = ids(n), n/4
	l.insertAll(rows, messages)
	return rows, messages
}

// again inserts rows again that are not there, with new results and messages.
func (l *load) again(rows []string, messages int) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	rows = slices.DeleteFunc(slices.Clone(rows), func(id string) bool { return !l.gone[id] }) // the load may have been first
	l.insertAll(rows, min(messages, len(rows)))
}

func (l *load) insertAll(rows []string, messages int) {
	l.t.Helper()
	l.sql("INSERT INTO scan_tasks (id) SELECT unnest($1::uuid[])", rows)
	for _, id := range rows {
		delete(l.gone, id)
		require.NoError(l.t, l.write(l.t.Context(), id))
	}
	require.NoError(l.t, l.sendTo(l.t.Context(), rows[:messages]...))
}

// delete deletes rows in one transaction.
func (l *load) delete(rows []string) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range rows {
		l.forget(id)
	}
	l.sql("DELETE FROM scan_tasks WHERE id = ANY($1::uuid[])", rows)
}

// numbers are of the messages in the broker, by their tasks.
func (l *load) numbers() (map[string]map[int]bool, error) {
	letters, err := l.letters()
	out := map[string]map[int]bool{}
	for _, letter := range letters {
		var e struct{ Headers struct{ KwargsRepr string } }
		n := 0
		if json.Unmarshal([]byte(letter.raw), &e) != nil { // our tombstone
			continue
		}
		_, _ = fmt.Sscanf(e.Headers.KwargsRepr, "{'sleep': %d}", &n)
		if out[letter.id] == nil {
			out[letter.id] = map[int]bool{}
		}
		out[letter.id][n] = true
	}
	return out, err
}

// check asserts that every living row has its newest result, and its newest message.
func (l *load) check() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var touched []string
	for id, want := range l.value {
		if got, err := l.redis.Get(l.t.Context(), resultKey(id)).Result(); got != want {
			touched = append(touched, fmt.Sprintf("%s has the result %q (%v), must be %q", id, got, err, want))
		}
	}
	numbers, err := l.numbers()
	require.NoError(l.t, err)
	for id, n := range l.serial {
		if !numbers[id][n] {
			touched = append(touched, fmt.Sprintf("%s has the messages %v, must have %d", id, numbers[id], n))
		}
	}
	require.Empty(l.t, touched, "living rows that were touched, of %d", len(l.value))
}

// awaitNoOrphans waits until nothing of a dead row is left.
func (l *load) awaitNoOrphans() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var dead []string
	for id := range l.gone {
		dead = append(dead, id)
	}
	sandbox.AwaitTB(l.t, 2*recovery, "the orphans to be gone", func() error {
		n, err := l.count(dead)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d of %d have results", n, len(dead))
		}
		numbers, also := l.numbers()
		var left []string
		for id := range numbers {
			if l.gone[id] {
				left = append(left, id)
			}
		}
		if also == nil && len(left) > 0 {
			also = fmt.Errorf("messages of %d: %s", len(left), strings.Join(left[:min(3, len(left))], " "))
		}
		return errors.Join(err, also)
	})
}
