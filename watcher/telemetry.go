package watcher

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// The names of the instruments of this package.
const (
	metricResyncs     = "orphanwatch.resyncs"
	metricGaps        = "orphanwatch.gaps"
	metricCanary      = "orphanwatch.canary.lag"
	metricPending     = "orphanwatch.pending"
	metricOldest      = "orphanwatch.pending.oldest"
	metricConnected   = "orphanwatch.connected"
	metricLeader      = "orphanwatch.leader"
	metricMode        = "orphanwatch.source.mode"
	metricClock       = "orphanwatch.clock.offset"
	metricSlotLost    = "orphanwatch.slot.lost"
	metricRetainedWAL = "orphanwatch.slot.retained_wal"
	metricSafeWAL     = "orphanwatch.slot.safe_wal"
	metricUnreadable  = "orphanwatch.messages.unreadable"
	metricTombstones  = "orphanwatch.messages.tombstones"
)

var sourceNames = []string{SourceRedis, SourceBroker, SourcePostgres}

var sourceModes = map[string][]string{
	SourceRedis:    {ModeKeyspace, ModePublish, ModeScan},
	SourceBroker:   {ModeKeyspace, ModePublish, ModeScan},
	SourcePostgres: {ModeReplication},
}

var resyncReasons = []string{"start", "interval", "gap", "asked for"}

const describeCanary = "How long a probe took through a source and the queue."

// Histograms are those of this package.
func Histograms() []reconciler.Histogram {
	canary := reconciler.Histogram{Name: metricCanary, Description: describeCanary}
	for _, source := range sourceNames {
		canary.Series = append(canary.Series, attribute.NewSet(attribute.String("source", source)))
	}
	return []reconciler.Histogram{canary}
}

type telemetry struct {
	resyncs, gaps, slotLost metric.Int64Counter
	canaryLag               metric.Float64Histogram
	failure                 firstOnly
}

func newTelemetry(c *Controller) (*telemetry, error) {
	m := otel.Meter("github.com/orphanwatch/orphanwatch/watcher")
	t := &telemetry{}
	var errs [16]error
	t.resyncs, errs[0] = m.Int64Counter(metricResyncs, metric.WithDescription("Whole passes over both stores, by reason."))
	t.gaps, errs[1] = m.Int64Counter(metricGaps, metric.WithDescription("Moments in which events of a source may have been missed."))
	t.canaryLag, errs[2] = m.Float64Histogram(metricCanary, metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(reconciler.LagBuckets...),
		metric.WithDescription(describeCanary))
	gauge := func(i int, name, unit, text string) metric.Int64ObservableGauge {
		g, err := m.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(text))
		errs[i] = err
		return g
	}
	pending := gauge(3, metricPending, "", "Entries in the queue.")
	connected := gauge(4, metricConnected, "", "1 while events of the source flow.")
	leader := gauge(5, metricLeader, "", "1 while this copy leads.")
	retained := gauge(6, metricRetainedWAL, "By", "WAL that the slot holds back.")
	safe := gauge(7, metricSafeWAL, "By", "WAL that can still be written before the slot is lost; -1 for no limit.")
	unreadable := gauge(10, metricUnreadable, "", "Elements of queues that the last sweep could not read, and left alone.")
	tombstones := gauge(11, metricTombstones, "", "Places in queues from which a message was removed, and which wait to be taken out.")
	mode := gauge(12, metricMode, "", "1 for the way in which a source is watched now.")
	t.slotLost, errs[13] = m.Int64Counter(metricSlotLost, metric.WithDescription("Times that the replication slot was lost, or could not be read on, and was made anew."))
	t.slotLost.Add(context.Background(), 0)
	clock, err := m.Float64ObservableGauge(metricClock, metric.WithUnit("s"), metric.WithDescription("The clock of PostgreSQL minus ours; lags are corrected by it."))
	errs[14] = err
	oldest, err := m.Float64ObservableGauge(metricOldest, metric.WithUnit("s"), metric.WithDescription("Age of the oldest committed delete, or key that was seen, that is not reconciled; what only waits for its grace is not counted."))
	errs[8] = err
	_, errs[9] = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := c.Status()
		o.ObserveInt64(pending, int64(s.Queue.Pending+s.Messages.Pending))
		o.ObserveFloat64(oldest, s.Oldest)
		o.ObserveInt64(leader, int64(b2i(s.Role == RoleLeader)))
		for _, source := range sourceNames {
			o.ObserveInt64(connected, int64(b2i(s.Sources[source].Connected)), metric.WithAttributes(attribute.String("source", source)))
			for _, m := range sourceModes[source] {
				on := s.Role == RoleLeader && s.Sources[source].Mode == m
				o.ObserveInt64(mode, int64(b2i(on)), metric.WithAttributes(attribute.String("source", source), attribute.String("mode", m)))
			}
		}
		slot := Health{SafeWAL: -1}
		if s.Role == RoleLeader { // what a former one knows is old
			slot = s.Sources[SourcePostgres]
		}
		o.ObserveFloat64(clock, slot.ClockOffset.Seconds())
		o.ObserveInt64(retained, slot.RetainedWAL)
		o.ObserveInt64(safe, slot.SafeWAL)
		bad, places := c.Queues.Counts()
		o.ObserveInt64(unreadable, bad)
		o.ObserveInt64(tombstones, places)
		return nil
	}, pending, connected, leader, mode, clock, retained, safe, oldest, unreadable, tombstones)
	for _, r := range resyncReasons {
		t.resyncs.Add(context.Background(), 0, metric.WithAttributes(attribute.String("reason", r)))
	}
	for _, s := range sourceNames {
		t.gaps.Add(context.Background(), 0, metric.WithAttributes(attribute.String("source", s)))
	}
	return t, errors.Join(errs[:]...)
}

// resync counts a pass; the reasons of gaps are one label value: they are free text.
func (t *telemetry) resync(reason string) {
	if source, _, _ := strings.Cut(reason, " "); slices.Contains(sourceNames, source) {
		reason = "gap"
	}
	t.resyncs.Add(context.Background(), 1, metric.WithAttributes(attribute.String("reason", reason)))
}

func (t *telemetry) gap(source, reason string) {
	if source == SourcePostgres && strings.HasPrefix(reason, GapSlot) {
		t.slotLost.Add(context.Background(), 1)
	}
	t.gaps.Add(context.Background(), 1, metric.WithAttributes(attribute.String("source", source)))
}

func (t *telemetry) canary(source string, lag time.Duration) {
	t.canaryLag.Record(context.Background(), lag.Seconds(), metric.WithAttributes(attribute.String("source", source)))
}

// logFailure logs why reconciliations fail, once every few seconds.
func (t *telemetry) logFailure(ctx context.Context, log *slog.Logger, err error) {
	if t.failure.allow(5 * time.Second) {
		log.ErrorContext(ctx, "cannot reconcile: nothing is removed, everything is tried again", "error", err)
	}
}
