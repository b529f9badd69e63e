package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/orphanwatch/orphanwatch/wiring"
)

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show both stores, the daemon, what waits and why",
		Long: `Show both stores, the tasks in them, the orphans and what holds them, and what
each running copy of the daemon says of itself.

It works while the daemon is down. With a store away it prints what it knows and
exits 5; no question takes longer than 3 s.`,
		Example: `  orphanwatch status
  orphanwatch status -o json | jq .orphaned_tasks_count`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, stores, err := c.stores()
			if err != nil {
				return err
			}
			defer stores.Close()
			r := stores.Inspect(cmd.Context())
			if c.output == outputJSON {
				err = c.printJSON(r)
			} else {
				err = c.printStatus(r)
			}
			if err == nil && (!r.RedisConnected || !r.BrokerConnected || !r.DatabaseConnected) {
				return exitCode(exitUnreachable)
			}
			return err
		},
	}
}

// statusLines are name and value; a name that repeats is left out.
type statusLines struct{ rows []table.Row }

func (l *statusLines) add(name, format string, args ...any) {
	l.rows = append(l.rows, table.Row{name, fmt.Sprintf(format, args...)})
}

func (c *cli) printStatus(r *wiring.Report) error {
	fmt.Fprintf(c.out, "orphanwatch status, %s\n\n", clock(r.Timestamp))
	l := &statusLines{}
	c.statusStores(l, r)
	c.statusTasks(l, r)
	c.statusDaemons(l, r)
	c.statusOrders(l, r)
	return c.printTable(nil, l.rows)
}

func (c *cli) statusStores(l *statusLines, r *wiring.Report) {
	if info := r.RedisInfo; info != nil {
		memory := info.UsedMemoryHuman
		if info.MaxMemoryHuman != "" {
			memory += " of " + info.MaxMemoryHuman
		}
		l.add("Redis", "%s, version %s", c.good("connected"), info.Version)
		l.add("", "memory used %s, clients %d, keys %d", memory, info.ConnectedClients, info.Keys)
	}
	if !r.RedisConnected {
		l.add("Redis", "%s: %s", c.bad("away"), oneLine(r.RedisError))
	}
	if !r.BrokerConnected && (r.RedisConnected || r.BrokerError != r.RedisError) {
		l.add("Broker", "%s: %s", c.bad("away"), oneLine(r.BrokerError))
	}
	if !r.DatabaseConnected {
		l.add("PostgreSQL", "%s: %s", c.bad("away"), oneLine(r.DatabaseError))
	} else {
		l.add("PostgreSQL", "%s", c.good("connected"))
	}
	if r.Slot != nil {
		l.add("Slot", "%s", c.slotLine(r.Slot))
	}
}

func (c *cli) slotLine(s *wiring.SlotStatus) string {
	if !s.Exists {
		return fmt.Sprintf("%s does %s; run makes it, or: orphanwatch setup", s.Name, c.warn("not exist"))
	}
	safe := "no limit (max_slot_wal_keep_size)"
	if s.SafeWAL >= 0 {
		safe = wiring.ByteCount(s.SafeWAL) + " more are safe"
	}
	reader := "read by " + s.Holder
	if !s.Active {
		reader = c.warn("read by nobody")
	}
	status := s.WALStatus
	if status != "reserved" && status != "extended" {
		status = c.bad(status)
	}
	return fmt.Sprintf("%s, %s, %s, retains %s, %s", s.Name, reader, status, wiring.ByteCount(s.RetainedWAL), safe)
}

func (c *cli) statusTasks(l *statusLines, r *wiring.Report) {
	about := func(estimated bool) string {
		if estimated {
			return "about "
		}
		return ""
	}
	results := "unknown"
	if r.CeleryTasks != nil {
		results = fmt.Sprintf("%s%d", about(r.CeleryTasksEstimated), *r.CeleryTasks)
	}
	l.add("Tasks", "%s results in Redis", results)
	for _, t := range r.Tables {
		switch {
		case t.Rows != nil:
			l.add("", "%s%d rows in %s", about(t.Estimated), *t.Rows, t.Table)
		default:
			l.add("", "%s: %s", t.Table, c.bad(oneLine(t.Error)))
		}
	}
	leader := r.Leader()
	switch {
	case !r.RedisConnected && leader == nil:
		l.add("Orphans", "unknown")
		return
	case leader == nil:
		l.add("Orphans", "unknown: no daemon leads")
		return
	}
	if r.OrphanedTasks == nil || *r.OrphanedTasks == 0 {
		l.add("Orphans", "%s", c.good("none known"))
		return
	}
	l.add("Orphans", "%s", c.warn(fmt.Sprint(*r.OrphanedTasks)))
	for _, held := range slices.Sorted(maps.Keys(leader.Held)) {
		what, by := held, ""
		if at := strings.LastIndex(held, " "); at >= 0 {
			what, by = held[:at], held[at+1:]
		}
		l.add("", "%d of %s held: %s", leader.Held[held], what, why(by))
	}
	for _, by := range slices.Sorted(maps.Keys(leader.Queue.Waiting)) {
		l.add("", "%d wait: %s", leader.Queue.Waiting[by], why(string(by)))
	}
	for _, by := range slices.Sorted(maps.Keys(leader.Messages.Waiting)) {
		l.add("", "messages of %d wait: %s", leader.Messages.Waiting[by], why(string(by)))
	}
}

