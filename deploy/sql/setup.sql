-- What orphanwatch needs in PostgreSQL, and no more: a role that may log in, replicate and read
-- the bound columns, and a publication. Needs psql, as superuser (PostgreSQL lets only one give
-- REPLICATION), in the application's database on the primary:
--
--   ORPHANWATCH_PASSWORD=… psql -X -v ON_ERROR_STOP=1 -d app -f setup.sql
--   psql … -v table=reports -v columns=id,celery_task_id -v replica_identity=full -f setup.sql
--
-- Run it once for each bound table, and again whenever you like: what is there stays. It makes no
-- slot, `run` does that. wal_level must be logical (README, "Quick start").
--
-- Variables, by -v name=value:
--   role              orphanwatch
--   password          that of $ORPHANWATCH_PASSWORD; without one the role keeps what it has. It may be
--                     a SCRAM-SHA-256 verifier, so that the server never sees (or logs) the password
--   schema, table     public, scan_tasks: tasks[].table
--   columns           id: tasks[].key, and the columns of tasks[].match column:C, by comma
--   publication       orphanwatch: replication.publication
--   replica_identity  empty: as it is, which will do with a primary key. full: needed by column:C,
--                     since a DELETE must carry C
--   children          empty. Child tables, with schema, by comma (public.task_logs), of which
--                     cleanup-database may remove rows. For that alone the role gets DELETE, and nothing else ever writes
--   bypassrls         off. on: where row-level security applies to the table. Without it lookups are
--                     refused (an error, never a filtered answer), and nothing is removed
--   stats             off. on: pg_read_all_stats, so that `status` names the application of a
--                     transaction that is waited for, and not its pid alone

\set ON_ERROR_STOP on
\if :{?role} \else \set role orphanwatch
\endif
\if :{?password} \else
\getenv password ORPHANWATCH_PASSWORD
\endif
\if :{?schema} \else \set schema public
\endif
\if :{?table} \else \set table scan_tasks
\endif
\if :{?columns} \else \set columns id
\endif
\if :{?publication} \else \set publication orphanwatch
\endif
\if :{?replica_identity} \else \set replica_identity ''
\endif
\if :{?children} \else \set children ''
\endif
\if :{?bypassrls} \else \set bypassrls off
\endif
\if :{?stats} \else \set stats off
\endif

BEGIN;
SET LOCAL client_min_messages = warning;
-- A superuser runs this: what others have made in the application's schemas is not called.
SET LOCAL search_path = pg_catalog, pg_temp;

-- The role.
SELECT format('CREATE ROLE %I LOGIN REPLICATION', :'role')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
SELECT format('ALTER ROLE %I LOGIN REPLICATION', :'role')
  FROM pg_roles WHERE rolname = :'role' AND NOT (rolcanlogin AND rolreplication) \gexec
\if :{?password}
SELECT format('ALTER ROLE %I PASSWORD %L', :'role', :'password') \gexec
\endif
\if :bypassrls
SELECT format('ALTER ROLE %I BYPASSRLS', :'role')
  FROM pg_roles WHERE rolname = :'role' AND NOT rolbypassrls \gexec
\endif
\if :stats
SELECT format('GRANT pg_read_all_stats TO %I', :'role') \gexec
\endif

-- Its rights. It reads the bound columns only.
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec
SELECT format('GRANT USAGE ON SCHEMA %I TO %I', :'schema', :'role') \gexec
SELECT format('GRANT SELECT (%s) ON %I.%I TO %I', string_agg(quote_ident(trim(c)), ', '), :'schema', :'table', :'role')
  FROM unnest(string_to_array(:'columns', ',')) c \gexec
SELECT format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, :'role'), format('GRANT SELECT, DELETE ON %s TO %I', c.oid::regclass, :'role')
  FROM unnest(string_to_array(:'children', ',')) name
  JOIN pg_class c ON c.oid = trim(name)::regclass
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE trim(name) <> '' \gexec

-- The publication, as `orphanwatch setup` makes it. An UPDATE matters where it changes a key.
SELECT format('CREATE PUBLICATION %I FOR TABLE %I.%I WITH (publish = ''update, delete, truncate'', publish_via_partition_root = true)',
              :'publication', :'schema', :'table')
 WHERE NOT EXISTS (SELECT FROM pg_publication WHERE pubname = :'publication') \gexec
-- First how it publishes: until it does by the root, the view below names partitions instead.
SELECT format('ALTER PUBLICATION %I SET (publish = ''update, delete, truncate'', publish_via_partition_root = true)', pubname)
  FROM pg_publication
 WHERE pubname = :'publication' AND NOT (pubupdate AND pubdelete AND pubtruncate AND pubviaroot) \gexec
SELECT format('ALTER PUBLICATION %I ADD TABLE %I.%I', :'publication', :'schema', :'table')
 WHERE NOT EXISTS (SELECT FROM pg_publication_tables t
                    WHERE t.pubname = :'publication' AND t.schemaname = :'schema' AND t.tablename = :'table') \gexec

-- The replica identity: which columns a DELETE carries. Partitions have each their own.
SELECT lower(:'replica_identity') AS replica_identity, lower(:'replica_identity') NOT IN ('', 'full') AS wrong \gset
\if :wrong
DO $$ BEGIN RAISE 'replica_identity is neither empty nor full'; END $$;
\endif
SELECT format('ALTER TABLE %s REPLICA IDENTITY FULL', c.oid::regclass)
  FROM pg_class c
 WHERE :'replica_identity' = 'full' AND c.relreplident <> 'f'
   AND (c.oid = format('%I.%I', :'schema', :'table')::regclass
        OR c.oid IN (SELECT relid FROM pg_partition_tree(format('%I.%I', :'schema', :'table')::regclass))) \gexec
COMMIT;
