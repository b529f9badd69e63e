package keyspace

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Finding is one precondition and how it stands.
type Finding = reconciler.Finding

// check is one look at a server.
type check struct {
	Options
	// given is the client of Check's caller: what outlives Check uses it.
	given    *redis.Client
	info     map[string]string
	findings []Finding
}

// Check looks at everything about the server that can make the source blind or the
// removals fail. It changes nothing. When the server does not answer, that is the
// only finding.
func Check(ctx context.Context, o Options) []Finding {
	ctx, cancel := context.WithTimeout(ctx, 2*answerTimeout)
	defer cancel()
	given := o.Client
	o.Client = ownClient(given)
	defer func() { _ = o.Client.Close() }()
	c := &check{Options: o, given: given}
	if !c.reachable(ctx) {
		return c.findings
	}
	c.server()
	c.flags(ctx)
	c.rights(ctx)
	c.memory()
	c.outputBuffer(ctx)
	return c.findings
}

func (c *check) ok(name, format string, args ...any) {
	c.findings = append(c.findings, Finding{Name: name, OK: true, Detail: fmt.Sprintf(format, args...)})
}

func (c *check) bad(name, detail, fix string) {
	c.findings = append(c.findings, Finding{Name: name, Detail: detail, Fix: fix})
}

// advise is for what all works without.
func (c *check) advise(name, detail, fix string) {
	c.findings = append(c.findings, Finding{Name: name, Detail: detail, Fix: fix, Advice: true})
}

func (c *check) fatal(name, detail, fix string) {
	c.findings = append(c.findings, Finding{Name: name, Detail: detail, Fix: fix, Fatal: true})
}

const (
	nameReachable = "redis answers"
	nameVersion   = "redis version"
	nameMode      = "redis mode"
	nameRole      = "redis role"
	nameFlags     = "redis keyspace events"
	nameRights    = "redis rights"
	nameQueues    = "redis rights to queues"
	nameEviction  = "redis eviction"
	nameBuffer    = "redis pubsub buffer"
)

// reachable reads INFO; a user who may not is told so, and the rest goes on.
func (c *check) reachable(ctx context.Context) bool {
	addr := c.Client.Options().Addr
	if err := c.Client.Ping(ctx).Err(); err != nil {
		var answer redis.Error
		fix := "start Redis at " + addr + ", or name the right one in redis.url"
		switch {
		case redis.IsAuthError(err), redis.HasErrorPrefix(err, "WRONGPASS"):
			fix = "put the right user and password into redis.url"
		case redis.IsPermissionError(err):
			fix = aclFix(whoami(ctx, c.Client), "+"+refusedCommand(err, "ping"))
		case errors.As(err, &answer):
			fix = "wait until it is ready, or see its log"
		}
		c.fatal(nameReachable, addr+": "+err.Error(), fix)
		return false
	}
	info, err := readInfo(ctx, c.Client)
	if err != nil {
		c.bad(nameReachable, addr+" answers, but not what it is: "+err.Error(), aclFix(whoami(ctx, c.Client), "+info"))
		return true
	}
	c.info = info
	c.ok(nameReachable, "%s", addr)
	return true
}

// server checks what INFO says.
func (c *check) server() {
	if c.info == nil {
		return
	}
	if v := c.info["redis_version"]; versionBelow(v, 6, 2) {
		c.fatal(nameVersion, v+" is too old", "upgrade to 6.2 or newer")
	} else {
		c.ok(nameVersion, "%s", v)
	}
	if c.info["redis_mode"] == "cluster" {
		c.fatal(nameMode, "cluster mode, which Celery does not support", clusterFix)
	} else {
		c.ok(nameMode, "%s", c.info["redis_mode"])
	}
	if role := c.info["role"]; role != "master" {
		c.fatal(nameRole, "a replica: it cannot be written and may be behind", replicaFix(c.info))
	} else {
		c.ok(nameRole, "%s", role)
	}
}

// versionBelow takes a version that cannot be read as new enough.
func versionBelow(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(parts[1])
	return errA == nil && errB == nil && (a < major || a == major && b < minor)
}

// flags checks notify-keyspace-events as it stands, also where Run would mend it:
// what Run sets is gone after the next restart.
func (c *check) flags(ctx context.Context) {
	have, err := readFlags(ctx, c.Client)
	switch {
	case err != nil:
		c.bad(nameFlags, "cannot be read: "+err.Error(),
			"allow +config|get, or set "+flagsLine(c.kind().flags)+" in the provider's parameter group")
	case hasFlags(have, c.kind().flags):
		c.ok(nameFlags, "%s is %q", flagsName, have)
	default:
		detail := fmt.Sprintf("%s is %q: %s", flagsName, have, c.kind().missed)
		if c.Configure != ConfigureNever {
			detail += " (run adds the flags, but only until Redis restarts)"
		}
		want := addFlags(have, c.kind().flags)
		if c.Both {
			want = addFlags(addFlags(have, resultFlags), brokerFlags)
		}
		c.bad(nameFlags, detail, flagsFix(want))
		if c.Configure != ConfigureNever {
			c.findings[len(c.findings)-1].Mend = c.mendFlags
		}
	}
}

// mendFlags sets the flags by what they are by then, and says how.
func (c *check) mendFlags(ctx context.Context) (string, error) {
	client := ownClient(c.given)
	defer func() { _ = client.Close() }()
	have, err := readFlags(ctx, client)
	if err != nil {
		return "", err
	}
	want := addFlags(have, c.kind().flags)
	return "CONFIG SET " + flagsName + " '" + want + "'", setFlags(ctx, client, have, want)
}

// memory checks that Redis keeps what we remember.
func (c *check) memory() {
	policy, ok := c.info["maxmemory_policy"]
	switch {
	case !ok:
	case strings.HasPrefix(policy, "allkeys-"), strings.HasPrefix(policy, "volatile-") && c.info["maxmemory"] != "0":
		c.advise(nameEviction, "maxmemory-policy is "+policy+": records in orphanwatch:* (undo, history) may be evicted",
			"redis-cli CONFIG SET maxmemory-policy noeviction, and in redis.conf: maxmemory-policy noeviction")
	default:
		c.ok(nameEviction, "maxmemory-policy is %s, maxmemory %s", policy, c.info["maxmemory"])
	}
}

// minBuffer holds about 60,000 events: the server disconnects a subscriber that is
// further behind.
const minBuffer = 8 << 20

func (c *check) outputBuffer(ctx context.Context) {
	const name = "client-output-buffer-limit"
	values, err := c.Client.ConfigGet(ctx, name).Result()
	if err != nil {
		return // what we may not read we cannot judge; flags says so already
	}
	fields := strings.Fields(values[name])
	for i := 0; i+3 < len(fields); i += 4 {
		if fields[i] != "pubsub" {
			continue
		}
		hard, _ := strconv.ParseInt(fields[i+1], 10, 64)
		limit := strings.Join(fields[i:i+4], " ")
		if hard != 0 && hard < minBuffer {
			c.advise(nameBuffer, name+" is "+limit+" (bytes): a burst of writes disconnects us and costs a resync",
				"redis-cli CONFIG SET "+name+" 'pubsub 33554432 8388608 60'")
			return
		}
		c.ok(nameBuffer, "%s", limit)
	}
}
