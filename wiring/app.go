package wiring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/fx"
	"go.uber.org/fx/fxevent"
	"golang.org/x/sync/errgroup"

	"github.com/orphanwatch/orphanwatch/reconciler/postgres"
	"github.com/orphanwatch/orphanwatch/watcher"
)

// stopTimeout is how long a shutdown may take in all: the drain, and then what
// it leaves for the rest.
const stopTimeout = 10 * time.Second

// gcPercent is Go's GOGC where that is not set: the heap is small, so collecting
// more often costs little, and a burst leaves less behind.
const gcPercent = 40

// Run is the daemon. It returns when ctx ends and what was in hand is done, or
// with the error of what has died.
func Run(ctx context.Context, c *Config, log *slog.Logger, version Version) error {
	if was := debug.SetGCPercent(gcPercent); was != 100 {
		debug.SetGCPercent(was) // GOGC says otherwise
	}
	var died error
	app := fx.New(options(ctx, c, log, version, &died))
	if err := app.Err(); err != nil {
		return fmt.Errorf("start: %w", dig(err))
	}
	if err := app.Start(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	select {
	case <-ctx.Done():
	case <-app.Wait():
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	stopped := app.Stop(bounded)
	return errors.Join(died, stopped)
}

func options(ctx context.Context, c *Config, log *slog.Logger, version Version, died *error) fx.Option {
	return fx.Options(
		fx.WithLogger(func() fxevent.Logger {
			l := &fxevent.SlogLogger{Logger: log}
			l.UseLogLevel(slog.LevelDebug)
			l.UseErrorLevel(slog.LevelDebug) // Run returns them
			return l
		}),
		fx.StopTimeout(stopTimeout),
		fx.Supply(c, log, version),
		fx.Provide(
			func() context.Context { return ctx },
			NewInstance,
			watcher.NewPulse,
			NewTelemetry,
			NewRedis,
			NewStore,
			NewBrokerClient,
			NewBroker,
			NewRows,
			NewChildRows,
			NewReplication,
			NewReconciler,
			NewDesk,
			NewController,
			NewOperator,
			NewSchedule,
			NewServices,
			NewServer,
			NewNotifier,
		),
		// Telemetry first: instruments are made from the global providers.
		fx.Invoke(func(*Telemetry) {}),
		fx.Invoke(func(lc fx.Lifecycle, down fx.Shutdowner, t *Telemetry, rows *postgres.Store, children ChildRows, results *redis.Client, broker BrokerClient, controller *watcher.Controller, operator *Operator, schedule *Schedule, server *Server, notifier *Notifier) {
			running, stop := context.WithCancel(context.WithoutCancel(ctx))
			g, running := errgroup.WithContext(running)
			ended := make(chan struct{})
			lc.Append(fx.Hook{
				OnStart: func(context.Context) error {
					g.Go(func() error { return controller.Run(running) })
					g.Go(func() error { return schedule.Run(running) })
					g.Go(func() error { return server.Run(running) })
					g.Go(func() error { return notifier.Run(running) })
					go func() {
						*died = g.Wait()
						close(ended)
						_ = down.Shutdown() // the only error is that it is already going on
					}()
					return nil
				},
				OnStop: func(ctx context.Context) error {
					stop()
					select {
					case <-ended:
					case <-ctx.Done():
						return fmt.Errorf("stop: %w", ctx.Err())
					}
					rows.Close()
					children.Close()
					return errors.Join(operator.Close(), results.Close(), broker.Close(), t.Shutdown(ctx))
				},
			})
			log.InfoContext(ctx, "orphanwatch", "version", string(version), "http", server.Addr())
		}),
	)
}

// dig is the error of the constructor that failed, without fx's words around it.
func dig(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		if _, ok := err.(interface{ CanVisualizeError() bool }); !ok {
			return err
		}
		err = inner
	}
}
