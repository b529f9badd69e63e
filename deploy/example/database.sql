-- Run once, by the entrypoint of PostgreSQL's image: the application's tables, then what
-- orphanwatch needs. Its password is in $ORPHANWATCH_PASSWORD.
CREATE TABLE scan_tasks (
	id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	target     text NOT NULL,
	created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE task_logs (
	id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	task_id uuid NOT NULL REFERENCES scan_tasks (id) ON DELETE CASCADE,
	line    text NOT NULL
);
CREATE INDEX ON task_logs (task_id);

\set table scan_tasks
\set columns id
\set stats on
\ir ../sql/setup.sql
