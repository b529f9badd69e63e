package replication

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
)

const (
	id1 = "00000000-0000-4000-8000-000000000001"
	id2 = "00000000-0000-4000-8000-000000000002"
	id3 = "00000000-0000-4000-8000-000000000003"
)

// TestStream: what a transaction of the application makes us offer.
func TestStream(t *testing.T) {
	insert := fmt.Sprintf("INSERT INTO scan_tasks (id, celery_task_id) VALUES ('%s', 'c1'), ('%s', 'c2'), ('%s', NULL)", id1, id2, id3)
	byID := reconciler.Binding{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true}
	byColumn := reconciler.Binding{Schema: "public", Table: "scan_tasks", Key: "id", Columns: []string{"celery_task_id"}, Companions: []string{"x:{key}"}}
	full := "ALTER TABLE scan_tasks REPLICA IDENTITY FULL"
	tests := []struct {
		name     string
		bindings []reconciler.Binding
		before   []string
		sql      []string
		want     []string
	}{
		{name: "delete", sql: []string{"DELETE FROM scan_tasks WHERE id = '" + id2 + "'"}, want: []string{"task:" + id2}},
		{
			name: "delete by column, null column, companions", bindings: []reconciler.Binding{byColumn}, before: []string{full},
			sql:  []string{"DELETE FROM scan_tasks WHERE id <> '" + id2 + "'"},
			want: []string{"task:c1", "row0:" + id1, "row0:" + id3},
		},
		{
			name: "two bindings of one table", bindings: []reconciler.Binding{byID, byColumn}, before: []string{full},
			sql:  []string{"DELETE FROM scan_tasks WHERE id = '" + id1 + "'"},
			want: []string{"task:" + id1, "task:c1", "row1:" + id1},
		},
		{
			name: "identity by index", bindings: []reconciler.Binding{byColumn},
			before: []string{
				"DELETE FROM scan_tasks WHERE celery_task_id IS NULL", "ALTER TABLE scan_tasks ALTER celery_task_id SET NOT NULL",
				"CREATE UNIQUE INDEX key_and_id ON scan_tasks (id, celery_task_id)", "ALTER TABLE scan_tasks REPLICA IDENTITY USING INDEX key_and_id",
			},
			sql: []string{
				"UPDATE scan_tasks SET celery_task_id = 'c9' WHERE id = '" + id1 + "'",
				"DELETE FROM scan_tasks WHERE id = '" + id1 + "'",
			},
			want: []string{"task:c9", "row0:" + id1},
		},
		{
			name: "changed key", sql: []string{"UPDATE scan_tasks SET id = gen_random_uuid() WHERE id = '" + id1 + "'"},
			want: []string{"task:" + id1},
		},
		{
			name: "changed key, full identity", before: []string{full},
			sql:  []string{"UPDATE scan_tasks SET id = gen_random_uuid() WHERE id = '" + id1 + "'"},
			want: []string{"task:" + id1},
		},
		{
			name: "changed column only", bindings: []reconciler.Binding{byColumn}, before: []string{full},
			sql:  []string{"UPDATE scan_tasks SET celery_task_id = 'other', target = repeat('x', 10000)", "UPDATE scan_tasks SET celery_task_id = NULL"},
			want: []string{},
		},
		{name: "rolled back", sql: []string{"BEGIN", "DELETE FROM scan_tasks", "ROLLBACK"}, want: []string{}},
		{
			name: "rolled back to a savepoint",
			sql: []string{
				"BEGIN", "SAVEPOINT a", "DELETE FROM scan_tasks WHERE id = '" + id1 + "'", "ROLLBACK TO a",
				"SAVEPOINT b", "DELETE FROM scan_tasks WHERE id = '" + id2 + "'", "RELEASE b", "COMMIT",
			},
			want: []string{"task:" + id2},
		},
		{
			name: "prepared",
			sql: []string{
				"BEGIN", "DELETE FROM scan_tasks WHERE id = '" + id1 + "'", "PREPARE TRANSACTION 'replication_a'",
				"BEGIN", "DELETE FROM scan_tasks WHERE id = '" + id2 + "'", "PREPARE TRANSACTION 'replication_b'",
				"ROLLBACK PREPARED 'replication_a'", "COMMIT PREPARED 'replication_b'",
			},
			want: []string{"task:" + id2},
		},
		{name: "other tables", sql: []string{"INSERT INTO task_logs (line) VALUES ('x')", "DELETE FROM task_logs"}, want: []string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, options(sandbox.NewExampleDatabase(t), tt.bindings...))
			r.exec(append([]string{insert}, tt.before...)...)
			r.run()
			r.exec(tt.sql...)
			r.settle()
			require.Equal(t, tt.want, r.sink.offered())
			require.Empty(t, r.sink.gaps)
			require.Equal(t, int32(1), r.sessions.Load())
		})
	}
}

