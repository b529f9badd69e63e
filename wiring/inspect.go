package wiring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler/celery"
	"github.com/orphanwatch/orphanwatch/reconciler/postgres"
	"github.com/orphanwatch/orphanwatch/watcher/replication"
)

// go-redis prints each failed attempt to connect to stderr; its errors say the same
// to whoever must know. Set before any client exists: it is a bare variable.
func init() { redis.SetLogger(noRedisLog{}) }

type noRedisLog struct{}

func (noRedisLog) Printf(context.Context, string, ...any) {}

// storeTimeout bounds what a command waits for a store to answer.
const storeTimeout = 3 * time.Second

// Stores are both stores as one command needs them. Nothing is connected before
// it is asked; Close ends what was opened.
type Stores struct {
	// Celery is Redis: control key, records, status.
	Celery *celery.Store
	// Replication makes and drops slot and publication.
	Replication *replication.Source

	config *Config
	redis  *redis.Client
	rows   *postgres.Store
}

// OpenStores reads the configuration's URLs.
func OpenStores(c *Config, log *slog.Logger) (*Stores, error) {
	client, err := NewRedis(c)
	if err != nil {
		return nil, err
	}
	rows, err := postgres.New(postgres.Options{
		URL: c.Postgres.URL.Reveal(), Bindings: Bindings(c), MaxConns: 1,
		StatementTimeout: storeTimeout, LockTimeout: storeTimeout,
	})
	if err != nil {
		_ = client.Close()
		return nil, fmt.Errorf("open the stores: %w", err)
	}
	return &Stores{
		Celery: NewStore(c, client), Replication: NewReplication(c, log), config: c, redis: client, rows: rows,
	}, nil
}

// Close ends all connections.
func (s *Stores) Close() error {
	s.rows.Close()
	if err := s.redis.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("close redis: %w", err)
	}
	return nil
}

// Bounded is ctx for one question to a store.
func Bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, storeTimeout)
}

// What the commands show of Redis.
type (
	// Restored is what came back of one task or row.
	Restored = celery.Restored
	// RestoredKey is one key of it.
	RestoredKey = celery.RestoredKey
	// HistoryEntry is what is remembered of one task or row.
	HistoryEntry = celery.Entry
	// ControlState is what the control key says.
	ControlState = celery.State
)

// Accept lets through, once, what the guard holds, and ends a pause.
func (s *Stores) Accept(ctx context.Context, paused bool) error {
	if err := s.Celery.AcceptAbsent(ctx); err != nil || !paused {
		return err
	}
	return s.Celery.Resume(ctx)
}
