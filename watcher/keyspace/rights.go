package keyspace

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// What orphanwatch sends to Redis, its scripts included, where K stands for a
// result or companion key, O for a key of our own, and U for a removed value of ours.
const (
	serverCommands = "PING\nINFO server\nSCAN 0\nDBSIZE\nTIME\nSCRIPT LOAD x\nMULTI\nEXEC\nCONFIG GET notify-keyspace-events"
	ownCommands    = `EVALSHA x 1 O
SET O x
MGET O
EXISTS O
PEXPIRE O 1
PTTL O
UNLINK U
PERSIST U
PEXPIREAT U 1
HSET O x x
HSETNX O x x
HGET O x
HMGET O x
HGETALL O
HDEL O x
HINCRBY O x 1
ZADD O 1 x
ZRANGE O 0 1
ZRANGEBYSCORE O 0 1
ZREMRANGEBYSCORE O 0 1
ZREMRANGEBYRANK O 0 1`
	artifactCommands = `TYPE K
STRLEN K
GETRANGE K 0 1
EXISTS K
PTTL K
MEMORY USAGE K
DUMP K
RENAMENX K U
RENAMENX U K
UNLINK K
PERSIST K
PEXPIREAT K 1`
)

// right is a command, as ACL DRYRUN takes it, and the rules that permit it.
type right struct {
	command []string
	rules   []string
}

// probes tell whether the channel of a right is permitted, whatever its command. A
// pattern that is permitted must not be in a fix: Redis refuses one beside &* or ~*.
func (r right) probes() (out []right) {
	switch r.command[0] {
	case "SUBSCRIBE", "PSUBSCRIBE":
		out = append(out, right{[]string{"PUBLISH", r.command[1], "x"}, nil})
	case "PUBLISH":
		out = append(out, right{[]string{"SUBSCRIBE", r.command[1]}, nil})
	}
	for i := range out {
		for _, rule := range r.rules {
			if rule[0] == '&' {
				out[i].rules = append(out[i].rules, rule)
			}
		}
	}
	return out
}

// forCommand tells whether Redis refuses a command, and not its keys or channels.
func forCommand(refusal string) bool { return strings.Contains(refusal, "permissions to run the '") }

// refusedCommand is the one that a refusal names. It need not be the one that was sent:
// a connection begins with others (SELECT).
func refusedCommand(err error, sent string) string {
	_, rest, _ := strings.Cut(err.Error(), "permissions to run the '")
	if name, _, ok := strings.Cut(rest, "'"); ok {
		return name
	}
	return sent
}

// brokerCommands are sent to the broker, by the key that they are about.
var brokerCommands = map[string]string{
	"celery":                "TYPE K\nLLEN K\nLINDEX K 0\nLPOS K x\nLRANGE K 0 1\nLREM K 1 x\nLSET K 0 x\nLPUSH K x\nRPUSH K x\nLTRIM K 0 1",
	"unacked":               "TYPE K\nHSCAN K 0\nHGET K x\nHDEL K x",
	"unacked_index":         "TYPE K\nZREM K x",
	"_kombu.binding.celery": "TYPE K\nSSCAN K 0\nSCARD K",
}

// resultRights are for all that is done in the Redis of the results.
func resultRights(o Options) []right {
	rights := o.rights(serverCommands+o.further(resultFlags), "")
	rights = append(rights, o.rights(ownCommands, "x", "~orphanwatch:*")...)
	exact, globs, _ := o.channels(ModeKeyspace, canaryPrefix+"x")
	rights = append(rights, right{[]string{"SUBSCRIBE", exact[0]}, append(channelRules(exact, nil), "+subscribe")})
	for i, p := range o.Keys.Patterns() {
		rights = append(rights, right{[]string{"PSUBSCRIBE", globs[i]}, []string{"+psubscribe", "&" + globs[i]}})
		// A pattern without its escapes is a key that it matches.
		rights = append(rights, o.rights(artifactCommands, unescape.Replace(p), "~orphanwatch:*", "~"+p)...)
	}
	return rights
}

// brokerRights are for all that is done in the broker's Redis: lists of any name.
func brokerRights(o Options) []right {
	rights := o.rights(serverCommands+o.further(brokerFlags), "")
	rights = append(rights, o.rights(ownCommands, "x", "~orphanwatch:*")...)
	rights = append(rights, o.rights("LPUSH O x\nRPUSH O x\nLRANGE O 0 1\nLLEN O\nLTRIM O 0 0", "x", "~orphanwatch:*")...)
	for _, key := range slices.Sorted(maps.Keys(brokerCommands)) {
		rights = append(rights, o.rights(brokerCommands[key], o.Prefix+key, "~"+escape.Replace(o.Prefix)+"*")...)
	}
	exact, _, _ := o.channels(ModeKeyspace, canaryPrefix+"x")
	for _, channel := range exact {
		rights = append(rights, right{[]string{"SUBSCRIBE", channel}, []string{"+subscribe", "&" + channel}})
	}
	for _, channel := range o.Publish {
		rights = append(rights, right{[]string{"PUBLISH", channel, "x"}, []string{"+publish", "&" + channel}})
	}
	return rights
}

