package keyspace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// canary makes an event of our own, in the database and through the client by which
// everything else is done, and waits for it to come out of the subscription. Then it
// goes into the set, so that it takes the rest of the way as well.
func (w *watch) canary(ctx context.Context, sub *subscription) error {
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	sending, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	select {
	case <-sub.echo: // of a canary that was given up
	default:
	}
	sent := time.Now()
	if sub.mode == ModeScan {
		return nil
	}
	if what, err := w.opts.send(sending, w.client, sub.mode, w.canaryKey); err != nil {
		return w.refused(ctx, what, err, w.opts.sendRights(sub.mode)...)
	}
	select {
	case <-sub.echo:
		w.hint(w.sink, w.canaryKey, sent)
		return nil
	case <-sub.ctx.Done():
		return sub.cause()
	case <-timeout.C:
		return w.unheard(ctx, sub, sent)
	}
}

// refused tells an answer that concerns this canary from a server that is not
// there, or not able to do anything now.
func (w *watch) refused(ctx context.Context, what string, err error, rules ...string) error {
	err = fmt.Errorf("canary: %s: %w", what, err)
	var answer redis.Error
	switch {
	case redis.IsPermissionError(err):
		return &unavailable{err, aclFix(whoami(ctx, w.client), lacking(err, rules)...)}
	case !errors.As(err, &answer), redis.IsLoadingError(err), redis.IsReadOnlyError(err), redis.IsMasterDownError(err),
		redis.HasErrorPrefix(answer, "BUSY"):
		return err
	}
	return &unavailable{err, "make the server accept writes again"}
}

// unheard explains a canary that nobody saw. When the connection itself has been
// heard since, its messages are what is missing.
func (w *watch) unheard(ctx context.Context, sub *subscription, sent time.Time) error {
	if sub.lastHeard().Before(sent) {
		return &lost{gapSilent, fmt.Errorf("canary: no sign of life for %s", time.Since(sub.lastHeard()).Round(time.Millisecond))}
	}
	err := fmt.Errorf("canary: its event did not come within %s", answerTimeout)
	if sub.mode != ModeKeyspace {
		return &unavailable{err, "check that redis.url names one server, not several behind a proxy"}
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	have, readErr := readFlags(ctx, w.client)
	if readErr != nil {
		return &unavailable{err, flagsFix(w.kind.flags)}
	}
	return &unavailable{fmt.Errorf("%w; %s is %q", err, flagsName, have), flagsFix(addFlags(have, w.kind.flags))}
}

// identity is which server it is, and in which role; zero where it does not say.
type identity struct {
	runID, replID, role string
}

// differs says what has changed since an earlier look, nil for nothing or where
// either is not known.
func (i identity) differs(from identity) error {
	if i == from || i == (identity{}) || from == (identity{}) {
		return nil
	}
	switch {
	case i.runID != from.runID:
		return fmt.Errorf("another redis process answers: run_id was %s, is %s", from.runID, i.runID)
	case i.role != from.role:
		return fmt.Errorf("role was %s, is %s", from.role, i.role)
	}
	return fmt.Errorf("fail-over: master_replid was %s, is %s", from.replID, i.replID)
}

// identify asks the server what it is. It is an error when that is not a master
// that is ready; a server that does not let us ask is taken as one.
func (w *watch) identify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	info, err := readInfo(ctx, w.client)
	if redis.IsPermissionError(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if info["redis_mode"] == "cluster" {
		return &misconfigured{errCluster}
	}
	if info["role"] != "master" {
		return fmt.Errorf("redis is a replica; fix: %s", replicaFix(info))
	}
	if info["loading"] == "1" {
		return errors.New("redis is loading its data")
	}
	w.identity = identity{info["run_id"], info["master_replid"], info["role"]}
	return nil
}

var errCluster = reconciler.Hint(
	errors.New("redis runs in cluster mode, which Celery does not support"), clusterFix)

const clusterFix = "name the Redis that Celery uses in redis.url, or put cluster-enabled no into redis.conf"

func replicaFix(info map[string]string) string {
	return fmt.Sprintf("name its master, %s:%s, in redis.url", info["master_host"], info["master_port"])
}

// readInfo is INFO, field by field.
func readInfo(ctx context.Context, client *redis.Client) (map[string]string, error) {
	sections, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, section := range []string{"server", "persistence", "replication", "memory"} {
			p.Info(ctx, section)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("info: %w", err)
	}
	fields := map[string]string{}
	for _, section := range sections {
		text := section.(*redis.StringCmd).Val()
		for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
			if name, value, ok := strings.Cut(lines.Text(), ":"); ok {
				fields[name] = value
			}
		}
	}
	return fields, nil
}
