package main

import (
	"context"
	"errors"

	"github.com/orphanwatch/orphanwatch/wiring"
)

// audited does what changes something between its two lines of the audit log; where
// the first cannot be written, it is not done. counts tells what was done.
func (c *cli) audited(ctx context.Context, e wiring.AuditEntry, do func() (counts any, err error)) error {
	audit, err := wiring.OpenAudit(c.config, nil)
	if err != nil {
		return err
	}
	e.Who, e.From = operator(), "cli"
	done, err := audit.Begin(ctx, e)
	if err != nil {
		return err
	}
	counts, err := do()
	if unwritten := done(counts, err); unwritten != nil {
		return errors.Join(err, unwritten)
	}
	return err
}
