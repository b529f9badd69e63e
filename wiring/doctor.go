package wiring

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher/keyspace"
)

// The stores that a check is of.
const (
	storeRedis    = "redis"
	storeBroker   = "broker"
	storePostgres = "postgres"
)

// Check is one precondition of one store.
type Check struct {
	Store string `json:"store"`
	reconciler.Finding
}

// Status is ok, wrong, or warn where it is a recommendation.
func (c Check) Status() string {
	switch {
	case c.OK:
		return "ok"
	case c.Advice:
		return "warn"
	}
	return "wrong"
}

// Diagnosis is what doctor found.
type Diagnosis struct {
	Checks []Check `json:"checks"`
	// Unreachable are the stores that do not answer.
	Unreachable []string `json:"unreachable"`
}

// Findings counts what has to be mended, recommendations apart.
func (d *Diagnosis) Findings() int {
	n := 0
	for _, c := range d.Checks {
		if c.Status() == "wrong" {
			n++
		}
	}
	return n
}

// Diagnose checks every precondition of both stores, side by side.
func (s *Stores) Diagnose(ctx context.Context) *Diagnosis {
	var redisFindings, brokerFindings, postgresFindings []reconciler.Finding
	var redisAway, brokerAway, postgresAway bool
	var wg sync.WaitGroup
	wg.Go(func() {
		bounded, cancel := Bounded(ctx)
		defer cancel()
		redisFindings, redisAway = s.checkRedis(bounded)
	})
	wg.Go(func() {
		bounded, cancel := Bounded(ctx)
		defer cancel()
		brokerFindings, brokerAway = s.checkBroker(bounded)
	})
	wg.Go(func() {
		bounded, cancel := Bounded(ctx)
		defer cancel()
		postgresFindings, postgresAway = s.checkPostgres(bounded)
	})
	wg.Wait()
	d := &Diagnosis{Unreachable: []string{}}
	for _, f := range redisFindings {
		d.Checks = append(d.Checks, Check{storeRedis, f})
	}
	for _, f := range brokerFindings {
		// Where both are one place, what is good there is said once.
		if !f.OK || !slices.ContainsFunc(redisFindings, func(r reconciler.Finding) bool { return r.OK && r.Name == f.Name && r.Detail == f.Detail }) {
			d.Checks = append(d.Checks, Check{storeBroker, f})
		}
	}
	for _, f := range postgresFindings {
		d.Checks = append(d.Checks, Check{storePostgres, f})
	}
	if !redisAway && !postgresAway {
		d.Checks = append(d.Checks, s.checkIdentity(ctx)...)
	}
	if redisAway {
		d.Unreachable = append(d.Unreachable, storeRedis)
	}
	if brokerAway {
		d.Unreachable = append(d.Unreachable, storeBroker)
	}
	if postgresAway {
		d.Unreachable = append(d.Unreachable, storePostgres)
	}
	return d
}

func (s *Stores) checkRedis(ctx context.Context) (findings []reconciler.Finding, away bool) {
	findings = keyspace.Check(ctx, KeyspaceOptions(s.config, s.redis, s.Celery, nil))
	if len(findings) == 1 && !findings[0].OK {
		_, err := s.Celery.Epoch(ctx)
		away = errors.Is(err, reconciler.ErrUnreachable)
	}
	return findings, away
}

// checkBroker checks the Redis that holds the messages, and whether any queue is found.
func (s *Stores) checkBroker(ctx context.Context) (findings []reconciler.Finding, away bool) {
	findings = keyspace.Check(ctx, BrokerOptions(s.config, s.broker, s.Broker, nil))
	f := reconciler.Finding{Name: "celery queues", OK: true}
	switch err := s.Broker.Discover(ctx); {
	case errors.Is(err, reconciler.ErrUnreachable):
		return findings, true
	case ctx.Err() != nil:
		return findings, false // too many keys to find all queues in time
	case err != nil:
		f.OK, f.Detail, f.Fix = false, firstLine(err), "allow +scan and +sscan for the user of redis.broker_url"
	case len(s.Broker.Lists()) == 0:
		f.OK, f.Advice = false, true
		f.Detail = "no queue is found: no bindings of kombu under the prefix " + strconv.Quote(s.config.Celery.GlobalKeyprefix)
		f.Fix = "compare redis.broker_url and celery.global_keyprefix with Celery's settings; before the first task is sent there is none"
	default:
		f.Detail = fmt.Sprintf("%d lists, priorities included", len(s.Broker.Lists()))
	}
	return append(findings, f), false
}

