package celery

import (
	"context"
	"crypto/sha1" //nolint:gosec // how Redis names scripts
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

//go:embed stamp.lua
var stampSource string

//go:embed look.lua
var lookSource string

//go:embed remove.lua
var removeSource string

//go:embed expire.lua
var expireSource string

//go:embed ttl.lua
var ttlSource string

//go:embed bury.lua
var burySource string

//go:embed restore.lua
var restoreSource string

//go:embed trim.lua
var trimSource string

//go:embed claim.lua
var claimSource string

//go:embed revive.lua
var reviveSource string

//go:embed note.lua
var noteSource string

//go:embed pull.lua
var pullSource string

//go:embed revoke.lua
var revokeSource string

//go:embed purge.lua
var purgeSource string

//go:embed requeue.lua
var requeueSource string

//go:embed raise.lua
var raiseSource string

//go:embed drain.lua
var drainSource string

//go:embed drain_unacked.lua
var drainUnackedSource string

//go:embed quarantine.lua
var quarantineSource string

//go:embed refill.lua
var refillSource string

//go:embed settle.lua
var settleSource string

// The scripts; each file says what it takes and returns.
var (
	lookScript    = newScript(stamped(lookSource))
	removeScript  = newScript(stamped(removeSource))
	expireScript  = newScript(stamped(expireSource))
	ttlScript     = newScript(stamped(ttlSource))
	buryScript    = newScript(burySource)
	restoreScript = newScript(restoreSource)
	trimScript    = newScript(trimSource)
	claimScript   = newScript(claimSource)
	reviveScript  = newScript(reviveSource)
	noteScript    = newScript(noteSource)
	pullScript    = newScript(pullSource)
	revokeScript  = newScript(revokeSource)
	purgeScript   = newScript(purgeSource)
	requeueScript = newScript(requeueSource)
	raiseScript   = newScript(raiseSource)
	refillScript  = newScript(refillSource)
	settleScript  = newScript(settleSource)

	drainScript        = newScript(quarantineSource + drainSource)
	drainUnackedScript = newScript(quarantineSource + drainUnackedSource)
)

func stamped(source string) string {
	return fmt.Sprintf("local WHOLE, EDGE = %d, %d\n", reconciler.StampWhole, reconciler.StampEdge) + stampSource + source
}

type script struct{ source, sha string }

func newScript(source string) *script {
	sum := sha1.Sum([]byte(source)) //nolint:gosec // how Redis names scripts
	return &script{source: source, sha: hex.EncodeToString(sum[:])}
}

// call is one run of a script.
type call struct {
	keys []string
	args []any
}

// loads is how often a script is loaded again within one run: Redis forgets all
// scripts when it restarts, at SCRIPT FLUSH, and after a failover.
const loads = 3

// run sends all calls in one pipeline and gives their replies in order. Calls
// that met a server without the script are sent again after loading it, alone:
// the others have had their effect.
func (sc *script) run(ctx context.Context, client redis.UniversalClient, calls []call) ([]any, error) {
	replies := make([]any, len(calls))
	cmds := make([]*redis.Cmd, len(calls))
	todo := make([]int, len(calls))
	for i := range todo {
		todo[i] = i
	}
	for attempt := 0; len(todo) > 0; attempt++ {
		pipe := client.Pipeline()
		if attempt > 0 {
			pipe.ScriptLoad(ctx, sc.source)
		}
		for _, i := range todo {
			cmds[i] = pipe.EvalSha(ctx, sc.sha, calls[i].keys, calls[i].args...)
		}
		if _, err := pipe.Exec(ctx); err != nil && ctx.Err() != nil {
			return nil, err
		}
		again := todo[:0]
		for _, i := range todo {
			reply, err := cmds[i].Result()
			switch {
			case err == nil || errors.Is(err, redis.Nil):
				replies[i] = reply
			case strings.HasPrefix(err.Error(), "NOSCRIPT") && attempt < loads:
				again = append(again, i)
			default:
				return nil, err
			}
		}
		todo = again
	}
	return replies, nil
}

// one runs a script once.
func (sc *script) one(ctx context.Context, client redis.UniversalClient, keys []string, args ...any) (any, error) {
	replies, err := sc.run(ctx, client, []call{{keys, args}})
	if err != nil {
		return nil, err
	}
	return replies[0], nil
}
