package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// Task is a message to send.
type Task struct {
	ID     string         `json:"id,omitempty"` // empty: Celery makes one
	Name   string         `json:"name"`
	Args   []any          `json:"args,omitempty"`
	Kwargs map[string]any `json:"kwargs,omitempty"`
	// Options go to apply_async: queue, countdown, expires, priority, compression,
	// serializer, headers, …
	Options map[string]any `json:"options,omitempty"`
}

// Producer is a Python process that sends tasks with the real Celery: some
// milliseconds a task, against half a second for a new interpreter. Its methods may be
// called concurrently and are answered one after the other.
type Producer struct {
	proc *process

	mu      sync.Mutex
	answers *bufio.Reader
	lost    error // why answers and questions do not match any more
}

type producerRequest struct {
	Op      string         `json:"op"`
	Tasks   []Task         `json:"tasks,omitempty"`
	IDs     []string       `json:"ids,omitempty"`
	Options map[string]any `json:"options,omitempty"`
}

type producerAnswer struct {
	IDs   []string `json:"ids"`
	Group string   `json:"group"`
	Error string   `json:"error"`
}

// StartProducer starts a producer for the application and returns when it has
// connected to the broker.
func (sb *Sandbox) StartProducer(ctx context.Context, app Celery) (*Producer, error) {
	python, err := findCelery(ctx)
	if err != nil {
		return nil, fmt.Errorf("start producer: %w", err)
	}
	name, dir, env, err := sb.celeryApp("producer", app)
	if err != nil {
		return nil, fmt.Errorf("start producer: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start producer: %w", err)
	}
	proc, err := sb.spawn(program{
		name: name, dir: dir, env: env, argv: []string{python, "sandbox_app.py"},
		log: filepath.Join(dir, "producer.log"), stdout: write,
	})
	shut(write)
	if err != nil {
		shut(read)
		return nil, err
	}
	p := &Producer{proc: proc, answers: bufio.NewReader(read)}
	if err := sb.onClose(func() { shut(proc.stdin); shut(read) }); err != nil {
		return nil, fmt.Errorf("start producer: %w", err)
	}
	if _, err := p.ask(ctx, producerRequest{Op: "ping"}); err != nil {
		return nil, fmt.Errorf("start producer: %w", err)
	}
	return p, nil
}

// Send sends tasks and returns their ids in the same order.
func (p *Producer) Send(ctx context.Context, tasks ...Task) ([]string, error) {
	a, err := p.ask(ctx, producerRequest{Op: "send", Tasks: tasks})
	return a.IDs, err
}

// Group sends tasks as a group, saves its result (celery-taskset-meta-…), and returns
// the group's id.
func (p *Producer) Group(ctx context.Context, tasks ...Task) (group string, ids []string, err error) {
	a, err := p.ask(ctx, producerRequest{Op: "group", Tasks: tasks})
	return a.Group, a.IDs, err
}

// Chord sends a header of tasks with a callback, the last task. The ids are in the
// same order.
func (p *Producer) Chord(ctx context.Context, tasks ...Task) (group string, ids []string, err error) {
	a, err := p.ask(ctx, producerRequest{Op: "chord", Tasks: tasks})
	return a.Group, a.IDs, err
}

// Chain sends the first task with the others in its message. Each gets the result of
// the one before as its first argument.
func (p *Producer) Chain(ctx context.Context, tasks ...Task) (ids []string, err error) {
	a, err := p.ask(ctx, producerRequest{Op: "chain", Tasks: tasks})
	return a.IDs, err
}

// Revoke asks the workers to drop tasks; options such as "terminate": true.
func (p *Producer) Revoke(ctx context.Context, ids []string, options map[string]any) error {
	_, err := p.ask(ctx, producerRequest{Op: "revoke", IDs: ids, Options: options})
	return err
}

// PingWorkers returns the node names of the workers that answer within a second. As any
// client that waits for replies, it has kombu restore what no worker has acknowledged
// within the visibility timeout.
func (p *Producer) PingWorkers(ctx context.Context) (nodes []string, err error) {
	a, err := p.ask(ctx, producerRequest{Op: "ping_workers"})
	return a.IDs, err
}

// ask is one line out, one line in. When ctx ends in between, the producer is lost:
// it is killed, and every later question fails.
func (p *Producer) ask(ctx context.Context, request producerRequest) (answer producerAnswer, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost != nil {
		return answer, fmt.Errorf("%s %s: %w", p.proc.name, request.Op, p.lost)
	}
	line, err := json.Marshal(request)
	if err != nil {
		return answer, fmt.Errorf("%s %s: %w", p.proc.name, request.Op, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.proc.cmd.Process.Kill() })
	defer stop()
	_, err = p.proc.stdin.Write(append(line, '\n'))
	var reply []byte
	if err == nil {
		reply, err = p.answers.ReadBytes('\n')
	}
	if err != nil {
		p.lost = errors.Join(context.Cause(ctx), err)
		return answer, fmt.Errorf("%s %s: %w\n%s", p.proc.name, request.Op, p.lost, p.proc.tail())
	}
	if err := json.Unmarshal(reply, &answer); err != nil {
		p.lost = err
		return answer, fmt.Errorf("%s %s: %w", p.proc.name, request.Op, err)
	}
	if answer.Error != "" {
		return answer, fmt.Errorf("%s %s: %s", p.proc.name, request.Op, answer.Error)
	}
	return answer, nil
}
