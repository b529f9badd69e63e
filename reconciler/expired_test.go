package reconciler

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// agedResults keep what they are asked, and answer as they are told.
type agedResults struct {
	clock    time.Time
	asked    []Expiry
	epoch    uint64
	report   ExpiredReport
	err      error
	clockErr error
}

func (a *agedResults) Clock(context.Context) (time.Time, error) { return a.clock, a.clockErr }

func (a *agedResults) RemoveExpired(_ context.Context, epoch uint64, e Expiry) (ExpiredReport, error) {
	a.epoch, a.asked = epoch, append(a.asked, e)
	e.Progress(Progress{Stage: "reading", Done: 1})
	return a.report, a.err
}

func TestCleanupExpired(t *testing.T) {
	w := newWorld(t, scans)
	results := &agedResults{clock: w.clock.Add(time.Hour), report: ExpiredReport{Cleaned: 3}}
	w.Results = results
	told := 0
	c := Cleanup{Trigger: ByResync, Scheduled: true, DryRun: true, Progress: func(Progress) { told++ }}
	report, err := w.CleanupExpired(t.Context(), Term{Epoch: 7}, 24*time.Hour, c)
	require.NoError(t, err)
	require.Equal(t, ExpiredReport{Cleaned: 3, MaxAgeHours: 24}, report)
	asked := results.asked[0]
	require.Equal(t, w.clock.Add(-24*time.Hour), asked.Before, "Redis's clock is ahead")
	require.Equal(t, 24*time.Hour, asked.TTL)
	require.True(t, asked.DryRun)
	require.False(t, asked.Awaited)
	require.Equal(t, Record{Evidence: Expired, Trigger: ByResync}, asked.Record)
	require.Equal(t, uint64(7), results.epoch)
	require.Equal(t, 1, told)

	results.clock = w.clock.Add(-time.Hour)
	results.err = ErrPaused
	report, err = w.CleanupExpired(t.Context(), Term{}, time.Hour, Cleanup{})
	require.ErrorIs(t, err, ErrPaused)
	require.Equal(t, ExpiredReport{Cleaned: 3, MaxAgeHours: 1}, report, "what has been done is told")
	require.Equal(t, w.clock.Add(-2*time.Hour), results.asked[1].Before, "our clock is ahead")

	results.clockErr = errors.Join(ErrUnreachable)
	_, err = w.CleanupExpired(t.Context(), Term{}, time.Hour, Cleanup{})
	require.ErrorIs(t, err, ErrUnreachable)
	require.Len(t, results.asked, 2)
	require.True(t, results.asked[1].Awaited)
}

func TestCleanupExpiredBounds(t *testing.T) {
	for age, ok := range map[time.Duration]bool{
		time.Hour: true, 168 * time.Hour: true, 0: false, -time.Hour: false, 59 * time.Minute: false,
		90 * time.Minute: false, 169 * time.Hour: false, 168*time.Hour + 1: false,
	} {
		w := newWorld(t, scans)
		results := &agedResults{clock: w.clock}
		w.Results = results
		_, err := w.CleanupExpired(t.Context(), Term{}, age, Cleanup{})
		if ok {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, "a whole number of hours from 1 to 168")
		require.Empty(t, results.asked)
	}
}
