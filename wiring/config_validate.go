package wiring

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// validate normalises the configuration and judges every key that decoded.
func (l *loader) validate() {
	l.validateStores()
	l.validateCelery()
	l.validatePolicy()
	l.validateHTTP()
	l.validateTasks()
}

var slotPattern = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

func (l *loader) validateStores() {
	c := l.config
	if c.Postgres.URL.IsZero() {
		l.refuse("postgres.url", "is not set", "set DATABASE_URL (or DATABASE_URL_FILE), or postgres.url in the file: "+strings.TrimPrefix(postgresForm, "write "))
	} else {
		l.normalize("postgres.url", &c.Postgres.URL, normalizePostgres)
	}
	l.normalize("redis.broker_url", &c.Redis.BrokerURL, normalizeRedis)
	l.normalize("redis.result_backend", &c.Redis.ResultBackend, normalizeRedis)
	// Who names one of Celery's places does not mean localhost for ours.
	if _, isSet := l.origin["redis.url"]; !isSet {
		if !c.Redis.ResultBackend.IsZero() {
			c.Redis.URL = c.Redis.ResultBackend
		} else if !c.Redis.BrokerURL.IsZero() {
			c.Redis.URL = c.Redis.BrokerURL
		}
	} else if c.Redis.URL.IsZero() {
		l.refuse("redis.url", "is empty", "leave the key out for "+DefaultRedisURL+", or "+redisForm)
	} else {
		l.normalize("redis.url", &c.Redis.URL, normalizeRedis)
	}

	if !slotPattern.MatchString(c.Replication.Slot) {
		l.refuse("replication.slot", quote(c.Replication.Slot)+" cannot be the name of a slot", "use lower-case letters, digits and underscores, at most 63")
	}
	if !identifier(c.Replication.Publication) {
		l.refuse("replication.publication", quote(c.Replication.Publication)+" cannot be the name of a publication", "use at most 63 letters, digits and underscores")
	}
	if inRange := c.Redis.Share > 0 && c.Redis.Share <= 1; !inRange { // NaN is not
		l.refuse("redis.share", strconv.FormatFloat(c.Redis.Share, 'g', -1, 64)+" is not a share", "write a number above 0 and up to 1, such as 0.5")
	}
	if c.Replication.MaxWAL <= 0 {
		l.refuse("replication.max_wal", "must be more than 0", "write 1GiB, or how much disk the database can spare for WAL")
	}
}

// normalize puts a URL into the one form that its client reads.
func (l *loader) normalize(path string, s *Secret, with func(string) (string, *fault)) {
	if s.IsZero() || l.bad[path] {
		return
	}
	text, bad := with(s.Reveal())
	if bad != nil {
		l.refuse(path, bad.what, bad.fix)
		*s = Secret{}
		return
	}
	*s = NewSecret(text)
}

