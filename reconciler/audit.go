package reconciler

import (
	"fmt"
	"slices"
	"strings"
)

// AuditEntry is one order of an operator, as the audit log has it.
type AuditEntry struct {
	// Who gave it: token:NAME/ID, jwt:SUBJECT, or user@host of the command line.
	Who string `json:"who"`
	// From is the network address that it came from; "cli" for the command line.
	From string `json:"from"`
	// Action is the command's name: cleanup-orphaned, purge-queues, pause, …
	Action string `json:"action"`
	// Filter is what it was limited to, by parameter; nil for nothing.
	Filter map[string]any `json:"filter,omitempty"`
	DryRun bool           `json:"dry_run"`
	// Force: the guard was gone past.
	Force bool `json:"force"`
}

// Counts is what the audit log keeps of a report.
func (r OrphanReport) Counts() map[string]int64 {
	out := map[string]int64{"cleaned": r.Cleaned}
	for kind, n := range r.Removed {
		out["removed_"+string(kind)] = n
	}
	for by, n := range r.Held {
		out["held_by_"+string(by)] = n
	}
	return out
}

// Counts is what the audit log keeps of a report.
func (r ExpiredReport) Counts() map[string]int64 {
	return map[string]int64{"cleaned": r.Cleaned, "scanned": r.Scanned, "undated": r.Undated, "ttl_set": r.TTLSet, "changed": r.Changed}
}

// Counts is what the audit log keeps of a report.
func (r DatabaseReport) Counts() map[string]int64 {
	out := map[string]int64{"cleaned": r.Total}
	for table, n := range r.Tables {
		out["cleaned_"+table] = n
	}
	return out
}

// Counts is what the audit log keeps of a report.
func (r QueuesReport) Counts() map[string]int64 {
	out := map[string]int64{"cleaned": r.Cleaned}
	for _, q := range r.Queues {
		out["cleaned_"+q.Queue] = q.Cleaned
	}
	return out
}

// Counts is what the audit log keeps of a report.
func (r FullReport) Counts() map[string]int64 {
	out := map[string]int64{}
	add := func(part string, counts map[string]int64) {
		for name, n := range counts {
			out[part+"_"+name] = n
		}
	}
	if r.Orphaned != nil {
		add("orphaned", r.Orphaned.Counts())
	}
	if r.Expired != nil {
		add("expired", r.Expired.Counts())
	}
	if r.Database != nil {
		add("database", r.Database.Counts())
	}
	return out
}

// Failed is what went wrong in a part of it, nil for nothing.
func (r FullReport) Failed() error {
	if r.failure == nil {
		return partsFailed(r.Errors)
	}
	return fmt.Errorf("done in part: %w", r.failure)
}

// Failed is what kept a table from being cleaned, nil for nothing.
func (r DatabaseReport) Failed() error { return partsFailed(r.Errors) }

func partsFailed(errs map[string]string) error {
	if len(errs) == 0 {
		return nil
	}
	parts := make([]string, 0, len(errs))
	for part, text := range errs {
		parts = append(parts, part+": "+text)
	}
	slices.Sort(parts)
	return fmt.Errorf("done in part: %s", strings.Join(parts, "; "))
}
