package keyspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// unavailable is why one way of watching is not to be had, though the server
// answers, and what mends that.
type unavailable struct {
	err error
	fix string
}

func (u *unavailable) Error() string { return u.err.Error() + "; fix: " + u.fix }

func (u *unavailable) Unwrap() error { return u.err }

// misconfigured ends Run: waiting does not help.
type misconfigured struct{ error }

func (m *misconfigured) Unwrap() error { return m.error }

// connect makes the best subscription that the server lets us have.
func (w *watch) connect(ctx context.Context) (*subscription, error) {
	before := w.identity
	if err := w.identify(ctx); err != nil {
		return nil, err
	}
	if err := w.identity.differs(before); err != nil {
		w.log(slog.LevelWarn, "redis is not what it was", slog.String("change", err.Error()))
	}
	return w.best(ctx, w.kind.modes)
}

// climb makes a subscription that is better than one that works, and closes that
// one; where there is none yet it returns the old one, with the present reason.
func (w *watch) climb(ctx context.Context, sub *subscription) *subscription {
	better, err := w.best(ctx, w.kind.modes[:slices.Index(w.kind.modes, sub.mode)])
	if better != nil {
		sub.close()
		w.connected(better, &ending{gapLadder, time.Now()})
		return better
	}
	if u := (*unavailable)(nil); errors.As(err, &u) {
		sub.why = err
		w.reportWatching(sub)
	}
	return sub
}

// best opens the first of these that is available. An error that is not
// *unavailable says nothing about the ways below: it ends the search.
func (w *watch) best(ctx context.Context, modes []string) (*subscription, error) {
	var why error
	for _, mode := range modes {
		sub, err := w.open(ctx, mode)
		if err == nil {
			sub.why = why
			return sub, nil
		}
		var u *unavailable
		if !errors.As(err, &u) {
			return nil, err
		}
		why = join(why, fmt.Errorf("no %s: %w", mode, err))
	}
	return nil, why
}

// join keeps errors on one line.
func join(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

// open makes a subscription, and returns it confirmed and proven.
func (w *watch) open(ctx context.Context, mode string) (*subscription, error) {
	reconciler.Beat(ctx) // each way takes some answers of up to answerTimeout
	sub := &subscription{mode: mode, canary: w.canaryKey}
	sub.hint = func(key string, seen time.Time) { w.hint(w.sink, key, seen) }
	if mode == ModeKeyspace {
		if err := w.assertFlags(ctx); err != nil {
			return nil, err
		}
	}
	exact, globs, parse := w.opts.channels(mode, w.canaryKey)
	sub.parse = parse
	sub.start(ctx, w.client, exact, globs)
	err := w.await(ctx, sub, exact, globs)
	if err == nil {
		err = w.canary(ctx, sub)
	}
	if err != nil {
		sub.close()
		return nil, err
	}
	return sub, nil
}

// await waits for the confirmation of every channel and pattern.
func (w *watch) await(ctx context.Context, sub *subscription, exact, globs []string) error {
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	select {
	case <-sub.confirmed:
		return nil
	case <-timeout.C:
		return fmt.Errorf("subscribe: no confirmation within %s", answerTimeout)
	case <-sub.ctx.Done():
	}
	err := sub.cause().err
	if redis.IsPermissionError(err) {
		rules := append(channelRules(exact, globs), "+subscribe", "+psubscribe", "+ping")
		return &unavailable{err, aclFix(whoami(ctx, w.client), lacking(err, rules)...)}
	}
	return err
}

// channelRules are the ACL rules of the channels that we subscribe. A pattern needs
// the literal pattern; for a channel any glob that matches it will do.
func channelRules(exact, globs []string) []string {
	var rules []string
	for _, c := range exact {
		if at := strings.Index(c, canaryPrefix); at >= 0 {
			c = c[:at] + canaryPrefix + "*" // each process has its own
		}
		rules = append(rules, "&"+c)
	}
	for _, g := range globs {
		rules = append(rules, "&"+g)
	}
	return rules
}

// lacking are the rules that a refusal asks for: where it is a command's, nothing is
// known of keys and channels, and Redis refuses a pattern beside ~* or &*.
func lacking(err error, rules []string) []string {
	if !forCommand(err.Error()) {
		return rules
	}
	return slices.DeleteFunc(slices.Clone(rules), func(rule string) bool { return rule[0] != '+' })
}

// aclFix is the command that gives a user rights.
func aclFix(user string, rules ...string) string {
	quoted := make([]string, len(rules))
	for i, r := range rules {
		quoted[i] = "'" + strings.ReplaceAll(r, "'", `'\''`) + "'"
	}
	return "redis-cli ACL SETUSER " + user + " " + strings.Join(quoted, " ")
}

// whoami is the user whose rights we have.
func whoami(ctx context.Context, client *redis.Client) string {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if name, err := client.Do(ctx, "ACL", "WHOAMI").Text(); err == nil {
		return name
	}
	if name := client.Options().Username; name != "" {
		return name
	}
	return "default"
}

// assertFlags adds what notify-keyspace-events lacks, where that is allowed. Where
// the server does not tell, as managed ones do not, the canary will.
func (w *watch) assertFlags(ctx context.Context) error {
	flagsLock.Lock() // reading and adding are two steps, and there are two sources
	defer flagsLock.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	client := w.client
	have, err := readFlags(ctx, client)
	if err != nil {
		w.log(slog.LevelDebug, "the flags of redis cannot be read", slog.String("error", err.Error()))
		return nil
	}
	if hasFlags(have, w.kind.flags) {
		return nil
	}
	want := addFlags(have, w.kind.flags)
	off := fmt.Errorf("notify-keyspace-events is %q", have)
	if w.opts.Configure == ConfigureNever {
		return &unavailable{fmt.Errorf("%w and redis.configure is %s", off, ConfigureNever), flagsFix(want)}
	}
	if err := setFlags(ctx, client, have, want); err != nil {
		return &unavailable{fmt.Errorf("%w and cannot be changed: %w", off, err), flagsFix(want)}
	}
	w.log(slog.LevelWarn, "keyspace events were off: added flags", slog.String("found", have), slog.String("set", want),
		slog.String("hint", "to keep them over a restart, put "+flagsLine(want)+" into redis.conf"))
	return nil
}

// setFlags replaces have by want, its union with what we need.
func setFlags(ctx context.Context, client *redis.Client, have, want string) error {
	err := client.ConfigSet(ctx, flagsName, want+hiddenFlags(have)).Err()
	if err != nil && hiddenFlags(have) != "" {
		err = client.ConfigSet(ctx, flagsName, want).Err()
	}
	return err
}

var flagsLock sync.Mutex

const flagsName = "notify-keyspace-events"

// readFlags may fail though the server is well: CONFIG is not allowed everywhere.
func readFlags(ctx context.Context, client *redis.Client) (string, error) {
	values, err := client.ConfigGet(ctx, flagsName).Result()
	if err != nil {
		return "", fmt.Errorf("read %s: %w", flagsName, err)
	}
	have, ok := values[flagsName]
	if !ok {
		return "", fmt.Errorf("read %s: this server does not know it", flagsName)
	}
	return have, nil
}

// flagsFix is how an operator sets the flags.
func flagsFix(want string) string {
	return fmt.Sprintf("redis-cli CONFIG SET %s '%s', and in redis.conf: %s", flagsName, want, flagsLine(want))
}

func flagsLine(want string) string { return fmt.Sprintf("%s %q", flagsName, want) }
