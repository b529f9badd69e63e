package wiring

import (
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/term"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/reconciler/celery"
	"github.com/orphanwatch/orphanwatch/reconciler/postgres"
	"github.com/orphanwatch/orphanwatch/watcher"
	"github.com/orphanwatch/orphanwatch/watcher/keyspace"
	"github.com/orphanwatch/orphanwatch/watcher/replication"
)

// Sizes of one process. The queue holds at most two times queueLimit entries,
// some 250 bytes each; memory remembers fingerprints of 16 bytes.
const (
	queueLimit    = 25_000
	memoryLimit   = 8 * queueLimit
	workers       = 2
	drainTimeout  = 4 * time.Second
	rowLookConns  = 6
	childConns    = 2
	redisPoolSize = 8
)

// Version is what the binary was built from; main sets it.
type Version string

// Instance names this process among the copies.
type Instance string

// NewInstance is the host's name, and what makes it this process.
func NewInstance() Instance {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return Instance(fmt.Sprintf("%s-%d-%s", host, os.Getpid(), rand.Text()[:4]))
}

// NewLog logs to w, as the configuration says. Lines of a trace hold its ids.
func NewLog(c *Config, w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Log.Level)) // Load has checked it
	opts := &slog.HandlerOptions{Level: level}
	asText := c.Log.Format == "text"
	if f, ok := w.(*os.File); ok && c.Log.Format == "auto" {
		asText = term.IsTerminal(int(f.Fd())) //nolint:gosec // a file descriptor fits
	}
	if asText {
		return slog.New(traced{slog.NewTextHandler(w, opts)})
	}
	return slog.New(traced{slog.NewJSONHandler(w, opts)})
}

// Bindings are the configured ones, as the reconciler knows them.
func Bindings(c *Config) []reconciler.Binding {
	bindings := make([]reconciler.Binding, len(c.Tasks))
	for i, t := range c.Tasks {
		schema, table, _ := strings.Cut(t.Table, ".")
		b := reconciler.Binding{
			Schema: schema, Table: table, Key: t.Key, Names: t.Names,
			Exclusive: t.Exclusive, Companions: t.Companions, Children: t.Children,
		}
		for _, text := range t.Match {
			switch m, _ := ParseMatch(text); m.Kind {
			case MatchCeleryID:
				b.CeleryID = true
			case MatchColumn:
				b.Columns = append(b.Columns, m.Name)
			case MatchArgs:
				b.Args = append(b.Args, m.Position)
			case MatchKwargs:
				b.Kwargs = append(b.Kwargs, m.Name)
			}
		}
		bindings[i] = b
	}
	return bindings
}

// NewRedis is a client of the Redis that holds the results, and our own keys
// beside them: a removal and its record are one step.
func NewRedis(c *Config) (*redis.Client, error) { return newRedis(c.Redis.Results()) }

// BrokerClient is a client of the Redis that is the broker.
type BrokerClient struct{ *redis.Client }

// NewBrokerClient is one, even where the results are in the same place: what is
// done with messages never waits for a connection.
func NewBrokerClient(c *Config) (BrokerClient, error) {
	client, err := newRedis(c.Redis.Broker())
	return BrokerClient{client}, err
}

func newRedis(url Secret) (*redis.Client, error) {
	opts, err := redis.ParseURL(url.Reveal())
	if err != nil {
		return nil, fmt.Errorf("redis URL: %w", err)
	}
	opts.ContextTimeoutEnabled = true
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout = 5*time.Second, 5*time.Second, 5*time.Second
	opts.MaxRetries = -1 // retries are the queue's: a second try must look anew
	opts.PoolSize = redisPoolSize
	opts.DisableIdentity = true
	client := redis.NewClient(opts)
	client.AddHook(beats{})
	return client, nil
}

// NewStore is Redis as the reconciler needs it.
func NewStore(c *Config, client *redis.Client, broker *celery.Broker) *celery.Store {
	return celery.New(celery.Options{
		Client: client, Broker: broker, Bindings: Bindings(c), ResultKeyPrefix: c.Celery.ResultKeyprefix,
		Quarantine: c.Policy.Quarantine, Remember: c.Policy.Remember, ScanShare: c.Redis.Share,
	})
}

// NewBroker is the Redis that holds the messages.
func NewBroker(c *Config, client BrokerClient) *celery.Broker {
	return celery.NewBroker(celery.BrokerOptions{
		Client: client.Client, DB: client.Options().DB, Bindings: Bindings(c), KeyPrefix: c.Celery.GlobalKeyprefix,
		Queues: c.Celery.Queues, PrioritySteps: c.Celery.PrioritySteps, Sep: c.Celery.Sep,
		ControlExchange: c.Celery.ControlExchange, Terminate: c.Celery.Terminate,
		Quarantine: c.Policy.Quarantine, Share: c.Redis.Share,
	})
}

