package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/orphanwatch/orphanwatch/wiring"
)

// audited is written, with the audit log of the configuration.
func (c *cli) audited(ctx context.Context, e wiring.AuditEntry, do func() (counts any, err error)) error {
	audit, err := wiring.OpenAudit(c.config, nil)
	if err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	return written(ctx, audit, e, do)
}

// written carries out an order of the command line, with the audit log before and after.
func written(ctx context.Context, audit *wiring.Audit, e wiring.AuditEntry, do func() (any, error)) error {
	e.Who, e.From = operator(), "cli"
	done, err := audit.Begin(ctx, e)
	if err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	counts, err := do()
	return errors.Join(err, done(counts, err))
}
