package wiring

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLoadErrors has a case for each class of mistake, with the whole text.
func TestLoadErrors(t *testing.T) {
	for _, tc := range []struct {
		name    string
		file    string
		environ []string // besides DATABASE_URL
		want    string   // after "configuration: "
	}{
		{"key misspelt", "policy: {grce: 5s}", nil, "c.yaml:policy.grce: unknown key; did you mean policy.grace?"},
		{"key in no section", "grace: 5s", nil, "c.yaml:grace: unknown key; did you mean policy.grace?"},
		{"key with dots", "policy.grace: 5s", nil, "c.yaml:policy.grace: unknown key; write the key inside its section"},
		{"section misspelt", "polcy: {}", nil, "c.yaml:polcy: unknown key; did you mean policy?"},
		{"key like nothing", "zzzzzzzz: 1", nil, "c.yaml:zzzzzzzz: unknown key; remove it"},
		{"key of a binding", "tasks: [{table: a, mtach: [celery_id]}]", nil, "c.yaml:tasks[0].mtach: unknown key; did you mean tasks[0].match?"},
		{"section that is none", "policy: 5s", nil, "c.yaml:policy: must be a section, found text; write its keys on lines of their own below it, indented"},
		{"bindings that are none", "tasks: scan", nil, `c.yaml:tasks: must be a list of bindings, found text; write each binding below tasks, the first key after "- "`},
		{"binding that is none", "tasks: [scan]", nil, "c.yaml:tasks[0]: must be a binding, found text; write its keys: table, key, match, …"},
		{"variable misspelt", "", []string{"ORPHANWATCH_POLICY_GRCE=5s"}, "ORPHANWATCH_POLICY_GRCE: unknown variable; did you mean ORPHANWATCH_POLICY_GRACE?"},
		{"variable without section", "", []string{"ORPHANWATCH_GRACE=5s"}, "ORPHANWATCH_GRACE: unknown variable; did you mean ORPHANWATCH_POLICY_GRACE?"},
		{"variable of no key", "", []string{"ORPHANWATCH_ZZZZZZZZZZZZ="}, "ORPHANWATCH_ZZZZZZZZZZZZ: unknown variable; remove it"},
		{"not YAML", "a: [", nil, "c.yaml: yaml: line 1: did not find expected node content; mend the YAML"},
		{"no mapping", "hunter2", nil, "c.yaml: yaml: unmarshal errors: line 1: cannot unmarshal !!str … into map[string]interface {}; mend the YAML: it must be sections with keys"},
		{"two documents", "policy: {}\n---\npolicy: {}", nil, "c.yaml: there is more than one YAML document; mend the YAML"},
		{"key twice", "log: {level: info}\nlog: {level: info}", nil, `c.yaml: yaml: unmarshal errors: line 2: mapping key "log" already defined at line 1; mend the YAML: it must be sections with keys`},

		{"duration without unit", "policy: {grace: 5}", nil, `c.yaml:policy.grace: "5" has no unit; write 5s for seconds (units: ms, s, m, h)`},
		{"duration without unit, variable", "", []string{"ORPHANWATCH_POLICY_GRACE=2.5"}, `ORPHANWATCH_POLICY_GRACE: "2.5" has no unit; write 2.5s for seconds (units: ms, s, m, h)`},
		{"duration in days", "policy: {remember: 7d}", nil, `c.yaml:policy.remember: "7d" is not a duration: there is no unit for days; write 168h`},
		{"no duration", "policy: {grace: soon}", nil, `c.yaml:policy.grace: "soon" is not a duration; write a number with a unit (ms, s, m, h), such as 5s or 1h30m`},
		{"duration of another kind", "policy: {grace: true}", nil, "c.yaml:policy.grace: must be a duration, found true or false; write a number with a unit, such as 5s"},
		{"negative duration", "policy: {grace: -5s}", nil, "c.yaml:policy.grace: is negative; write 0 or more, such as 5s"},
		{"short interval", "policy: {resync_interval: 0}", nil, "c.yaml:policy.resync_interval: 0s is too short; write 1s or more; 5m is usual"},
		{"remember too short", "policy: {quarantine: 48h}", nil, "policy.remember: 24h is less than policy.quarantine (48h); make it at least as long, or policy.quarantine shorter"},
		{"size without unit", "replication: {max_wal: 1024}", nil, `c.yaml:replication.max_wal: "1024" has no unit; write 1024MiB or 1024B, whichever you mean`},
		{"size with another unit", "replication: {max_wal: 1GG}", nil, `c.yaml:replication.max_wal: "GG" is not a unit of size; write a number with a unit: B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024), such as 1GiB`},
		{"size of nothing", "replication: {max_wal: 0}", nil, "c.yaml:replication.max_wal: must be more than 0; write 1GiB, or how much disk the database can spare for WAL"},
		{"no number", "", []string{"ORPHANWATCH_POLICY_MIN_SAMPLE=many"}, `ORPHANWATCH_POLICY_MIN_SAMPLE: "many" is not a whole number; write digits only`},
		{"no boolean", "", []string{"ORPHANWATCH_HTTP_INSECURE=maybe"}, `ORPHANWATCH_HTTP_INSECURE: "maybe" is neither true nor false; write true or false`},
		{"ratio of nothing", "policy: {max_absent_ratio: 0}", nil, "c.yaml:policy.max_absent_ratio: 0 is not a share; write a number above 0 and up to 1, such as 0.5"},
		{"ratio not a number", "policy: {max_absent_ratio: .nan}", nil, "c.yaml:policy.max_absent_ratio: NaN is not a share; write a number above 0 and up to 1, such as 0.5"},
		{"negative sample", "policy: {min_sample: -1}", nil, "c.yaml:policy.min_sample: is negative; write 0 or more"},
		{"age", "policy: {max_age_hours: 169}", nil, "c.yaml:policy.max_age_hours: 169 is out of range; write 1 to 168 (a week)"},
		{"text that is a number", "replication: {slot: 7}", nil, "c.yaml:replication.slot: must be text, found a number; put it in quotes if it is meant as text"},
		{"list that is none", "celery: {queues: a}", nil, "c.yaml:celery.queues: must be a list, found text; write a list: [a, b]"},
		{"element that is a section", "tasks: [{table: a, match: [column: c]}]", nil, "c.yaml:tasks[0].match: element 1: must be text, found a section; each element must be text; put text that holds a colon in quotes"},

		{"remove", "policy: {remove: some}", nil, `c.yaml:policy.remove: "some" is not a value of this key; write all, deleted or none`},
		{"configure", "redis: {configure: on}", nil, `c.yaml:redis.configure: "on" is not a value of this key; write auto or never`},
		{"terminate", "", []string{"ORPHANWATCH_CELERY_TERMINATE=TERM"}, `ORPHANWATCH_CELERY_TERMINATE: "TERM" is not a value of this key; write off, SIGTERM or SIGKILL`},
		{"log level", "log: {level: loud}", nil, `c.yaml:log.level: "loud" is not a value of this key; write debug, info, warn or error`},
		{"slot", "replication: {slot: My-Slot}", nil, `c.yaml:replication.slot: "My-Slot" cannot be the name of a slot; use lower-case letters, digits and underscores, at most 63`},
		{"publication", `replication: {publication: ""}`, nil, `c.yaml:replication.publication: "" cannot be the name of a publication; use at most 63 letters, digits and underscores`},
		{"priority steps", "celery: {priority_steps: [3,0]}", nil, "c.yaml:celery.priority_steps: must rise from 0 to at most 9; write the broker transport option priority_steps as it is, such as [0,3,6,9]"},
		{"separator", `celery: {sep: '\x06\x16'}`, nil, `c.yaml:celery.sep: "\\x06\\x16" cannot be kombu's separator; write "\x06\x16" in double quotes, or the broker transport option sep as it is`},
		{"exchange", `celery: {control_exchange: ""}`, nil, "c.yaml:celery.control_exchange: is empty; write celery, or Celery's setting control_exchange as it is"},
		{"address", "http: {addr: 8000}", nil, "c.yaml:http.addr: must be text, found a number; put it in quotes if it is meant as text"},
		{"address without port", "http: {addr: localhost}", nil, `c.yaml:http.addr: "localhost" is not host:port; write 127.0.0.1:8000`},
		{"address beyond loopback", `http: {addr: ":8000"}`, nil, `c.yaml:http.addr: ":8000" is reachable from other machines, without TLS; listen on 127.0.0.1, or set http.tls_cert and http.tls_key, or set http.insecure: true (ORPHANWATCH_HTTP_INSECURE=true) where the network is trusted`},

		{"binding without table", "tasks: [{key: id}]", nil, "tasks[0].table: is not set; write schema.table, such as public.scan_tasks"},
		{"table", "", []string{"ORPHANWATCH_TABLE=a.b.c"}, `ORPHANWATCH_TABLE: "a.b.c" is not a table's name; write schema.table as the catalog has it, without quotes`},
		{"key column", `tasks: [{table: a, key: ""}]`, nil, `c.yaml:tasks[0].key: "" is not a column's name; write the name of the key column, such as id`},
		{"no match", "tasks: [{table: a, match: []}]", nil, "c.yaml:tasks[0].match: is empty; write any of celery_id, column:C, args:N, kwargs:K"},
		{"match", "", []string{"ORPHANWATCH_MATCH=celery-id"}, `ORPHANWATCH_MATCH: "celery-id" is not a way to match; write any of celery_id, column:C, args:N, kwargs:K`},
		{"match by arguments", "", []string{"ORPHANWATCH_MATCH=args:0"}, "tasks[0].names: is empty, but match has args:0; name the Celery tasks whose argument is the row's key"},
		{"match by keyword", "tasks: [{table: a, match: ['kwargs:task_id']}]", nil, "tasks[0].names: is empty, but match has kwargs:task_id; name the Celery tasks whose argument is the row's key"},
		{"share", "redis: {share: 2}", nil, "c.yaml:redis.share: 2 is not a share; write a number above 0 and up to 1, such as 0.5"},
		{"task name", "tasks: [{table: a, names: ['a b']}]", nil, `c.yaml:tasks[0].names: "a b" is not the name of a Celery task; write names such as app.tasks.scan`},
		{"child", "", []string{"ORPHANWATCH_CHILDREN=task_logs"}, `ORPHANWATCH_CHILDREN: "task_logs" is not a column of a table; write table.column or schema.table.column`},
		{"same binding twice", "tasks: [{table: a}, {table: public.a, key: k}]", nil, "c.yaml:tasks[1].table: public.a is bound by tasks[0] too, with the same match and names; make one binding of the two, or give each its own names"},
		{"companion without key", "", []string{"ORPHANWATCH_COMPANIONS=task_created"}, `ORPHANWATCH_COMPANIONS: "task_created" does not hold {key}; write where the row's key stands, such as task_created:{key}`},
		{"companion without prefix", "", []string{"ORPHANWATCH_COMPANIONS=a:{key}"}, `ORPHANWATCH_COMPANIONS: "a:{key}" has fewer than 3 characters before {key}; write a longer fixed beginning, such as task_created:{key}`},
		{"companion pattern", "", []string{"ORPHANWATCH_COMPANIONS=task:{key}:*"}, `ORPHANWATCH_COMPANIONS: "task:{key}:*" is a pattern; name each key; there are no wildcards`},
		{"companion of Celery", "", []string{"ORPHANWATCH_COMPANIONS=celery-task-meta-{key}"}, `ORPHANWATCH_COMPANIONS: "celery-task-meta-{key}" may name keys that are not the application's (celery-task…); remove it`},
		{"companion of ours", "", []string{"ORPHANWATCH_COMPANIONS=orphanwatch:{key}"}, `ORPHANWATCH_COMPANIONS: "orphanwatch:{key}" may name keys that are not the application's (orphanwatch:…); remove it`},
		{"companion of anybody", "", []string{"ORPHANWATCH_COMPANIONS=unac{key}"}, `ORPHANWATCH_COMPANIONS: "unac{key}" may name keys that are not the application's (unacked…); remove it`},

		{"all at once", "polcy: {}\npolicy: {grace: 5}", []string{"ORPHANWATCH_X=1", "ORPHANWATCH_TABLE=a.b.c", "ORPHANWATCH_COMPANIONS=a,b"}, `6 problems
  ORPHANWATCH_X: unknown variable; remove it
  c.yaml:polcy: unknown key; did you mean policy?
  c.yaml:policy.grace: "5" has no unit; write 5s for seconds (units: ms, s, m, h)
  ORPHANWATCH_TABLE: "a.b.c" is not a table's name; write schema.table as the catalog has it, without quotes
  ORPHANWATCH_COMPANIONS: "a" does not hold {key}; write where the row's key stands, such as task_created:{key}
  ORPHANWATCH_COMPANIONS: "b" does not hold {key}; write where the row's key stands, such as task_created:{key}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := loadText(tc.file, append(tc.environ, database)...)
			require.Nil(t, c)
			require.EqualError(t, err, "configuration: "+tc.want)
		})
	}
}

func TestLoadWithoutDatabase(t *testing.T) {
	_, err := loadText("")
	require.EqualError(t, err, "configuration: postgres.url: is not set; set DATABASE_URL (or DATABASE_URL_FILE), or postgres.url in the file: postgres://user:password@host:5432/database")
	_, err = Load(LoadOptions{Path: "testdata/none.yaml"})
	require.EqualError(t, err, "configuration: testdata/none.yaml: cannot be read: open testdata/none.yaml: no such file or directory; give the path of a readable file with --config or ORPHANWATCH_CONFIG")
}

func TestPostgresURLs(t *testing.T) {
	for in, want := range map[string]string{
		"postgresql+asyncpg://u:p@h/d":                                     "postgres://u:p@h/d",
		"postgresql+psycopg2://u:p@h/d?connect_timeout=5":                  "postgres://u:p@h/d?connect_timeout=5",
		"postgresql+psycopg://u@h/d?ssl=verify-full":                       "postgres://u@h/d?sslmode=verify-full",
		"PostgreSQL://u:p%40@h/d?statement_cache_size=0":                   "postgres://u:p%40@h/d",
		" postgres://a:1,b:2/d?sslmode=disable&application_name=a%20b\n":   "postgres://a:1,b:2/d?sslmode=disable&application_name=a%20b",
		"postgres:///d?host=/run/postgresql&prepared_statement_cache_size": "postgres:///d?host=/run/postgresql",
	} {
		got, bad := normalizePostgres(in)
		require.Nil(t, bad, in)
		require.Equal(t, want, got)
	}
	for in, want := range map[string]string{
		"host=h password=hunter2":                        "is not a URL",
		"mysql://u:hunter2@h/d":                          "is not a PostgreSQL URL (found mysql://)",
		"hunter2=!://h/d":                                "is not a PostgreSQL URL",
		"postgres://u:hunter2#@h/d":                      "is not a valid URL",
		"postgres://u:hunter2/@h/d":                      "is not a valid URL",
		"postgres://u:hunter2%zz@h/d":                    "is not a valid URL",
		"postgres://u:hunter2@h/d?a=%zz":                 "is not a valid URL (its parameters cannot be read)",
		"postgres://u:hunter2@h/d?ssl=true":              "ssl has a value that is not known",
		"postgres://u:hunter2@h/d?ssl=require&sslmode=a": "has both ssl and sslmode",
	} {
		_, bad := normalizePostgres(in)
		require.NotNil(t, bad, in)
		require.Equal(t, want, bad.what)
		require.NotContains(t, bad.what+bad.fix, "hunter2")
	}
}

func TestRedisURLs(t *testing.T) {
	for in, want := range map[string]string{
		"redis://": "redis://",
		"redis://:p@h:6379/3?health_check_interval=5": "redis://:p@h:6379/3",
		"redis://h?virtual_host=/2":                   "redis://h?db=2",
		"redis+socket:///a/b.sock?virtual_host=2":     "unix:///a/b.sock?db=2",
		"redis+socket://:p@/a/b.sock":                 "unix://:p@/a/b.sock",
		"unix:///a/b.sock?db=1&read_timeout=2s":       "unix:///a/b.sock?db=1&read_timeout=2s",
	} {
		got, bad := normalizeRedis(in)
		require.Nil(t, bad, "%s %v", in, bad)
		require.Equal(t, want, got)
	}
	for in, want := range map[string]string{
		"hunter2":                        "is not a URL",
		"amqp://u:hunter2@h//":           "is not a Redis URL (found amqp://): orphanwatch looks after brokers and result backends in Redis only",
		"rediss://:hunter2@h":            "not supported yet: TLS to Redis (rediss://)",
		"sentinel://:hunter2@h:26379":    "not supported yet: Redis Sentinel",
		"redis+sentinel://:hunter2@h":    "not supported yet: Redis Sentinel",
		"redis+cluster://:hunter2@h":     "not supported: Redis Cluster (Celery does not run on it)",
		"redis://:hunter2@a;redis://b":   "holds several URLs, separated by semicolons",
		"redis://:hunter2#@h":            "is not a valid URL",
		"redis://:hunter2/@h":            "is not a valid URL",
		"redis://h/hunter2":              "the database after the slash is not a number",
		"redis://h?virtual_host=hunter2": "the database is not a number",
		"redis://h?hunter2=1":            "is not a URL that the Redis client understands",
		"unix://run/redis.sock":          "names no socket",
		"unix://?db=1":                   "names no socket",
	} {
		_, bad := normalizeRedis(in)
		require.NotNil(t, bad, in)
		require.Equal(t, want, bad.what)
		require.NotContains(t, bad.what+bad.fix, "hunter2")
	}
}
