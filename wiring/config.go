package wiring

import "time"

// Config is the whole configuration, as design §5 names it. Load fills it; the
// values are plain, so that each part of the daemon is handed what it needs and
// never the Config itself.
type Config struct {
	Postgres    PostgresConfig    `yaml:"postgres"`
	Replication ReplicationConfig `yaml:"replication"`
	Redis       RedisConfig       `yaml:"redis"`
	Tasks       []TaskConfig      `yaml:"tasks"`
	Celery      CeleryConfig      `yaml:"celery"`
	Policy      PolicyConfig      `yaml:"policy"`
	HTTP        HTTPConfig        `yaml:"http"`
	Log         LogConfig         `yaml:"log"`
}

// PostgresConfig says where the rows are.
type PostgresConfig struct {
	// URL is a postgres:// URL of the primary. Required.
	URL Secret `yaml:"url" env:"DATABASE_URL"`
}

// ReplicationConfig says how deletes are followed.
type ReplicationConfig struct {
	// Slot is the logical replication slot: lower-case letters, digits, underscores.
	Slot string `yaml:"slot"`
	// Publication lists the bound tables.
	Publication string `yaml:"publication"`
	// MaxWAL is how much write-ahead log, in bytes, the slot may hold back
	// before the position is released early and a gap is declared.
	MaxWAL ByteSize `yaml:"max_wal"`
}

// RedisConfig says where the artifacts are. The URLs are as go-redis reads them
// (redis:// or unix://).
type RedisConfig struct {
	// URL is what the other two are where they are not set. If nothing sets it, it is the result backend or
	// the broker where one of these is set, else redis://localhost:6379/0.
	URL Secret `yaml:"url" env:"REDIS_URL"`
	// BrokerURL is Celery's broker; empty means URL. See Broker.
	BrokerURL Secret `yaml:"broker_url" env:"CELERY_BROKER_URL"`
	// ResultBackend is Celery's result backend; empty means URL. See Results.
	ResultBackend Secret `yaml:"result_backend" env:"CELERY_RESULT_BACKEND"`
	// Configure is auto (missing notification flags are added) or never.
	Configure string `yaml:"configure" oneof:"auto never"`
	// Share is the part, in (0, 1], of a server's time that reading through its keys
	// and queues may take.
	Share float64 `yaml:"share"`
}

// Broker is the URL of the Redis that holds Celery's messages.
func (c RedisConfig) Broker() Secret {
	if c.BrokerURL.IsZero() {
		return c.URL
	}
	return c.BrokerURL
}

// Results is the URL of the Redis that holds Celery's results.
func (c RedisConfig) Results() Secret {
	if c.ResultBackend.IsZero() {
		return c.URL
	}
	return c.ResultBackend
}

// TaskConfig is a binding: which table holds the rows of a kind of task, and
// how a task id leads to a row.
type TaskConfig struct {
	// Table is schema.table, as in the catalog (no quotes); Load adds the
	// schema public where there is none.
	Table string `yaml:"table"`
	// Key is the column that identifies a row.
	Key string `yaml:"key"`
	// Match is how a task id leads to a row; any of celery_id, column:C. See ParseMatch.
	Match []string `yaml:"match"`
	// Names are the Celery task names of this binding; empty means any.
	Names []string `yaml:"names"`
	// Exclusive: this place in Redis holds no other tasks than these.
	Exclusive bool `yaml:"exclusive"`
	// Children are schema.table.column of child rows; empty means that they
	// are found from the foreign keys.
	Children []string `yaml:"children"`
	// Companions are further Redis keys of a row, with {key} for its key.
	Companions []string `yaml:"companions"`
}

// CeleryConfig repeats the settings of the application's Celery that decide
// how keys and messages look.
type CeleryConfig struct {
	// GlobalKeyprefix is the broker's transport option global_keyprefix.
	GlobalKeyprefix string `yaml:"global_keyprefix"`
	// ResultKeyprefix is what stands before celery-task-meta-, with its separator.
	ResultKeyprefix string `yaml:"result_keyprefix"`
	// Queues are the queues to look at; empty means that they are found from the bindings.
	Queues []string `yaml:"queues"`
	// PrioritySteps and Sep make the names of priority queues.
	PrioritySteps []int  `yaml:"priority_steps"`
	Sep           string `yaml:"sep"`
	// ControlExchange is the name before .pidbox, on which revokes are published.
	ControlExchange string `yaml:"control_exchange"`
	// Terminate is off, or the signal that a revoke sends to a running task.
	Terminate string `yaml:"terminate" oneof:"off SIGTERM SIGKILL"`
}

