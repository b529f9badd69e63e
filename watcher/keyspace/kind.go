package keyspace

import (
	"context"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/watcher"
)

// kind is what a source watches: which events tell of it, and how their way is proven.
type kind struct {
	// source is its name in metrics and logs.
	source string
	// flags of notify-keyspace-events, and the ways of watching, best first.
	flags string
	modes []string
	// missed is what is not seen without the flags.
	missed string
	// rights are what is done in this Redis: see rights.go.
	rights func(o Options) []right
}

// The flags of notify-keyspace-events: keyspace channels and string commands; key-
// event channels, and the commands of lists and sets.
const (
	resultFlags = "K$"
	brokerFlags = "Els"
)

var (
	// resultKeys: the keyspace channels of result and companion keys, and the events
	// of string commands.
	resultKeys = kind{
		source: watcher.SourceRedis, flags: resultFlags, modes: []string{ModeKeyspace, ModePublish, ModeScan},
		missed: "writes of results are not announced", rights: resultRights,
	}
	// queueLists: the keyevent channels of pushes to any list, so that no new queue
	// is missed, and of new bindings.
	queueLists = kind{
		source: watcher.SourceBroker, flags: brokerFlags, modes: []string{ModeKeyspace, ModeScan},
		missed: "new messages are not announced", rights: brokerRights,
	}
)

// listEvents are the events that bring a message or a binding.
var listEvents = []string{"lpush", "rpush", "sadd"}

// kind of the options.
func (o Options) kind() kind {
	if o.Lists {
		return queueLists
	}
	return resultKeys
}

// channels are what is subscribed to in a mode, and read finds the key in what comes of it.
func (o Options) channels(mode, canary string) (exact, globs []string, read func(channel, payload string) (string, bool)) {
	db := o.Client.Options().DB
	switch {
	case mode == ModeScan:
		return nil, nil, nil
	case o.Lists:
		for _, e := range listEvents {
			exact = append(exact, eventPrefix(db)+e)
		}
		return exact, nil, func(_, key string) (string, bool) { return key, key != "" }
	}
	prefix, patterns := "", o.Keys.Patterns()
	if mode == ModeKeyspace {
		prefix = channelPrefix(db)
	} else {
		patterns = patterns[:1]
	}
	for _, p := range patterns {
		globs = append(globs, prefix+p)
	}
	return []string{prefix + canary}, globs, func(channel, payload string) (string, bool) { return parse(prefix, channel, payload) }
}

// send makes the canary's event. What it leaves is gone after canaryLife.
func (o Options) send(ctx context.Context, client *redis.Client, mode, canary string) (what string, err error) {
	switch {
	case mode == ModePublish:
		return "publish", client.Publish(ctx, canary, 1).Err()
	case o.Lists:
		commands, err := client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.LPush(ctx, canary, 1)
			p.LTrim(ctx, canary, 0, 0)
			p.PExpire(ctx, canary, canaryLife)
			return nil
		})
		for _, c := range commands { // the transaction itself does not say why it was refused
			if redis.IsPermissionError(c.Err()) {
				return c.Name(), c.Err()
			}
		}
		return "lpush", err
	}
	return "set", client.Set(ctx, canary, 1, canaryLife).Err()
}

// sendRights are the ACL rules that send needs.
func (o Options) sendRights(mode string) []string {
	switch {
	case mode == ModePublish:
		return []string{"&" + canaryPrefix + "*", "+publish"}
	case o.Lists:
		return []string{"~" + canaryPrefix + "*", "+lpush", "+ltrim", "+pexpire", "+multi", "+exec"}
	}
	return []string{"~" + canaryPrefix + "*", "+set"}
}

// canaryLife is how long the canary's key lives.
const canaryLife = 5 * time.Second

// eventPrefix is what Redis puts in front of an event to name its keyevent channel.
func eventPrefix(db int) string { return strings.Replace(channelPrefix(db), "keyspace", "keyevent", 1) }