// TestKeyTypes: the text of a key, for each supported type.
func TestKeyTypes(t *testing.T) {
	dsn := sandbox.NewDatabase(t)
	values := map[string][2]string{
		"uuid":        {"'ABCDEF00-0000-4000-8000-00000000000A'", "task:abcdef00-0000-4000-8000-00000000000a"},
		"text":        {"'Ünï ''x'' \\'", "task:Ünï 'x' \\"},
		"varchar(80)": {"'v-1'", "task:v-1"},
		"int":         {"-7", "task:-7"},
		"bigint":      {"9223372036854775807", "task:9223372036854775807"},
	}
	var bindings []reconciler.Binding
	var ddl, dml []string
	want := []string{}
	for typ, v := range values {
		table := fmt.Sprintf("t%d \"q", len(bindings))
		q := `"` + fmt.Sprintf("t%d \"\"q", len(bindings)) + `"`
		ddl = append(ddl, fmt.Sprintf(`CREATE TABLE %s (note text, "the Key" %s PRIMARY KEY)`, q, typ), fmt.Sprintf("INSERT INTO %s VALUES ('n', %s)", q, v[0]))
		dml = append(dml, "DELETE FROM "+q)
		want = append(want, v[1])
		bindings = append(bindings, reconciler.Binding{Schema: "public", Table: table, Key: "the Key", CeleryID: true})
	}
	r := newRig(t, options(dsn, bindings...))
	r.exec(ddl...)
	r.run()
	r.exec(dml...)
	r.settle()
	require.Equal(t, want, r.sink.offered())
}

// TestMessagesOfADeletedRowAreNamed: by the id of its tasks, and by the row where
// the tasks' arguments are its key.
func TestMessagesOfADeletedRowAreNamed(t *testing.T) {
	byID := reconciler.Binding{Schema: "public", Table: "scan_tasks", Key: "id", CeleryID: true, Columns: []string{"celery_task_id"}}
	byArgument := reconciler.Binding{Schema: "public", Table: "scan_tasks", Key: "id", Kwargs: []string{"scan_id"}, Names: []string{"scan"}}
	dsn := sandbox.NewExampleDatabase(t)
	r := newRig(t, options(dsn, byID, byArgument))
	r.exec("ALTER TABLE scan_tasks REPLICA IDENTITY FULL", fmt.Sprintf("INSERT INTO scan_tasks (id, celery_task_id) VALUES ('%s', 'scan:42')", id1))
	r.run()
	r.exec("DELETE FROM scan_tasks")
	r.settle()
	require.Equal(t, []string{"task:" + id1, "task:scan:42"}, r.sink.offered())
	r.sink.mu.Lock()
	defer r.sink.mu.Unlock()
	var got []reconciler.Subject
	for _, e := range r.sink.messages {
		got = append(got, e.Subject)
		require.Equal(t, id1, e.Deletion.Key)
	}
	require.Equal(t, []reconciler.Subject{
		reconciler.TaskSubject(id1).Messages(), reconciler.TaskSubject("scan:42").Messages(), reconciler.RowSubject(1, id1).Messages(),
	}, got)
}

