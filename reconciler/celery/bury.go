package celery

import (
	"context"
	"fmt"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// buryAtLeast is how long the record of a task lasts whose messages were removed or
// which was revoked: a retry may be away for that long, and is known by it.
const buryAtLeast = time.Hour

// fieldHeard is how many workers heard of a revoke.
const fieldHeard = "revoke_heard"

// Bury writes records before messages are removed (see bury.lua).
func (s *Store) Bury(ctx context.Context, epoch uint64, burials []reconciler.Burial) ([]reconciler.Buried, error) {
	answers := make([]reconciler.Buried, 0, len(burials))
	for len(burials) > 0 {
		now := burials[:min(removeCalls, len(burials))]
		burials = burials[len(now):]
		deadline, err := s.clock.deadlines(ctx, s.client)
		if err != nil {
			return nil, failed("write records", err)
		}
		calls := make([]call, len(now))
		for i, b := range now {
			calls[i] = s.burial(epoch, b, deadline(b.Looked))
		}
		replies, err := buryScript.run(ctx, s.client, calls)
		if err != nil {
			return nil, failed("write records", err)
		}
		for _, reply := range replies {
			answer, err := buried(reply)
			if err != nil {
				return nil, failed("write records", err)
			}
			if answer.Status == reconciler.Late {
				s.clock.forget()
			}
			answers = append(answers, answer)
		}
		if s.records.Add(int64(len(now))) >= trimEvery {
			s.records.Store(0)
			if err := s.trim(ctx, 2*trimEvery); err != nil {
				return nil, err
			}
		}
	}
	return answers, nil
}

func (s *Store) burial(epoch uint64, b reconciler.Burial, deadline int64) call {
	id := s.Keys.recordID(b.Task)
	revoke := ""
	if b.Revoke {
		revoke = "1"
	}
	args := []any{epoch, max(s.remember(), buryAtLeast).Milliseconds(), id, string(b.Record.Evidence), revoke, deadline, nil}
	args = appendFields(args, b.Task.ID, b.Record)
	args[6] = len(args) - 7
	for kind, n := range b.Count {
		args = append(args, string(kind), n)
	}
	if b.Heard != nil {
		args = append(args, fieldHeard, *b.Heard)
	}
	return call{[]string{controlKey, recordPrefix + id, recordsKey}, args}
}

// buried reads a reply of bury.lua.
func buried(reply any) (reconciler.Buried, error) {
	text, _ := reply.(string)
	if text == "revoke" {
		return reconciler.Buried{Status: reconciler.Removed, Revoke: true}, nil
	}
	switch status := reconciler.RemoveStatus(text); status {
	case reconciler.Removed, reconciler.Stale, reconciler.Paused, reconciler.Late, reconciler.Held:
		return reconciler.Buried{Status: status}, nil
	}
	return reconciler.Buried{}, fmt.Errorf("bury.lua: unexpected reply %v", reply)
}
