package celery

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The pause is as long as the share asks for.
func TestPacerKeepsTheShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, began := newPacer(0.25, paceBurst), time.Now()
		for range 1000 {
			time.Sleep(4 * time.Millisecond)
			p.owe(4 * time.Millisecond)
			require.NoError(t, p.pay(t.Context()))
		}
		require.InDelta(t, 16, time.Since(began).Seconds(), 0.1)
	})
}

// An outage, in which every call takes until its timeout, is not paid for when the
// server is back: nothing would be done for hours, and the watchdog would find a hang.
func TestPacerForgetsAnOutage(t *testing.T) {
	for _, share := range []float64{0.001, 0.5} {
		synctest.Test(t, func(t *testing.T) {
			p := newPacer(share, brokerBurst)
			for range 100 {
				time.Sleep(6 * time.Second)
				for range 3 { // loops at once
					p.owe(5 * time.Second)
				}
			}
			back := time.Now()
			require.NoError(t, p.pay(t.Context()))
			require.LessOrEqual(t, time.Since(back), maxPause)
			require.NoError(t, p.pay(t.Context()))
			require.LessOrEqual(t, time.Since(back), maxPause, "it has been paid")
		})
	}
}
