package httpapi

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// The limits. An address may fail to authenticate failBurst times, then once in
// failEvery; who has authenticated has so many calls a second, by kind, and as many
// in a burst as callBurst says.
const (
	failBurst = 100
	failEvery = 6 * time.Second

	checksPerSecond, checksBurst = 20_000, 40_000
	readsPerSecond, readsBurst   = 50, 200
	ordersPerSecond, ordersBurst = 10, 100
)

// maxLimiters is how many callers a limits remembers at least; at most twice as many.
const maxLimiters = 4096

// limits are token buckets by caller. Memory is bounded: who has not called since many
// others did is forgotten, which gives him a full bucket.
type limits struct {
	every rate.Limit
	burst int

	mu         sync.Mutex
	young, old map[string]*rate.Limiter
}

func newLimits(every rate.Limit, burst int) *limits {
	return &limits{every: every, burst: burst, young: map[string]*rate.Limiter{}}
}

// take takes one from the caller's bucket; wait is how long an empty one needs.
func (l *limits) take(caller string, now time.Time) (wait time.Duration, ok bool) {
	l.mu.Lock()
	bucket, known := l.young[caller]
	if !known {
		if bucket, known = l.old[caller]; !known {
			bucket = rate.NewLimiter(l.every, l.burst)
		}
		if len(l.young) >= maxLimiters {
			l.old, l.young = l.young, map[string]*rate.Limiter{}
		}
		l.young[caller] = bucket
	}
	l.mu.Unlock()
	if bucket.AllowN(now, 1) {
		return 0, true
	}
	r := bucket.ReserveN(now, 1)
	wait = r.DelayFrom(now)
	r.CancelAt(now)
	return wait, false
}

// network is the address that failures are counted of: of IPv6 its /64, which is
// one customer's.
func network(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}