func (l *loader) validateCelery() {
	c := l.config.Celery
	steps := c.PrioritySteps
	good := len(steps) > 0 && steps[0] == 0 && steps[len(steps)-1] <= 9
	for i := 1; i < len(steps); i++ {
		good = good && steps[i] > steps[i-1]
	}
	if !good {
		l.refuse("celery.priority_steps", "must rise from 0 to at most 9", "write the broker transport option priority_steps as it is, such as [0,3,6,9]")
	}
	if c.Sep == "" || strings.Contains(c.Sep, `\`) {
		l.refuse("celery.sep", quote(c.Sep)+" cannot be kombu's separator", `write "\x06\x16" in double quotes, or the broker transport option sep as it is`)
	}
	if c.ControlExchange == "" {
		l.refuse("celery.control_exchange", "is empty", "write celery, or Celery's setting control_exchange as it is")
	}
	for _, q := range c.Queues {
		if q == "" {
			l.refuse("celery.queues", "holds an empty name", "remove it")
		}
	}
}

func (l *loader) validatePolicy() {
	p := l.config.Policy
	for _, d := range []struct {
		path  string
		value time.Duration
	}{
		{"policy.grace", p.Grace},
		{"policy.full_cleanup_interval", p.FullCleanupInterval},
		{"policy.quarantine", p.Quarantine},
		{"policy.remember", p.Remember},
		{"policy.inflight_limit", p.InflightLimit},
	} {
		if d.value < 0 {
			l.refuse(d.path, "is negative", "write 0 or more, such as 5s")
		}
	}
	if p.ResyncInterval < time.Second {
		l.refuse("policy.resync_interval", formatDuration(p.ResyncInterval)+" is too short", "write 1s or more; 5m is usual")
	}
	if p.Remember < p.Quarantine && !l.bad["policy.quarantine"] {
		l.refuse("policy.remember", formatDuration(p.Remember)+" is less than policy.quarantine ("+formatDuration(p.Quarantine)+")", "make it at least as long, or policy.quarantine shorter")
	}
	if inRange := p.MaxAbsentRatio > 0 && p.MaxAbsentRatio <= 1; !inRange { // NaN is not
		l.refuse("policy.max_absent_ratio", strconv.FormatFloat(p.MaxAbsentRatio, 'g', -1, 64)+" is not a share", "write a number above 0 and up to 1, such as 0.5")
	}
	if p.MinSample < 0 {
		l.refuse("policy.min_sample", "is negative", "write 0 or more")
	}
	if p.MaxAgeHours < 1 || p.MaxAgeHours > 168 {
		l.refuse("policy.max_age_hours", strconv.Itoa(p.MaxAgeHours)+" is out of range", "write 1 to 168 (a week)")
	}
}

// maxTasks is how many bindings one daemon serves (reconciler.MaxBindings).
const maxTasks = 64

func (l *loader) validateTasks() {
	tasks := l.config.Tasks
	if len(tasks) > maxTasks {
		l.problem(l.where("tasks"), fmt.Sprintf("%d bindings are too many", len(tasks)), fmt.Sprintf("write at most %d", maxTasks))
	}
	for i := range tasks {
		l.validateTask(fmt.Sprintf("tasks[%d].", i), &tasks[i])
	}
	for i, a := range tasks {
		for j, b := range tasks[:i] {
			if overlap(a, b) {
				l.refuse(fmt.Sprintf("tasks[%d].table", i), fmt.Sprintf("%s is bound by tasks[%d] too, with the same match and names", a.Table, j),
					"make one binding of the two, or give each its own names")
			}
		}
	}
}

// overlap tells whether one task can belong to both bindings by the same rule.
func overlap(a, b TaskConfig) bool {
	return a.Table != "" && a.Table == b.Table && share(a.Match, b.Match) &&
		(len(a.Names) == 0 || len(b.Names) == 0 || share(a.Names, b.Names))
}

// share tells whether two lists have an element in common.
func share(a, b []string) bool {
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return true
			}
		}
	}
	return false
}

func (l *loader) validateTask(at string, t *TaskConfig) {
	if parts, ok := qualified(t.Table, 1); ok {
		t.Table = parts
	} else if t.Table == "" {
		l.refuse(at+"table", "is not set", "write schema.table, such as public.scan_tasks")
	} else {
		l.refuse(at+"table", quote(t.Table)+" is not a table's name", "write schema.table as the catalog has it, without quotes")
	}
	if !identifier(t.Key) {
		l.refuse(at+"key", quote(t.Key)+" is not a column's name", "write the name of the key column, such as id")
	}
	if len(t.Match) == 0 {
		l.refuse(at+"match", "is empty", "write any of celery_id, column:C, args:N, kwargs:K")
	}
	for _, text := range t.Match {
		l.validateMatch(at, text, t.Names)
	}
	for _, name := range t.Names {
		if name == "" || strings.ContainsAny(name, " \t\r\n") {
			l.problem(l.where(at+"names"), quote(name)+" is not the name of a Celery task", "write names such as app.tasks.scan")
		}
	}
	for i, child := range t.Children {
		parts, ok := qualified(child, 2)
		if !ok {
			l.problem(l.where(at+"children"), quote(child)+" is not a column of a table", "write table.column or schema.table.column")
			continue
		}
		t.Children[i] = parts
	}
	for _, c := range t.Companions {
		if bad := companion(c); bad != nil {
			l.problem(l.where(at+"companions"), bad.what, bad.fix)
		}
	}
}

func (l *loader) validateMatch(at, text string, names []string) {
	m, ok := ParseMatch(text)
	if !ok {
		l.problem(l.where(at+"match"), quote(text)+" is not a way to match", "write any of celery_id, column:C, args:N, kwargs:K")
		return
	}
	if m.Kind != MatchArgs && m.Kind != MatchKwargs {
		return
	}
	if len(names) == 0 {
		l.refuse(at+"names", "is empty, but match has "+m.String(), "name the Celery tasks whose argument is the row's key")
	}
}

// qualified gives name as schema.x, where x has n parts; the schema is public
// if name does not say.
func qualified(name string, n int) (string, bool) {
	parts := strings.Split(name, ".")
	if len(parts) == n {
		parts = append([]string{"public"}, parts...)
	}
	for _, p := range parts {
		if !identifier(p) {
			return "", false
		}
	}
	return strings.Join(parts, "."), len(parts) == n+1
}

// reservedKeys begin the names of what is Celery's, kombu's or our own.
var reservedKeys = []string{"celery-task", "_kombu", "unacked", "orphanwatch:"}

// companion judges a companion key. A row's key must not be able to lead to a
// key of Celery or of ours, whatever text it is.
func companion(text string) *fault {
	prefix, _, ok := strings.Cut(text, "{key}")
	switch {
	case !ok:
		return &fault{quote(text) + " does not hold {key}", "write where the row's key stands, such as task_created:{key}"}
	case strings.ContainsAny(text, "*?["):
		return &fault{quote(text) + " is a pattern", "name each key; there are no wildcards"}
	case len(prefix) < 3:
		return &fault{quote(text) + " has fewer than 3 characters before {key}", "write a longer fixed beginning, such as task_created:{key}"}
	}
	for _, reserved := range reservedKeys {
		if strings.HasPrefix(prefix, reserved) || strings.HasPrefix(reserved, prefix) {
			return &fault{quote(text) + " may name keys that are not the application's (" + reserved + "…)", "remove it"}
		}
	}
	return nil
}