func (s *Stores) checkPostgres(ctx context.Context) (findings []reconciler.Finding, away bool) {
	const answers = "postgres answers"
	// One that answers, and does not let us in, is there.
	notAnswering := func(err error) (f reconciler.Finding, away bool) {
		f = reconciler.Finding{
			Name: answers, Fatal: true, Detail: firstLine(err),
			Fix: "start PostgreSQL at " + s.postgresAddr() + ", or name the right one in postgres.url (DATABASE_URL)",
		}
		var hinted *reconciler.Hinted
		if errors.As(err, &hinted) {
			f.Detail, f.Fix = firstLine(hinted.Err), hinted.Hint
			return f, false
		}
		return f, errors.Is(err, reconciler.ErrUnreachable)
	}
	watching, err := s.Replication.Check(ctx)
	if err != nil {
		f, away := notAnswering(err)
		return []reconciler.Finding{f}, away
	}
	findings = []reconciler.Finding{{Name: answers, OK: true, Detail: s.postgresAddr()}}
	findings = append(findings, watching...)
	looking, err := s.rows.Check(ctx)
	findings = merge(findings, looking)
	if err == nil {
		var slot []reconciler.Finding
		slot, err = s.checkSlot(ctx)
		findings = append(findings, slot...)
	}
	if err != nil {
		f, away := notAnswering(err)
		return append(findings, f), away
	}
	return findings, false
}

// merge appends what has not been said: lookups and replication need some of the
// same things, and both check them.
func merge(said, more []reconciler.Finding) []reconciler.Finding {
	fixes := ""
	for _, f := range said {
		fixes += f.Fix + "\n"
	}
next:
	for _, f := range more {
		if f.Name == "postgres primary" || !f.OK && f.Fix != "" && strings.Contains(fixes, f.Fix) {
			continue
		}
		for i, s := range said {
			if s.Name != f.Name {
				continue
			}
			if s.OK && !f.OK {
				said[i] = f
			}
			continue next
		}
		said = append(said, f)
	}
	return said
}

// checkSlot tells of a slot that nobody reads: it fills the disk.
func (s *Stores) checkSlot(ctx context.Context) ([]reconciler.Finding, error) {
	slot, err := s.Slot(ctx)
	if err != nil || !slot.Exists {
		return nil, err
	}
	f := reconciler.Finding{Name: "slot is read", OK: true, Detail: "by " + slot.Holder}
	switch {
	case slot.WALStatus == "lost":
		f.OK, f.Advice = false, true
		f.Detail = fmt.Sprintf("slot %s is lost: PostgreSQL has removed the log that it needs", slot.Name)
		f.Fix = "orphanwatch run (it makes the slot anew and compares everything)"
	case !slot.Active:
		f.OK, f.Advice = false, true
		f.Detail = fmt.Sprintf("nobody reads slot %s, which holds back %s of log", slot.Name, ByteCount(slot.RetainedWAL))
		f.Fix = "orphanwatch run; or, if it is not needed any more: orphanwatch teardown"
	}
	return []reconciler.Finding{f}, nil
}

// checkIdentity compares the database with the one of the first start (R5).
func (s *Stores) checkIdentity(ctx context.Context) []Check {
	ctx, cancel := Bounded(ctx)
	defer cancel()
	identity, err := s.rows.Identity(ctx)
	if err != nil {
		return nil // what is away has been said
	}
	state, err := s.Celery.State(ctx)
	if err != nil {
		return nil
	}
	f := reconciler.Finding{Name: "same database", OK: true, Detail: identity}
	switch state.Identity {
	case identity:
	case "":
		f.Detail += " (no first start yet)"
	default:
		f.OK = false
		f.Detail = fmt.Sprintf("this is not the database of the first start: it is %s, that was %s; only what is seen to be deleted is removed", identity, state.Identity)
		f.Fix = "correct DATABASE_URL; or, if this is the right one now: orphanwatch resume --accept-absent"
	}
	return []Check{{storePostgres, f}}
}

// SetupSQL is what setup would run now. Like setup it refuses where a publication
// would harm the application, so that nobody runs it by hand.
func (s *Stores) SetupSQL(ctx context.Context) ([]string, error) {
	findings, err := s.Replication.Check(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range findings {
		if f.Fatal && !f.OK {
			return nil, reconciler.Hint(fmt.Errorf("%s: %s", f.Name, f.Detail), f.Fix)
		}
	}
	return s.Replication.SetupSQL(ctx)
}

// setupTimeout bounds Mend: a new slot waits for the transactions that are open.
const setupTimeout = time.Minute

// Mend applies what is safe, and tells each thing that it did or could not do.
func (s *Stores) Mend(ctx context.Context, d *Diagnosis) (did []string, failed []error) {
	blocked, missing := false, false
	for _, c := range d.Checks {
		if c.OK {
			continue
		}
		blocked = blocked || c.Store == storePostgres && c.Fatal
		missing = missing || c.Mends
		if c.Mend == nil {
			continue
		}
		what, err := c.Mend(ctx)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", c.Name, err))
			continue
		}
		did = append(did, what)
	}
	if !missing || blocked {
		return did, failed
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	statements, err := s.Replication.SetupSQL(ctx)
	if err == nil {
		err = s.Replication.Setup(ctx)
	}
	if err != nil {
		return did, append(failed, err)
	}
	return append(did, statements...), failed
}

// postgresAddr is where the database should be, without secrets.
func (s *Stores) postgresAddr() string {
	u, err := url.Parse(s.config.Postgres.URL.Reveal())
	if err != nil || u.Host == "" {
		return s.config.Postgres.URL.String()
	}
	return u.Host + u.Path
}

// ByteCount is a size for people.
func ByteCount(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
