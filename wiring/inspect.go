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
	return &Stores{
		Celery: NewStore(c, client), Replication: NewReplication(c, log), config: c, redis: client,
	}, nil
}

// Close ends all connections.
func (s *Stores) Close() error {
	if s.rows != nil {
		s.rows.Close()
	}
	if err := s.redis.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("close redis: %w", err)
	}
	return nil
}

// openRows connects to PostgreSQL for lookups; each statement is bounded.
func (s *Stores) openRows(ctx context.Context) (*postgres.Store, error) {
	if s.rows == nil {
		rows, err := postgres.New(ctx, postgres.Options{
			URL: s.config.Postgres.URL.Reveal(), Bindings: Bindings(s.config), MaxConns: 1,
			StatementTimeout: storeTimeout, LockTimeout: storeTimeout,
		})
		if err != nil {
			return nil, err
		}
		s.rows = rows
	}
	return s.rows, nil
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
