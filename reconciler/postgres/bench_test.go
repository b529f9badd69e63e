package postgres_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// BenchmarkLook looks up ids in a table of 2e5, half of which are there, beside
// the bare statement with the same arrays.
func BenchmarkLook(b *testing.B) {
	url, conn := database(b, `CREATE TABLE t (id uuid PRIMARY KEY)`,
		`INSERT INTO t SELECT ('a2000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid FROM generate_series(0, 399998, 2) i`, `ANALYZE t`)
	s := open(b, url, byKey("t"))
	for _, size := range []int{1, 16, 1000} {
		looks := make([]reconciler.Look, size)
		ids := make([][16]byte, size)
		for i := range looks {
			looks[i].Subject = reconciler.TaskSubject(fmt.Sprintf("a2000000-0000-4000-8000-%012d", i*397))
			id, err := hex.DecodeString(strings.ReplaceAll(looks[i].Subject.ID, "-", ""))
			if err != nil {
				b.Fatal(err)
			}
			copy(ids[i][:], id)
		}
		perSecond := func(b *testing.B) { b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "ids/s") }
		b.Run(fmt.Sprint("look-", size), func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Look(b.Context(), looks); err != nil {
					b.Fatal(err)
				}
			}
			perSecond(b)
		})
		b.Run(fmt.Sprint("bare-", size), func(b *testing.B) {
			for b.Loop() {
				rows, err := conn.Query(b.Context(), "SELECT id FROM t WHERE id = ANY($1)", ids)
				if err != nil {
					b.Fatal(err)
				}
				for rows.Next() {
				}
				if rows.Err() != nil {
					b.Fatal(rows.Err())
				}
			}
			perSecond(b)
		})
	}
}

// BenchmarkEachID streams the ids of 2e5 rows.
func BenchmarkEachID(b *testing.B) {
	url, _ := database(b, `CREATE TABLE t (id uuid PRIMARY KEY)`, `INSERT INTO t SELECT gen_random_uuid() FROM generate_series(1, 200000)`)
	s := open(b, url, byKey("t"))
	n := 0
	for b.Loop() {
		if err := s.EachID(b.Context(), 0, func(string) error { n++; return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "ids/s")
}
