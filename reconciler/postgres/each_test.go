package postgres_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func TestEachID(t *testing.T) {
	t.Parallel()
	url, conn := database(t,
		`CREATE DOMAIN taskid AS text`,
		`CREATE TABLE t (id uuid, a taskid, b int, c bigint, d varchar(20), PRIMARY KEY (id)) PARTITION BY HASH (id)`,
		`CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0)`,
		`CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1)`,
		`INSERT INTO t VALUES ('`+uuid1+`', E'a\tb\n\\N', -7, 9223372036854775807, ''), ('`+uuid2+`', NULL, NULL, NULL, NULL)`)
	all := reconciler.Binding{Schema: "public", Table: "t", Key: "id", CeleryID: true, Columns: []string{"a", "b", "c", "d"}}
	columns := all
	columns.CeleryID = false
	nothing := columns
	nothing.Columns = nil
	s := open(t, url, all, columns, nothing)
	collect := func(each func(context.Context, int, func(string) error) error, binding int) []string {
		var ids []string
		if err := each(t.Context(), binding, func(id string) error { ids = append(ids, id); return nil }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(ids)
		return ids
	}
	ofColumns := []string{"", "-7", "9223372036854775807", "a\tb\n\\N"}
	both := append(slices.Clone(ofColumns), uuid1, uuid2)
	slices.Sort(both)
	if got := collect(s.EachID, 0); !slices.Equal(got, both) {
		t.Errorf("%q, want %q", got, both)
	}
	if got := collect(s.EachID, 1); !slices.Equal(got, ofColumns) {
		t.Errorf("%q, want %q", got, ofColumns)
	}
	if got := collect(s.EachID, 2); len(got) != 0 {
		t.Errorf("%q, want none", got)
	}
	if got := collect(s.EachKey, 2); !slices.Equal(got, []string{uuid1, uuid2}) {
		t.Errorf("%q, want the keys", got)
	}

	exec(t, conn, `INSERT INTO t (id, a) SELECT gen_random_uuid(), repeat('x', i % 3000) FROM generate_series(1, 20000) i`)
	bytes := 0
	if err := s.EachID(t.Context(), 1, func(id string) error { bytes += len(id); return nil }); err != nil || bytes < 20_000_000 {
		t.Errorf("%d bytes, %v", bytes, err)
	}
	if n, err := s.Count(t.Context(), 0); err != nil || n != 20_002 {
		t.Errorf("count %d, %v", n, err)
	}
	if n, err := s.Estimate(t.Context(), 0); err != nil || n < 20_002 {
		t.Errorf("estimate without statistics %d, %v", n, err)
	}
	exec(t, conn, `ANALYZE t0`, `ANALYZE t1`)
	if n, err := s.Estimate(t.Context(), 0); err != nil || n != 20_002 {
		t.Errorf("estimate %d, %v", n, err)
	}

	stop := errors.New("enough")
	if err := s.EachID(t.Context(), 0, func(string) error { return stop }); !errors.Is(err, stop) || errors.Is(err, reconciler.ErrUnreachable) {
		t.Errorf("%v, want the error of yield", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.EachID(ctx, 0, func(string) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	lookOne(t, s, task(uuid1)) // the store goes on

	empty, err := s.EmptyTables(t.Context())
	if err != nil || empty != 0 {
		t.Errorf("empty %b, %v", empty, err)
	}
	exec(t, conn, `TRUNCATE t`)
	if empty, err = s.EmptyTables(t.Context()); err != nil || empty != 7 {
		t.Errorf("empty %b, %v", empty, err)
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	want, err := open(t, url).Identity(t.Context())
	if err != nil || !strings.Contains(want, "/db") || len(want) < 20 {
		t.Fatalf("%q, %v", want, err)
	}
	if got, err := open(t, plainRole(t, conn, url, "")).Identity(t.Context()); err != nil || got != want {
		t.Errorf("a plain role reads %q, %v, want %q", got, err, want)
	}
	otherURL, _ := database(t)
	if other, err := open(t, otherURL).Identity(t.Context()); err != nil || other == want {
		t.Errorf("another database: %q, %v", other, err)
	}
}

// TestCheck follows every fix that Check gives until nothing is left to mend.
func TestCheck(t *testing.T) {
	t.Parallel()
	url, conn := database(t, `CREATE SCHEMA "S s"`, `CREATE TABLE "S s"."t t" (id uuid, "c c" text)`,
		`ALTER TABLE "S s"."t t" ENABLE ROW LEVEL SECURITY`)
	s := open(t, plainRole(t, conn, url, ""), reconciler.Binding{Schema: "S s", Table: "t t", Key: "id", CeleryID: true, Columns: []string{"c c"}},
		reconciler.Binding{Schema: "public", Table: "nowhere", Key: "id"})
	findings, err := s.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var bad, fatal int
	for _, f := range findings {
		if f.OK {
			continue
		}
		bad++
		if f.Fatal {
			fatal++
		}
		if f.Detail == "" || f.Fix == "" {
			t.Errorf("%+v says too little", f)
		}
		if strings.HasSuffix(f.Fix, ";") {
			for _, sql := range strings.Split(strings.TrimSuffix(f.Fix, ";"), "; ") {
				exec(t, conn, sql)
			}
		}
	}
	if bad != 5 || fatal != 3 { // table, rights, row security; two indexes
		t.Errorf("%d findings, %d fatal: %+v", bad, fatal, findings)
	}
	exec(t, conn, `CREATE TABLE nowhere (id uuid PRIMARY KEY)`)
	exec(t, conn, `GRANT SELECT ON nowhere TO PUBLIC`)
	findings, err = s.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if !f.OK {
			t.Errorf("after the fixes: %+v", f)
		}
	}
	lookOne(t, s, task(uuid1))
}
