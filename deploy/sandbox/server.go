package sandbox

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// server is what Postgres, Redis and Worker have in common: one program that can be
// started again with the same address and data.
type server struct {
	sandbox    *Sandbox
	program    program
	stopSignal syscall.Signal
	before     func() error                                // before each start; may be nil
	ready      func(ctx context.Context, p *process) error // awaits that it serves

	mu   sync.Mutex
	proc *process
}

// Start starts a server that was stopped or killed, with the same address and data,
// and returns when it serves.
func (s *server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil && s.proc.alive() {
		return fmt.Errorf("start %s: it runs already", s.program.name)
	}
	if s.before != nil {
		if err := s.before(); err != nil {
			return fmt.Errorf("start %s: %w", s.program.name, err)
		}
	}
	proc, err := s.sandbox.spawn(s.program)
	if err != nil {
		return err
	}
	s.proc = proc
	if err := s.awaitReady(ctx, proc); err != nil {
		_ = proc.kill(context.WithoutCancel(ctx))
		return fmt.Errorf("start %s: %w", s.program.name, err)
	}
	return nil
}

// awaitReady ends early when the process ends.
func (s *server) awaitReady(ctx context.Context, proc *process) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	finished := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-proc.done:
			stop(proc.ended())
		case <-finished:
		}
	})
	err := s.ready(ctx, proc)
	close(finished)
	wg.Wait()
	return err
}

// Stop ends the server gracefully (PostgreSQL: mode fast) and tells how long that
// took. When ctx ends first the server keeps running and the error says so. Stopping
// a server that is down does nothing.
func (s *server) Stop(ctx context.Context) (time.Duration, error) {
	proc := s.current()
	if proc == nil {
		return 0, nil
	}
	return proc.stop(ctx, s.stopSignal)
}

// Kill ends the server and everything below it with SIGKILL, paused or not.
func (s *server) Kill(ctx context.Context) error {
	proc := s.current()
	if proc == nil {
		return nil
	}
	return proc.kill(ctx)
}

// Pause freezes the server and everything below it (SIGSTOP): connections stay, no
// answer comes.
func (s *server) Pause(ctx context.Context) error {
	proc := s.current()
	if proc == nil {
		return fmt.Errorf("pause %s: %w", s.program.name, errEnded)
	}
	return proc.pause(ctx)
}

// Resume ends a Pause.
func (s *server) Resume() {
	if proc := s.current(); proc != nil {
		proc.resume()
	}
}

// Restart stops and starts the server: same address, same data (Redis: what its
// persistence kept).
func (s *server) Restart(ctx context.Context) error {
	if _, err := s.Stop(ctx); err != nil {
		return err
	}
	return s.Start(ctx)
}

// PID is the number of the server's first process, 0 when it is down.
func (s *server) PID() int {
	if proc := s.current(); proc != nil {
		return proc.pid()
	}
	return 0
}

// Running tells whether the server's first process exists (a paused one does).
func (s *server) Running() bool { return s.current() != nil }

// LogPath is the file with the server's output.
func (s *server) LogPath() string { return s.program.log }

// Dir is the server's working directory.
func (s *server) Dir() string { return s.program.dir }

func (s *server) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil || !s.proc.alive() {
		return nil
	}
	return s.proc
}