// TestEvidence: what an event says about its transaction.
func TestEvidence(t *testing.T) {
	r := example(t)
	r.exec(fmt.Sprintf("INSERT INTO scan_tasks (id) VALUES ('%s'), ('%s'), ('%s')", id1, id2, id3))
	before := time.Now()
	conn := r.connect()
	defer closeConn(conn)
	var xid int64
	for _, sql := range []string{
		"BEGIN", "DELETE FROM scan_tasks WHERE id = '" + id1 + "'",
		"SELECT pg_logical_emit_message(true, 'traceparent', '00-abc-def-01')",
		"DELETE FROM scan_tasks WHERE id <> '" + id1 + "'",
	} {
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text::bigint").Scan(&xid))
	_, err := conn.Exec(t.Context(), "COMMIT")
	require.NoError(t, err)
	r.settle()

	events := r.sink.deletions()
	require.Len(t, events, 3)
	first, last := events[0].Deletion.Commit, events[2].Deletion.Commit
	require.Same(t, events[1].Deletion.Commit, last, "rows of a transaction share its commit")
	require.Empty(t, first.TraceParent)
	require.Equal(t, "00-abc-def-01", last.TraceParent)
	for i, e := range events {
		c := e.Deletion.Commit
		require.Equal(t, reconciler.ByDelete, e.Trigger)
		require.Equal(t, []string{id1, id2, id3}[i], e.Deletion.Key)
		require.EqualValues(t, xid, c.XID)
		require.NotZero(t, c.LSN)
		require.LessOrEqual(t, c.LSN, r.session.Load().Position())
		require.WithinRange(t, c.Time, before.Add(-time.Second), time.Now().Add(time.Second))
		require.WithinRange(t, e.Seen, before, time.Now())
	}
}

// TestTruncate: it names no rows, so it is a gap.
func TestTruncate(t *testing.T) {
	r := example(t)
	r.exec("TRUNCATE task_logs")
	r.settle()
	require.False(t, r.sink.gapped(gapTruncate))
	r.exec("TRUNCATE scan_tasks CASCADE")
	r.await("gap", func() bool { return r.sink.gapped(gapTruncate) })
}

// TestPartitions: rows come under the root's name; what emits nothing is a gap.
func TestPartitions(t *testing.T) {
	r := newRig(t, options(sandbox.NewDatabase(t), reconciler.Binding{Schema: "public", Table: "p", Key: "id", CeleryID: true}))
	r.exec(
		"CREATE TABLE p (filler text, id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
		"CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
		"CREATE TABLE p2 (day int NOT NULL, id int NOT NULL, filler text)", // another order of columns
		"ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)",
		"INSERT INTO p (id, day) SELECT n, n FROM generate_series(1, 19) n",
	)
	r.run()
	r.exec("DELETE FROM p WHERE id IN (5, 15)", "UPDATE p SET id = 100 WHERE id = 6", "UPDATE p SET day = 3 WHERE id = 7")
	r.settle()
	require.Equal(t, []string{"task:5", "task:15", "task:6"}, r.sink.offered())
	require.Empty(t, r.sink.gaps)

	expect := func(reason, sql string) {
		t.Helper()
		before := r.sink.gapCount()
		r.exec(sql)
		r.await(sql, func() bool {
			r.sink.mu.Lock()
			defer r.sink.mu.Unlock()
			return len(r.sink.gaps) > before && r.sink.gaps[len(r.sink.gaps)-1] == reason
		})
	}
	expect(gapPartitions, "TRUNCATE p1")
	expect(gapPartitions, "ALTER TABLE p DETACH PARTITION p1")
	expect(gapPartitions, "DROP TABLE p2")
	expect(gapPartitions, "CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (30)")
	r.exec("INSERT INTO p (id, day) VALUES (25, 25)", "DELETE FROM p")
	r.await("delete in the new partition", func() bool { return len(r.sink.offered()) == 4 })
	require.Equal(t, int32(1), r.sessions.Load())
}

// TestPosition: a fence is passed soon on an idle server.
func TestPosition(t *testing.T) {
	r := example(t)
	for range 20 {
		r.settle()
	}
	require.Eventually(t, func() bool {
		h := r.sink.last() // on a busy machine one of these canaries may be late
		return r.sink.canaries() > 3 && h.Connected && h.Err == ""
	}, patience, 10*time.Millisecond)
}