// PolicyConfig says what is removed, when, and what stops it.
type PolicyConfig struct {
	// Remove is all, deleted (only on evidence from the WAL) or none (decide, never act).
	Remove string `yaml:"remove" oneof:"all deleted none"`
	// Grace is how long a key without a row is left alone.
	Grace time.Duration `yaml:"grace"`
	// ResyncInterval is the time between two full passes; at least a second.
	ResyncInterval time.Duration `yaml:"resync_interval"`
	// FullCleanupInterval is the time between two full cleanups; 0 means never.
	FullCleanupInterval time.Duration `yaml:"full_cleanup_interval"`
	// MaxAgeHours is the age in hours, 1 to 168, past which a result is expired.
	MaxAgeHours int `yaml:"max_age_hours"`
	// CleanupOnStartup: false means that the resync at start only observes.
	CleanupOnStartup bool `yaml:"cleanup_on_startup"`
	// Quarantine is how long originals are kept for restore; 0 means not at all.
	Quarantine time.Duration `yaml:"quarantine"`
	// Remember is how long the bare fact of a removal is kept; never less than Quarantine.
	Remember time.Duration `yaml:"remember"`
	// InflightLimit is how long open transactions may hold a removal; 0 means for ever.
	InflightLimit time.Duration `yaml:"inflight_limit"`
	// MaxAbsentRatio, in (0, 1], of at least MinSample tasks may look orphaned
	// before the guard trips.
	MaxAbsentRatio float64 `yaml:"max_absent_ratio"`
	// MinSample is how many tasks the guard wants to see before it judges a ratio.
	MinSample int `yaml:"min_sample"`
	// Chords is keep or remove: what happens to a message of a chord's member.
	Chords string `yaml:"chords" oneof:"keep remove"`
}

// HTTPConfig is the HTTP listener.
type HTTPConfig struct {
	// Addr is host:port. Beyond loopback it needs TLSCert and TLSKey, or Insecure.
	Addr string `yaml:"addr"`
	// TokensFile holds the digests of the API's tokens; empty means that only
	// reads work, and only on loopback.
	TokensFile string `yaml:"tokens_file"`
	// Insecure allows plain HTTP beyond loopback.
	Insecure bool `yaml:"insecure"`
	// AuditFile is the append-only log of mutations; empty means lines of the daemon's log.
	AuditFile string `yaml:"audit_file"`
	// TLSCert and TLSKey are PEM files of the certificate with its chain, and of its
	// key; read again when they change. Empty means plain HTTP.
	TLSCert string `yaml:"tls_cert"`
	TLSKey  string `yaml:"tls_key"`
	// JWTSecret verifies the application's own JWTs (HS256), at least 32 bytes; empty
	// means that none are accepted.
	JWTSecret Secret `yaml:"jwt_secret"`
	// JWTIssuer and JWTAudience must be the JWT's iss and aud; empty means any.
	JWTIssuer   string `yaml:"jwt_issuer"`
	JWTAudience string `yaml:"jwt_audience"`
	// JWTScopes are those of a JWT without a scope claim.
	JWTScopes []string `yaml:"jwt_scopes"`
}

// LogConfig is how the daemon logs.
type LogConfig struct {
	// Level is debug, info, warn or error.
	Level string `yaml:"level" oneof:"debug info warn error"`
	// Format is json, text, or auto: text on a terminal, else json.
	Format string `yaml:"format" oneof:"auto json text"`
}

// DefaultRedisURL is what redis.url is where no Redis is configured at all.
const DefaultRedisURL = "redis://localhost:6379/0"

// Default is the configuration with nothing configured. It lacks postgres.url,
// which has no default.
func Default() *Config {
	return &Config{
		Replication: ReplicationConfig{Slot: "orphanwatch", Publication: "orphanwatch", MaxWAL: 1 << 30},
		Redis:       RedisConfig{URL: NewSecret(DefaultRedisURL), Configure: "auto", Share: 0.5},
		Tasks:       []TaskConfig{defaultTask("public.scan_tasks")},
		Celery: CeleryConfig{
			Queues:          []string{},
			PrioritySteps:   []int{0, 3, 6, 9},
			Sep:             "\x06\x16",
			ControlExchange: "celery",
			Terminate:       "off",
		},
		Policy: PolicyConfig{
			Remove:              "all",
			Grace:               5 * time.Second,
			ResyncInterval:      5 * time.Minute,
			FullCleanupInterval: 24 * time.Hour,
			MaxAgeHours:         24,
			CleanupOnStartup:    true,
			Quarantine:          time.Hour,
			Remember:            24 * time.Hour,
			InflightLimit:       10 * time.Minute,
			MaxAbsentRatio:      0.5,
			MinSample:           50,
			Chords:              "keep",
		},
		HTTP: HTTPConfig{Addr: "127.0.0.1:8000", JWTScopes: []string{"read"}},
		Log:  LogConfig{Level: "info", Format: "auto"},
	}
}

// defaultTask is a binding with nothing but its table set.
func defaultTask(table string) TaskConfig {
	return TaskConfig{
		Table: table, Key: "id", Match: []string{string(MatchCeleryID)},
		Names: []string{}, Children: []string{}, Companions: []string{},
	}
}
