package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

const syncStandbys = "synchronous_standby_names"

// HoldCommits makes every commit that asks for synchronous replication wait for a standby
// that is not there, until release. It returns when commits do wait: that the setting is
// loaded is not enough, since it is the checkpointer that puts it in force.
func (pg *Postgres) HoldCommits(ctx context.Context) (release func(context.Context) error, err error) {
	if err := pg.Reconfigure(ctx, map[string]string{syncStandbys: "nobody"}); err != nil {
		return nil, err
	}
	err = Await(ctx, pg.program.name+" holds commits", func() error { return pg.tryHeldCommit(ctx) })
	return func(ctx context.Context) error {
		return pg.Reconfigure(ctx, map[string]string{syncStandbys: ""})
	}, err
}

var errNotHeld = errors.New("a commit was not held")

// tryHeldCommit commits something, and ends that as soon as it waits.
func (pg *Postgres) tryHeldCommit(ctx context.Context) error {
	watching, err := pgx.Connect(ctx, pg.SocketDSN("postgres"))
	if err != nil {
		return fmt.Errorf("watch a commit: %w", err)
	}
	defer hangUp(ctx, watching)
	committing, err := pgx.Connect(ctx, pg.SocketDSN("postgres"))
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		defer hangUp(ctx, committing)
		_, err := committing.Exec(ctx, "SELECT pg_logical_emit_message(true, 'sandbox', '')")
		ended <- err
	}()
	pid := committing.PgConn().PID()
	var outcome error // of a commit that has ended
	err = Await(ctx, "a commit to end, or to wait", func() error {
		select {
		case err := <-ended:
			outcome = errors.Join(errNotHeld, err)
			return nil
		default:
		}
		var waits bool
		err := watching.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')", pid).Scan(&waits)
		if err == nil && !waits {
			err = errors.New("neither yet")
		}
		return err
	})
	if outcome != nil || err != nil {
		return errors.Join(outcome, err)
	}
	if _, err := watching.Exec(ctx, "SELECT pg_terminate_backend($1)", pid); err != nil {
		return fmt.Errorf("end a held commit: %w", err)
	}
	if err := <-ended; err == nil { // not with the word that it was terminated
		return errNotHeld
	}
	return nil
}