// why says what a reason means, and what ends it.
func why(heldBy string) string {
	text, ok := map[string]string{
		"grace":        "the grace (policy.grace)",
		"transactions": "transactions that were open when the key was seen",
		"replication":  "replication is behind",
		"first_pass":   "the first pass is not done",
		"commit":       "the delete's commit is not visible yet (it waits for a synchronous standby)",
		"guard":        "the guard",
		"unknown":      "nothing tells whose they are (R6); set names or exclusive in the binding",
		"policy":       "policy.remove",
		"pause":        "removals are paused",
		"restore":      "restored, and held from being removed again",
		"chord":        "a chord needs them (policy.chords)",
		"change":       "they are changing",
		"error":        "an error; it is tried again",
	}[heldBy]
	if !ok {
		return heldBy
	}
	return text
}

func (c *cli) statusDaemons(l *statusLines, r *wiring.Report) {
	if len(r.Daemons) == 0 {
		if r.RedisConnected {
			l.add("Daemon", "%s: nothing is watched. Start it: orphanwatch run", c.bad("none runs"))
		} else {
			l.add("Daemon", "unknown: it tells of itself in Redis")
		}
		return
	}
	for i := range r.Daemons {
		c.statusDaemon(l, &r.Daemons[i], r.Timestamp)
	}
}

// silent is from when on a copy's word is old: it publishes every second.
const silent = 4 * time.Second

func (c *cli) statusDaemon(l *statusLines, d *wiring.DaemonStatus, now time.Time) {
	role := c.good(d.Role)
	if d.Role == "starting" {
		role = c.warn(d.Role)
	}
	line := d.Instance + ", " + role
	if !d.Since.IsZero() {
		line += " since " + clock(d.Since)
	}
	if d.Epoch > 0 && d.Role == "leader" {
		line += fmt.Sprintf(", epoch %d", d.Epoch)
	}
	if d.Holder != "" {
		line += ", behind " + d.Holder
	}
	l.add("Daemon", "%s", line)
	if age := now.Sub(d.At); age > silent {
		l.add("", "%s", c.bad("silent for "+span(age)))
	}
	if d.Ended != "" && d.Role != "leader" {
		l.add("", "not leading: %s", c.bad(oneLine(d.Ended)))
	}
	for _, s := range d.Stalled {
		l.add("", "%s", c.bad(fmt.Sprintf("hangs: %s, for %s", s.Loop, span(time.Duration(s.Seconds*float64(time.Second))))))
	}
	if d.Failing != "" {
		l.add("", "failing: %s", c.bad(oneLine(d.Failing)))
	}
	if d.Role != "leader" {
		return
	}
	for _, source := range slices.Sorted(maps.Keys(d.Sources)) {
		h := d.Sources[source]
		state := c.good("connected")
		if !h.Connected {
			state = c.bad("not connected")
		}
		l.add("", "source %s: %s", source, join(", ", state, h.Mode, oneLine(h.Err)))
	}
	l.add("Queue", "%d pending, %d of them on a delete that was seen; the oldest waits %s", d.Queue.Pending, d.Queue.Strong, span(time.Duration(d.Queue.Oldest*float64(time.Second))))
	l.add("Messages", "%d pending, %d of them on a delete that was seen; the oldest waits %s", d.Messages.Pending, d.Messages.Strong, span(time.Duration(d.Messages.Oldest*float64(time.Second))))
	if b := d.Broker; b.Unreadable+b.Tombstones > 0 {
		l.add("", "%d lists of queues; %d elements that are no messages, left alone; %d tombstones", b.Lists, b.Unreadable, b.Tombstones)
	}
	for _, t := range d.Transactions {
		l.add("", "held by %s", t)
	}
	c.statusPass(l, d, now)
	for _, source := range slices.Sorted(maps.Keys(d.Gaps)) {
		g := d.Gaps[source]
		l.add("Gaps", "%s: %d, last %s ago: %s", source, g.Count, span(now.Sub(g.At)), g.Reason)
	}
}

func (c *cli) statusPass(l *statusLines, d *wiring.DaemonStatus, now time.Time) {
	p := d.Pass
	if p.Started.IsZero() {
		l.add("Last pass", "none yet")
		return
	}
	when := fmt.Sprintf("began %s ago, %s", span(now.Sub(p.Started)), p.Stage)
	if !p.Ended.IsZero() {
		when = fmt.Sprintf("%s, %s ago, took %s", p.Stage, span(now.Sub(p.Ended)), p.Ended.Sub(p.Started).Round(time.Millisecond))
	}
	l.add("Last pass", "%s (%s)", when, p.Reason)
	counts := fmt.Sprintf("scanned %d keys and %d messages: %d without a row, %d deleted", p.Scanned, p.Messages, p.Orphans, p.Deleted)
	if p.Unknown > 0 {
		counts += fmt.Sprintf(", %d unknown", p.Unknown)
	}
	if p.Guarded > 0 {
		counts += fmt.Sprintf(", %d held by the guard", p.Guarded)
	}
	l.add("", "%s", counts)
	if p.Error != "" {
		l.add("", "%s", c.bad(oneLine(p.Error)))
	}
}

// statusOrders shows what an operator has ordered, or must.
func (c *cli) statusOrders(l *statusLines, r *wiring.Report) {
	if p := r.Paused; p != nil {
		l.add("Paused", "%s since %s by %s. To go on: orphanwatch resume", c.warn("removals are paused"), clock(p.Since), p.By)
	}
	g := r.Guard
	if g == nil {
		if r.RedisConnected {
			l.add("Guard", "armed")
		}
		return
	}
	l.add("Guard", "%s since %s: %s", c.bad("tripped"), clock(g.Since), g.Reason)
	l.add("", "%d of %d tasks look orphaned; none of them is removed, what is seen to be deleted is", g.Orphans, g.Seen)
	l.add("", "if it was a mistake, mend it, then look again: orphanwatch resume makes a pass")
	l.add("", "if what it then reports may go: orphanwatch resume --accept-absent")
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// join leaves out what is empty.
func join(sep string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), sep)
}
