package keyspace

import (
	"context"
	"fmt"
	"slices"
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

// neededRights are for all that is done in Redis.
func (o Options) neededRights() []right {
	var rights []right
	add := func(commands, key string, rules ...string) {
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
	}
	add(serverCommands, "")
	if o.Configure != ConfigureNever {
		add("CONFIG SET notify-keyspace-events "+neededFlags, "")
	}
	add(ownCommands, "x", "~orphanwatch:*")
	prefix := channelPrefix(o.Client.Options().DB)
	rules := channelRules(prefix, nil)
	rights = append(rights, right{[]string{"SUBSCRIBE", prefix + canaryPrefix + "x"}, append(rules, "+subscribe")})
	for _, p := range o.Keys.Patterns() {
		rights = append(rights, right{[]string{"PSUBSCRIBE", prefix + p}, []string{"+psubscribe", "&" + prefix + p}})
		// A pattern without its escapes is a key that it matches.
		add(artifactCommands, unescape.Replace(p), "~orphanwatch:*", "~"+p)
	}
	return rights
}

var unescape = strings.NewReplacer(`\\`, `\`, `\*`, `*`, `\?`, `?`, `\[`, `[`, `\]`, `]`)

// rights asks the server whether our user may do all of it, without doing it.
func (c *check) rights(ctx context.Context) {
	user := whoami(ctx, c.Client)
	rights := c.neededRights()
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
	var denied, rules []string
	for i, answer := range answers {
		text, _ := answer.(*redis.Cmd).Text()
		if text == "OK" {
			continue
		}
		denied = append(denied, strings.Join(rights[i].command, " "))
		for _, rule := range rights[i].rules {
			if !slices.Contains(rules, rule) {
				rules = append(rules, rule)
			}
		}
	}
	if len(denied) > 0 {
		c.bad(nameRights, "user "+user+" may not "+strings.Join(denied, ", "), aclFix(user, rules...))
		return
	}
	c.ok(nameRights, "user %s may do all that is needed", user)
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
