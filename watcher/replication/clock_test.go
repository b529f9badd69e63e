package replication

import (
	"testing"
	"time"
)

// The answer that took the least time is the best one, for as long as clocks stay.
func TestClock(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	c := &clock{}
	off := func() time.Duration { return c.local(at).Sub(at) }
	c.take(at, 20*time.Millisecond, at.Add(10*time.Millisecond+time.Hour))
	if got := off(); got != -time.Hour {
		t.Errorf("off by %v, want an hour", got)
	}
	c.take(at.Add(time.Second), 40*time.Millisecond, at.Add(2*time.Hour))
	if got := off(); got != -time.Hour {
		t.Errorf("off by %v after a slower answer, want an hour still", got)
	}
	c.take(at.Add(2*time.Second), 2*time.Millisecond, at.Add(2*time.Second+time.Millisecond-time.Minute))
	if got := off(); got != time.Minute {
		t.Errorf("off by %v after a faster answer, want minus a minute", got)
	}
	later := at.Add(2*time.Second + clockAge)
	c.take(later, time.Second, later.Add(time.Second/2))
	if got := off(); got != 0 {
		t.Errorf("off by %v after the clocks were set, want nothing", got)
	}
}
