package sandbox

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

var databases atomic.Int64

// ExampleSchema makes the tables of the documentation: tasks with their Celery task id
// and, as children that the database itself deletes, their logs.
const ExampleSchema = `
CREATE TABLE scan_tasks (
	id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	celery_task_id text,
	target         text,
	created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE task_logs (
	id         bigserial PRIMARY KEY,
	task_id    uuid REFERENCES scan_tasks (id) ON DELETE CASCADE,
	line       text,
	created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON task_logs (task_id);
`

// NewDatabase creates an empty database with a fresh name and returns its URL.
func (pg *Postgres) NewDatabase(ctx context.Context) (string, error) {
	name := "db" + strconv.FormatInt(databases.Add(1), 10)
	if err := pg.Exec(ctx, "postgres", "CREATE DATABASE "+name); err != nil {
		return "", fmt.Errorf("create database: %w", err)
	}
	return pg.DSN(name), nil
}

// NewExampleDatabase is NewDatabase with ExampleSchema in it.
func (pg *Postgres) NewExampleDatabase(ctx context.Context) (string, error) {
	dsn, err := pg.NewDatabase(ctx)
	if err != nil {
		return "", err
	}
	name, err := databaseOf(dsn)
	if err != nil {
		return "", err
	}
	return dsn, pg.Exec(ctx, name, ExampleSchema)
}

// DropDatabase ends every connection to the database of the URL, drops its replication
// slots and then itself.
func (pg *Postgres) DropDatabase(ctx context.Context, dsn string) error {
	name, err := databaseOf(dsn)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, pg.SocketDSN("postgres"))
	if err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	defer hangUp(ctx, conn)
	return Await(ctx, "drop of database "+name, func() error {
		// A walsender that we end lets go of its slot a moment later: hence Await.
		for _, statement := range []string{
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = " + literal(name),
			"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = " + literal(name) + " AND NOT active",
			"DROP DATABASE IF EXISTS " + pgx.Identifier{name}.Sanitize() + " WITH (FORCE)",
		} {
			if _, err := conn.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
}

func databaseOf(dsn string) (string, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return "", fmt.Errorf("read database URL: %w", err)
	}
	return config.Database, nil
}
