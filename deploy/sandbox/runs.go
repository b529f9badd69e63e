package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/redis/go-redis/v9"
)

// runsKey is the list in Celery.Runs to which tasks push themselves as they start.
const runsKey = "runs"

// Run is one start of a task by a worker.
type Run struct {
	ID      string    // the task's
	Name    string    // ScanTask or OtherTask
	Row     string    // ScanTask's task_id
	At      time.Time // of the task's first statement, by this machine's clock
	Retries int       // 0 at first
	PID     int       // of the pool's process
}

// UnmarshalJSON reads what sandbox_app.py writes.
func (r *Run) UnmarshalJSON(text []byte) error {
	var run struct {
		ID, Name, Row string
		At            float64 // unix time, s
		Retries, PID  int
	}
	if err := json.Unmarshal(text, &run); err != nil {
		return err
	}
	s, fraction := math.Modf(run.At)
	*r = Run{run.ID, run.Name, run.Row, time.Unix(int64(s), int64(fraction*1e9)), run.Retries, run.PID}
	return nil
}

// ReadRuns returns the runs that client's database (Celery.Runs) holds, from the given
// one on, in the order in which they were recorded.
func ReadRuns(ctx context.Context, client *redis.Client, from int) ([]Run, error) {
	lines, err := client.LRange(ctx, runsKey, int64(from), -1).Result()
	if err != nil {
		return nil, fmt.Errorf("read runs: %w", err)
	}
	runs := make([]Run, len(lines))
	for i, line := range lines {
		if err := json.Unmarshal([]byte(line), &runs[i]); err != nil {
			return nil, fmt.Errorf("read runs: %w", err)
		}
	}
	return runs, nil
}

// Release lets n tasks go on that have, or will have, the keyword argument wait with
// this name. They wait for at most two minutes.
func Release(ctx context.Context, client *redis.Client, name string, n int) error {
	gate := make([]any, n)
	for i := range gate {
		gate[i] = "go"
	}
	if err := client.RPush(ctx, name, gate...).Err(); err != nil {
		return fmt.Errorf("release %s: %w", name, err)
	}
	return nil
}
