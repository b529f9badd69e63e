package reconciler

import (
	"hash/maphash"
	"sync"
)

// Memory remembers the subjects whose deletion was seen, so that what appears
// late (the result of a task that was running) is known to be of a deleted row.
// It holds fingerprints of the newest ones only: at least half of its limit.
type Memory struct {
	mu       sync.Mutex
	seed     maphash.Seed
	limit    int
	new, old map[uint64]struct{}
}

// NewMemory remembers up to limit subjects.
func NewMemory(limit int) *Memory {
	return &Memory{seed: maphash.MakeSeed(), limit: limit, new: map[uint64]struct{}{}}
}

// Add remembers the deletion of s.
func (m *Memory) Add(s Subject) {
	h := maphash.Comparable(m.seed, s)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.new[h] = struct{}{}
	if len(m.new) >= m.limit/2 {
		m.new, m.old = make(map[uint64]struct{}), m.new
	}
}

// Forget the deletion of s: its row exists again.
func (m *Memory) Forget(s Subject) {
	h := maphash.Comparable(m.seed, s)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.new, h)
	delete(m.old, h)
}

// Has tells whether the deletion of s is remembered.
func (m *Memory) Has(s Subject) bool {
	h := maphash.Comparable(m.seed, s)
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.new[h]; ok {
		return true
	}
	_, ok := m.old[h]
	return ok
}