// further is what is sent besides serverCommands.
func (o Options) further(flags string) (commands string) {
	if o.Client.Options().DB != 0 {
		commands = "\nSELECT " + strconv.Itoa(o.Client.Options().DB)
	}
	if o.Configure != ConfigureNever {
		commands += "\nCONFIG SET notify-keyspace-events " + flags
	}
	return commands
}

// rights are commands, with their keys put in, and the rules that permit them.
func (o Options) rights(commands, key string, rules ...string) []right {
	var rights []right
	for _, line := range strings.Split(commands, "\n") {
		words := strings.Fields(line)
		rule := "+" + strings.ToLower(words[0])
		switch words[0] {
		case "CONFIG", "SCRIPT", "MEMORY":
			rule += "|" + strings.ToLower(words[1])
		}
		for i, w := range words {
			switch w {
			case "K":
				words[i] = key
			case "O":
				words[i] = canaryPrefix + "x"
			case "U":
				words[i] = "orphanwatch:undo:" + key
			}
		}
		rights = append(rights, right{words, append([]string{rule}, rules...)})
	}
	return rights
}

var escape = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)

var unescape = strings.NewReplacer(`\\`, `\`, `\*`, `*`, `\?`, `?`, `\[`, `[`, `\]`, `]`)

// rights asks the server whether our user may do all of it, without doing it.
func (c *check) rights(ctx context.Context) {
	user := whoami(ctx, c.Client)
	rights := c.kind().rights(c.Options)
	required := len(rights)
	for _, r := range rights {
		rights = append(rights, r.probes()...)
	}
	answers, err := c.Client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, r := range rights {
			args := []any{"ACL", "DRYRUN", user}
			for _, word := range r.command {
				args = append(args, word)
			}
			p.Do(ctx, args...)
		}
		return nil
	})
	if err != nil {
		c.rightsUnknown(user, err)
		return
	}
	has := map[string]bool{}
	refused := map[string]bool{}
	texts := make([]string, len(answers))
	for i, answer := range answers {
		texts[i], _ = answer.(*redis.Cmd).Text()
		for _, rule := range rights[i].rules {
			has[rule] = has[rule] || texts[i] == "OK"
			refused[rule] = refused[rule] || texts[i] != "OK" && !forCommand(texts[i])
		}
	}
	var denied, rules []string
	for i, text := range texts[:required] {
		if text == "OK" {
			continue
		}
		denied = append(denied, strings.Join(rights[i].command, " "))
		for _, rule := range rights[i].rules {
			if !slices.Contains(rules, rule) && (!has[rule] || refused[rule]) {
				rules = append(rules, rule)
			}
		}
	}
	if len(denied) > 0 {
		c.bad(nameRights, "user "+user+" may not "+strings.Join(denied, ", "), aclFix(user, rules...))
		return
	}
	c.ok(nameRights, "user %s may do all that is needed", user)
	if c.Lists {
		c.otherLists(ctx, user)
	}
}

// otherLists: queues without a binding are found by a look at all lists, as far as our
// user may. Which names the application's have is not for us to know.
func (c *check) otherLists(ctx context.Context, user string) {
	answer, err := c.Client.Do(ctx, "ACL", "DRYRUN", user, "LINDEX", c.Prefix+"any_list", 0).Text()
	if err != nil || answer == "OK" {
		return
	}
	c.advise(nameQueues, "user "+user+" may not read every list: queues of names that its rules do not hold are not found, and their messages stay",
		aclFix(user, "~"+escape.Replace(c.Prefix)+"NAME*")+" for each queue of another name (its priorities have names of their own); nothing where there is none")
}

// rightsUnknown: a server before 7.0 has no DRYRUN, and a user with few rights may
// not ask; what is missing then shows in use.
func (c *check) rightsUnknown(user string, err error) {
	if redis.IsPermissionError(err) {
		c.bad(nameRights, fmt.Sprintf("user %s may not ask what it may do: %s", user, err), aclFix(user, "+acl|whoami", "+acl|dryrun"))
		return
	}
	c.ok(nameRights, "user %s; this server cannot tell what it may do (%s)", user, err)
}
