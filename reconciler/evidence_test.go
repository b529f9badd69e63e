package reconciler

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSnapshotSees(t *testing.T) {
	const epoch = 3 << 32
	s := Snapshot{Xmin: epoch + 10, Xmax: epoch + 20, Running: []uint64{epoch + 12, epoch + 15}}
	for xid, want := range map[uint32]bool{9: true, 10: true, 12: false, 13: true, 15: false, 19: true, 20: false, 25: false, math.MaxUint32: true} {
		require.Equal(t, want, s.Sees(xid), xid)
	}
	first := Snapshot{Xmin: 5, Xmax: 6}
	require.True(t, first.Sees(4))
	require.False(t, first.Sees(6))
	wrapped := Snapshot{Xmin: epoch - 2, Xmax: epoch + 3, Running: []uint64{epoch - 2}}
	require.False(t, wrapped.Sees(math.MaxUint32-1))
	require.True(t, wrapped.Sees(math.MaxUint32))
	require.True(t, wrapped.Sees(1))
}

func TestFence(t *testing.T) {
	tx := func(ids ...string) (out []Transaction) {
		for _, id := range ids {
			out = append(out, Transaction{ID: id})
		}
		return out
	}
	f := NewFence(time.Now(), Running{At: 100, Virtual: tx("2/1", "3/1"), Prepared: tx("old")})
	require.False(t, f.Ended(), "nothing observed yet")
	f.Observe(Running{Virtual: tx("3/1", "2/2")})
	require.False(t, f.Ended())
	require.Equal(t, tx("3/1"), f.Waiting())
	// 3/1 prepares: its virtual transaction ends, it does not.
	f.Observe(Running{Virtual: tx("2/3"), Prepared: tx("new", "old")})
	require.False(t, f.Ended())
	f.Observe(Running{Prepared: tx("new", "other")})
	require.Equal(t, tx("new"), f.Waiting())
	f.Observe(Running{Prepared: tx("other")})
	require.True(t, f.Ended())
}

// A fence passes only once every transaction of its moment has ended, however
// they end and are observed.
func TestFenceNeverPassesEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type txn struct {
			id       string
			prepared bool
			ours     bool
		}
		var live []txn
		next := 0
		start := func(ours bool) {
			next++
			live = append(live, txn{id: string(rune('a'+next%26)) + string(rune('0'+next/26)), ours: ours})
		}
		for range rapid.IntRange(0, 4).Draw(t, "open") {
			start(true)
		}
		asked := time.Now()
		read := func() (r Running) {
			asked = asked.Add(time.Second)
			r.Asked = asked
			for _, x := range live {
				if x.prepared {
					r.Prepared = append(r.Prepared, Transaction{ID: "gid-" + x.id})
				} else {
					r.Virtual = append(r.Virtual, Transaction{ID: x.id})
				}
			}
			return r
		}
		f := NewFence(time.Now(), read())
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				start(false)
			case 1:
				if len(live) > 0 {
					live = slices.Delete(live, 0, 1)
				}
			case 2:
				if len(live) > 0 {
					live[rapid.IntRange(0, len(live)-1).Draw(t, "which")].prepared = true
				}
			case 3:
				// Another worker's newer list may be observed before this one.
				older := read()
				if rapid.Bool().Draw(t, "prepare in between") && len(live) > 0 {
					live[0].prepared = true
					f.Observe(read())
				}
				f.Observe(older)
			}
			if f.Ended() && slices.ContainsFunc(live, func(x txn) bool { return x.ours }) {
				t.Fatalf("passed while %v are open", live)
			}
		}
	})
}

func TestCanonicalID(t *testing.T) {
	const id = "0a1b2c3d-0000-4000-8000-00000000002a"
	for _, s := range Spellings(id) {
		require.Equal(t, id, CanonicalID(s))
	}
	require.Len(t, Spellings(id), 4)
	require.Equal(t, []string{"scan:42"}, Spellings("scan:42"))
	digits := "11111111-1111-1111-1111-111111111111"
	require.Equal(t, []string{digits, "11111111111111111111111111111111"}, Spellings(digits), "no spelling twice")
	require.Equal(t, id, CanonicalID("0A1b2C3d-0000-4000-8000-00000000002a"))
	for _, s := range []string{"", "1", "0a1b2c3d_0000-4000-8000-00000000002a", "0a1b2c3d-0000-4000-8000-00000000002g", "{0a1b2c3d-0000-4000-8000-00000000002a}"} {
		require.Equal(t, s, CanonicalID(s))
	}
}

func TestMemoryHoldsAtLeastHalfOfItsLimit(t *testing.T) {
	m := NewMemory(100)
	for i := range 1000 {
		m.Add(RowSubject(0, string(rune(i))))
	}
	for i := 951; i < 1000; i++ {
		require.True(t, m.Has(RowSubject(0, string(rune(i)))))
	}
	require.False(t, m.Has(RowSubject(0, string(rune(0)))))
	require.False(t, m.Has(RowSubject(1, string(rune(999)))))
}
