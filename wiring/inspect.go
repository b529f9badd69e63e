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
	// Broker is Redis with the messages.
	Broker *celery.Broker
	// Replication makes and drops slot and publication.
	Replication *replication.Source

	config *Config
	redis  *redis.Client
	broker BrokerClient
	rows   *postgres.Store
}

// OpenStores reads the configuration's URLs.
func OpenStores(c *Config, log *slog.Logger) (*Stores, error) {
	client, err := NewRedis(c)
	if err != nil {
		return nil, err
	}
	brokerClient, err := NewBrokerClient(c)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	rows, err := postgres.New(postgres.Options{
		URL: c.Postgres.URL.Reveal(), Bindings: Bindings(c), MaxConns: 1,
		StatementTimeout: storeTimeout, LockTimeout: storeTimeout,
	})
	if err != nil {
		_, _ = client.Close(), brokerClient.Close()
		return nil, fmt.Errorf("open the stores: %w", err)
	}
	broker := NewBroker(c, brokerClient)
	return &Stores{
		Celery: NewStore(c, client, broker), Replication: NewReplication(c, nil, log), config: c, redis: client, rows: rows,
		Broker: broker, broker: brokerClient,
	}, nil
}

// Close ends all connections.
func (s *Stores) Close() error {
	s.rows.Close()
	for _, client := range []*redis.Client{s.redis, s.broker.Client} {
		if err := client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
			return fmt.Errorf("close redis: %w", err)
		}
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
	// PurgedQueue is what a purge took out of one list of a queue.
	PurgedQueue = celery.Purged
	// ControlState is what the control key says.
	ControlState = celery.State
)

// Accept lets through, once, what the guard holds, and ends a pause.
func (s *Stores) Accept(ctx context.Context, paused bool) error {
	if err := s.Celery.AcceptAbsent(ctx); err != nil || !paused {
		return err
	}
	return s.Resume(ctx)
}

// Pause stops all removals, in both places.
func (s *Stores) Pause(ctx context.Context, by string) error {
	if err := s.Celery.Pause(ctx, by); err != nil {
		return err
	}
	return s.Broker.Pause(ctx, by)
}

// Resume ends a pause, and asks for a pass.
func (s *Stores) Resume(ctx context.Context) error {
	if err := s.Broker.Resume(ctx); err != nil {
		return err
	}
	return s.Celery.Resume(ctx)
}
