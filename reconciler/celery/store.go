package celery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Options of a Store.
type Options struct {
	Client   redis.UniversalClient
	Bindings []reconciler.Binding
	// ResultKeyPrefix stands before celery-task-meta-, with its separator.
	ResultKeyPrefix string
	// Quarantine is how long a removed value is kept, 0 for not at all; Remember,
	// how long it is known what was removed.
	Quarantine, Remember time.Duration
	// Broker holds the messages that are restored with the results; nil for none.
	Broker *Broker
	// ScanShare is the part of the server's time that Scan may take, 0 for 0.5.
	ScanShare float64
}

// Store is the Redis that holds Celery's results. It is safe for concurrent use.
type Store struct {
	Keys    *Keys
	client  redis.UniversalClient
	options Options
	// named: some binding goes by the task's name, so that names matter in large
	// results too.
	named bool
	// byArgument: some binding goes by its arguments, which reader reads.
	byArgument bool
	reader     *Reader
	clock      clock
	// records have been written since the set of records was last trimmed.
	records atomic.Int64
	// scanned of total keys the newest Scan has gone over.
	scanned, total atomic.Int64
}

var _ reconciler.Artifacts = (*Store)(nil)

// New makes a Store; it does no I/O.
func New(o Options) *Store {
	o.ScanShare = share(o.ScanShare)
	s := &Store{Keys: NewKeys(o.ResultKeyPrefix, o.Bindings), client: o.Client, options: o, reader: NewReader(o.Bindings)}
	for _, b := range o.Bindings {
		s.named = s.named || len(b.Names) > 0
		s.byArgument = s.byArgument || b.ByArgument()
	}
	return s
}

// failed says what was being done, and marks what means that Redis is away.
func failed(what string, err error) error {
	if err == nil {
		return nil
	}
	if unreachable(err) {
		return fmt.Errorf("redis: %s: %w: %w", what, reconciler.ErrUnreachable, err)
	}
	return fmt.Errorf("redis: %s: %w", what, err)
}

func unreachable(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted) || errors.Is(err, net.ErrClosed) {
		return true
	}
	for _, prefix := range []string{"LOADING ", "MASTERDOWN ", "CLUSTERDOWN ", "READONLY ", "ERR max number of clients"} {
		if strings.HasPrefix(err.Error(), prefix) {
			return true
		}
	}
	return false
}
