package keyspace

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// watch is one Run: it keeps a subscription, in the best way that there is. Its
// fields belong to the goroutine of run.
type watch struct {
	*Source
	sink  watcher.Sink
	ready func()

	// client is of the present attempt and what comes of it.
	client   *redis.Client
	health   watcher.Health
	identity identity
	ignored  int64
}

// run connects again and again; it returns only on ctx and on configuration.
func (w *watch) run(ctx context.Context) error {
	ctx, leave := w.opts.Pulse.Enter(ctx, w.kind.source+" source", watcher.SourceLimit)
	defer leave()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, 2*time.Second
	var last *ending
	for {
		reconciler.Beat(ctx)
		began := time.Now()
		w.client = ownClient(w.opts.Client)
		sub, err := w.connect(ctx)
		if err == nil {
			w.connected(sub, last)
			last, err = w.stay(ctx, sub)
			if time.Since(began) > w.opts.CanaryEvery {
				pause.Reset()
			}
		}
		_ = w.client.Close()
		var wrong *misconfigured
		if ctx.Err() != nil || errors.As(err, &wrong) {
			return err
		}
		w.report(watcher.Health{Err: err.Error()})
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// ending is how a subscription ended.
type ending struct {
	gap string
	// sure is when it was last known to work.
	sure time.Time
}

// connected tells everybody that a subscription works: as the first one, or as a gap.
func (w *watch) connected(sub *subscription, last *ending) {
	w.reportWatching(sub)
	attrs := []slog.Attr{slog.String("mode", sub.mode)}
	if sub.why != nil {
		attrs = append(attrs, slog.String("why_not_better", sub.why.Error()))
	}
	if last == nil {
		w.log(slog.LevelInfo, "watching redis", attrs...)
		w.ready()
	} else {
		attrs = append(attrs, slog.String("gap", last.gap), slog.Float64("blind_seconds", time.Since(last.sure).Seconds()))
		w.log(slog.LevelWarn, "watching redis again: what was missed meanwhile is found by a resync", attrs...)
		w.sink.Gap(w.kind.source, last.gap)
	}
}

// stay proves the subscription again and again, and tries for a better one, until
// it is lost or ctx ends.
func (w *watch) stay(ctx context.Context, sub *subscription) (*ending, error) {
	defer func() { sub.close() }()
	prove, climb := time.NewTicker(w.opts.CanaryEvery), time.NewTicker(w.opts.RetryEvery)
	defer prove.Stop()
	defer climb.Stop()
	sure := time.Now()
	for {
		reconciler.Beat(ctx)
		var err error
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-sub.ctx.Done():
			l := sub.cause()
			return &ending{l.gap, sub.lastHeard()}, l
		case <-prove.C:
			now := time.Now()
			if err = w.prove(ctx, sub); err == nil {
				sure = now
			}
		case <-climb.C:
			sub = w.climb(ctx, sub)
		}
		var l *lost
		if errors.As(err, &l) {
			return &ending{l.gap, sure}, l
		}
		if err != nil {
			return &ending{gapCanary, sure}, err
		}
	}
}

// prove checks the whole path: that the server is the same, and that an event of
// ours comes through.
func (w *watch) prove(ctx context.Context, sub *subscription) error {
	if n := w.Ignored(); n != w.ignored {
		w.log(slog.LevelWarn, "ignored keys that cannot be of a task: no id, or one over 1 KiB", slog.Int64("events", n-w.ignored))
		w.ignored = n
	}
	before := w.identity
	if err := w.identify(ctx); err != nil {
		return err
	}
	if err := w.identity.differs(before); err != nil {
		return &lost{gapIdentity, err}
	}
	return w.canary(ctx, sub)
}

func (w *watch) reportWatching(sub *subscription) {
	h := watcher.Health{Connected: sub.mode != ModeScan, Mode: sub.mode}
	if sub.why != nil {
		h.Err = sub.why.Error()
	}
	w.report(h)
}

// report publishes a change of health; that of an error is logged, once.
func (w *watch) report(h watcher.Health) {
	if h == w.health {
		return
	}
	if !h.Connected && h.Err != w.health.Err {
		w.log(slog.LevelWarn, "redis is not watched", slog.String("error", h.Err))
	}
	w.health = h
	w.sink.Report(w.kind.source, h)
}

func (w *watch) log(level slog.Level, msg string, attrs ...slog.Attr) {
	w.opts.Log.LogAttrs(context.Background(), level, msg, attrs...) //nolint:sloglint // msg is a constant at each caller
}
