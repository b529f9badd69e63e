package replication

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Finding is the answer to one precondition.
type Finding = reconciler.Finding

// minVersion is the oldest server_version_num: column lists, row filters and the
// messages option are there, and empty transactions are not sent.
const minVersion = 150000

// Check looks at everything that watching needs, for doctor. The error is that
// the server could not be asked.
func (s *Source) Check(ctx context.Context) ([]Finding, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer closeConn(conn)
	findings, err := s.check(ctx, conn)
	if err != nil {
		return nil, unreachable("check", err)
	}
	return findings, nil
}

func (s *Source) check(ctx context.Context, conn *pgx.Conn) ([]Finding, error) {
	srv, err := s.readServer(ctx, conn)
	if err != nil {
		return nil, err
	}
	findings := srv.findings(conn.PgConn().ParameterStatus("server_version"), int(conn.PgConn().PID()))
	if srv.version < minVersion || srv.recovery {
		return findings, nil
	}
	for _, b := range s.opts.Bindings {
		t, err := s.readTable(ctx, conn, b)
		if err != nil {
			return nil, err
		}
		findings = append(findings, t.findings(b, srv.role, s.opts.Publication)...)
	}
	return s.checkOwn(ctx, conn, findings)
}

// checkOwn adds what slot and publication lack, unless that cannot be made now.
func (s *Source) checkOwn(ctx context.Context, conn *pgx.Conn, findings []Finding) ([]Finding, error) {
	for _, f := range findings {
		if f.Fatal && !f.OK {
			return findings, nil
		}
	}
	const name = "slot and publication"
	steps, err := s.plan(ctx, conn)
	var hinted *reconciler.Hinted
	if errors.As(err, &hinted) {
		return append(findings, Finding{Name: name, Fatal: true, Detail: hinted.Err.Error(), Fix: hinted.Hint}), nil
	}
	if err != nil {
		return nil, err
	}
	for _, st := range steps {
		findings = append(findings, Finding{Name: name, Detail: st.what, Fix: st.sql, Mends: true})
	}
	if len(steps) == 0 {
		findings = append(findings, Finding{
			Name: name, OK: true,
			Detail: fmt.Sprintf("slot %s, publication %s", s.opts.Slot, s.opts.Publication),
		})
	}
	return findings, nil
}

// server is what the checks know of the server and of our role.
type server struct {
	version                 int
	recovery, mayReplicate  bool
	role, walLevel, walKeep string
	syncNames, application  string
	slots, maxSlots         int
	senders, maxSenders     int
	slotExists              bool
	pid                     int
}

const serverSQL = `
SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_user::text,
       current_setting('wal_level'), current_setting('max_slot_wal_keep_size', true),
       current_setting('synchronous_standby_names'), current_setting('application_name'),
       (SELECT count(*) FROM pg_replication_slots)::int, current_setting('max_replication_slots')::int,
       EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1),
       (SELECT count(*) FROM pg_stat_get_wal_senders())::int, current_setting('max_wal_senders')::int,
       pg_backend_pid(),
       EXISTS (SELECT FROM pg_roles r WHERE r.rolname = current_user AND (r.rolreplication OR r.rolsuper))
         OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'rds_replication' AND pg_has_role(r.oid, 'MEMBER'))`

func (s *Source) readServer(ctx context.Context, conn *pgx.Conn) (server, error) {
	var v server
	err := conn.QueryRow(ctx, serverSQL, s.opts.Slot).Scan(&v.version, &v.recovery, &v.role, &v.walLevel, &v.walKeep,
		&v.syncNames, &v.application, &v.slots, &v.maxSlots, &v.slotExists, &v.senders, &v.maxSenders, &v.pid, &v.mayReplicate)
	if err != nil {
		return v, fmt.Errorf("read settings: %w", err)
	}
	return v, nil
}

// findings judges the server; version is as it calls itself, pid the one that the
// connection was told at its start, which a pooler makes up.
func (v server) findings(version string, pid int) []Finding {
	if v.version < minVersion {
		return []Finding{{
			Name: "server version", Fatal: true, Detail: "PostgreSQL " + version + " is not supported yet",
			Fix: "upgrade to PostgreSQL 15 or newer",
		}}
	}
	out := []Finding{{Name: "server version", OK: true, Detail: "PostgreSQL " + version}}
	judge := func(name string, ok, fatal bool, good, bad, fix string) {
		f := Finding{Name: name, OK: ok, Fatal: fatal, Detail: good}
		if !ok {
			f.Detail, f.Fix = bad, fix
		}
		out = append(out, f)
	}
	judge("direct connection", v.pid == pid, true, "no pooler in between",
		"the connection goes through a pooler (such as PgBouncer), which replication does not pass",
		"connect to PostgreSQL directly: change host and port in postgres.url (DATABASE_URL)")
	judge("primary", !v.recovery, true, "the server is a primary", "the server is a standby (in recovery)",
		"connect to the primary; with several hosts in the URL add target_session_attrs=read-write")
	if v.recovery {
		return out
	}
	judge("wal_level", v.walLevel == "logical", true, "logical", "wal_level is "+v.walLevel+", not logical",
		"ALTER SYSTEM SET wal_level = 'logical';  -- then restart PostgreSQL")
	judge("role", v.mayReplicate, true, v.role+" may replicate", "role "+v.role+" may not replicate",
		fmt.Sprintf("ALTER ROLE %s REPLICATION;", ident(v.role)))
	judge("free replication slot", v.slotExists || v.slots < v.maxSlots, true, fmt.Sprintf("%d of %d in use", v.slots, v.maxSlots),
		fmt.Sprintf("all %d replication slots are in use", v.maxSlots),
		fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d;  -- then restart PostgreSQL; or drop a slot that nobody uses", v.maxSlots+10))
	judge("free wal sender", v.senders < v.maxSenders, false, fmt.Sprintf("%d of %d in use", v.senders, v.maxSenders),
		fmt.Sprintf("all %d wal senders are in use", v.maxSenders),
		fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d;  -- then restart PostgreSQL", v.maxSenders+10))
	judge("max_slot_wal_keep_size", v.walKeep != "-1", false, v.walKeep,
		"max_slot_wal_keep_size is unlimited: a forgotten slot fills the disk",
		"ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf();")
	out[len(out)-1].Advice = true
	judge("synchronous_standby_names", !namesUs(v.syncNames, v.application), true, "does not name us",
		fmt.Sprintf("synchronous_standby_names = '%s' makes commits wait for us", v.syncNames),
		"name the real standbys, not *: ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (…)'; SELECT pg_reload_conf();")
	return out
}

// standbyName is one name of synchronous_standby_names: *, a word, or quoted.
var standbyName = regexp.MustCompile(`"(?:[^"]|"")*"|\*|[^\s,()"]+`)

// namesUs tells whether the setting takes any application, or ours.
func namesUs(setting, application string) bool {
	for _, word := range standbyName.FindAllString(setting, -1) {
		if word == "*" || strings.EqualFold(strings.Trim(word, `"`), application) {
			return true
		}
	}
	return false
}