// NewRows is PostgreSQL as the reconciler needs it. It does not connect yet.
func NewRows(c *Config) (*postgres.Store, error) {
	return postgres.New(postgres.Options{URL: c.Postgres.URL.Reveal(), Bindings: Bindings(c), MaxConns: rowLookConns})
}

// ChildRows is PostgreSQL for what takes long: counting and cleaning child rows.
type ChildRows struct{ *postgres.Store }

// NewChildRows has connections of its own, so that lookups never wait for them.
func NewChildRows(c *Config) (ChildRows, error) {
	rows, err := postgres.New(postgres.Options{URL: c.Postgres.URL.Reveal(), Bindings: Bindings(c), MaxConns: childConns})
	return ChildRows{rows}, err
}

// NewReplication is the source of deletes, and the leadership.
func NewReplication(c *Config, pulse *watcher.Pulse, log *slog.Logger) *replication.Source {
	return replication.New(replication.Options{
		URL: c.Postgres.URL.Reveal(), Slot: c.Replication.Slot, Publication: c.Replication.Publication,
		MaxWAL: int64(c.Replication.MaxWAL), Bindings: Bindings(c), Pulse: pulse, Log: log,
	})
}

// KeyspaceOptions are those of the source of keys.
func KeyspaceOptions(c *Config, client *redis.Client, store *celery.Store, log *slog.Logger) keyspace.Options {
	return keyspace.Options{Client: client, Keys: store.Keys, Configure: c.Redis.Configure, Both: oneServer(c), Log: log}
}

// oneServer tells whether results and messages are in one Redis, in whatever databases.
func oneServer(c *Config) bool {
	results, err1 := redis.ParseURL(c.Redis.Results().Reveal())
	messages, err2 := redis.ParseURL(c.Redis.Broker().Reveal())
	return err1 == nil && err2 == nil && results.Addr == messages.Addr
}

// BrokerOptions are those of the source of messages.
func BrokerOptions(c *Config, client BrokerClient, broker *celery.Broker, log *slog.Logger) keyspace.Options {
	return keyspace.Options{
		Client: client.Client, Keys: broker, Lists: true, Configure: c.Redis.Configure, Both: oneServer(c), Log: log,
		Prefix: c.Celery.GlobalKeyprefix, Publish: []string{broker.ControlChannel()},
	}
}

// NewReconciler is the one service.
func NewReconciler(c *Config, store *celery.Store, broker *celery.Broker, rows *postgres.Store, children ChildRows, log *slog.Logger) (*reconciler.Reconciler, error) {
	policy := reconciler.Policy{
		Remove: reconciler.Remove(c.Policy.Remove), Grace: c.Policy.Grace, InflightLimit: c.Policy.InflightLimit,
		MaxAbsentRatio: c.Policy.MaxAbsentRatio, MinSample: c.Policy.MinSample,
		RemoveChords: c.Policy.Chords == "remove",
	}
	stores, err := storeAttributes(c)
	if err != nil {
		return nil, err
	}
	return reconciler.New(reconciler.Options{
		Bindings: Bindings(c), Stores: stores, Policy: policy, Artifacts: store, Rows: rows, Scanner: store, Pages: store, Tables: rows, Results: store,
		Children: children,
		Messages: broker, FindQueues: broker.Discover, Queues: broker,
		RecordIdentity: store.RecordIdentity,
		Guard:          reconciler.NewGuard(policy, nil, time.Now),
		Memory:         reconciler.NewMemory(memoryLimit), Log: log,
	})
}

// NewDesk is where orders arrive.
func NewDesk(store *celery.Store, broker *celery.Broker, rows *postgres.Store, r *reconciler.Reconciler, instance Instance, version Version, log *slog.Logger) *Desk {
	return &Desk{Store: store, Broker: broker, Reconciler: r, Tables: rows, Instance: string(instance), Version: string(version), Log: log}
}

// NewController joins the sources, the queue and the reconciler.
func NewController(c *Config, repl *replication.Source, client *redis.Client, store *celery.Store, brokerClient BrokerClient, broker *celery.Broker, r *reconciler.Reconciler, desk *Desk, pulse *watcher.Pulse, log *slog.Logger) (*watcher.Controller, error) {
	results, messages := KeyspaceOptions(c, client, store, log), BrokerOptions(c, brokerClient, broker, log)
	results.Pulse, messages.Pulse = pulse, pulse
	return watcher.New(watcher.Options{
		Leadership: repl, Keyspace: keyspace.New(results), Judge: r, Desk: desk,
		Broker: keyspace.New(messages), Queues: broker, FindQueues: broker.Discover,
		Remember: r.Memory.Add, Pulse: pulse, Log: log,
		QueueLimit: queueLimit, Workers: workers, ResyncInterval: c.Policy.ResyncInterval, Grace: c.Policy.Grace,
		ObserveFirst: !c.Policy.CleanupOnStartup, DrainTimeout: drainTimeout,
	})
}
