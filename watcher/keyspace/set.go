package keyspace

import (
	"sync"
	"time"
)

// set holds the keys that have been seen and not yet drained, one entry a key
// however often it is written. It never blocks.
type set struct {
	limit int
	// filled has one token when the set may not be empty.
	filled chan struct{}

	mu   sync.Mutex
	keys map[string]time.Time
}

func newSet(limit int) *set {
	return &set{limit: limit, filled: make(chan struct{}, 1), keys: map[string]time.Time{}}
}

// add inserts a key; one that is there keeps the time when it was first seen. It
// reports false when there was no room: then everything in the set is dropped.
func (s *set) add(key string, seen time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.keys[key]; ok {
		return true
	}
	if len(s.keys) >= s.limit {
		s.keys = map[string]time.Time{}
		return false
	}
	s.keys[key] = seen
	select {
	case s.filled <- struct{}{}:
	default:
	}
	return true
}

// take empties the set.
func (s *set) take() map[string]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := s.keys
	s.keys = map[string]time.Time{}
	return keys
}
