package celery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

const (
	// expireKeys, with values of some expireBytes, go in one call of a script, so that
	// it stays far below 5 ms.
	expireKeys  = 50
	expireBytes = 128 << 10
	// expireStage is what an operator sees.
	expireStage = "reading results"
)

var _ reconciler.Results = (*Store)(nil)

// RemoveExpired goes over all results, in batches and paced like Scan, or half as
// much where somebody waits for it. It removes
// those whose date_done is before e.Before, and gives e.TTL to those that have
// neither a date nor a TTL, both only while the value is the one that was read.
// SCAN may give a key more than once, so that what is left may be counted twice.
func (s *Store) RemoveExpired(ctx context.Context, epoch uint64, e reconciler.Expiry) (reconciler.ExpiredReport, error) {
	share := s.options.ScanShare
	if e.Awaited {
		share = min(1, 2*share)
	}
	x := &expiry{Store: s, Expiry: e, epoch: epoch, pace: newPacer(share, paceBurst)}
	x.report.DryRun = e.DryRun
	total, err := s.CountEstimate(ctx)
	if err == nil {
		x.total = total
		err = s.scanKeys(ctx, s.Keys.Patterns()[0], x.pace, x.tell, func(keys []string) error { return x.batch(ctx, keys) })
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return x.report, err
}

// expiry is one run of RemoveExpired.
type expiry struct {
	*Store
	reconciler.Expiry
	epoch  uint64
	pace   *pacer
	report reconciler.ExpiredReport
	// gone over so many of total keys.
	gone, total int64
}

// aged is a result, as it was read.
type aged struct {
	key, id string
	stamp   reconciler.Stamp
	// date is its date_done as written; "" where it is not known, or not held by stamp.
	date string
}

func (x *expiry) tell() {
	x.gone = min(x.gone+scanCount, x.total)
	if x.Progress != nil {
		x.Progress(reconciler.Progress{Stage: expireStage, Done: x.gone, Total: x.total})
	}
}

func (x *expiry) batch(ctx context.Context, keys []string) error {
	slices.Sort(keys)
	results, err := x.read(ctx, slices.Compact(keys))
	if err != nil {
		return failed("read results", err)
	}
	var old, undated []aged
	for _, a := range results {
		if x.Keys.isCompanion(a.key) {
			continue
		}
		x.report.Scanned++
		if done, ok := ParseDate(a.date); !ok {
			undated = append(undated, a)
		} else if done.Before(x.Before) {
			old = append(old, a)
		}
	}
	before := x.report.Cleaned
	err = x.each(ctx, expireScript, old, x.removal, x.countRemoved)
	if err == nil {
		err = x.each(ctx, ttlScript, undated, x.ttl, x.countUndated)
	}
	return errors.Join(err, x.trimAfter(context.WithoutCancel(ctx), x.report.Cleaned-before))
}

// read reads those of the keys that are strings: of a large value what its stamp
// holds, and more only where the date is not there as Celery writes it.
func (x *expiry) read(ctx context.Context, keys []string) ([]aged, error) {
	pipe := x.client.Pipeline()
	heads := make([]*redis.StringCmd, len(keys))
	for i, key := range keys {
		heads[i] = pipe.GetRange(ctx, key, 0, reconciler.StampWhole)
	}
	began := time.Now()
	_, failure := pipe.Exec(ctx)
	x.pace.owe(time.Since(began))
	results := make([]aged, 0, len(keys))
	for i, key := range keys {
		head, err := heads[i].Result()
		switch id, ok := x.Keys.ResultID(key); {
		case err != nil && strings.HasPrefix(err.Error(), "WRONGTYPE") || err == nil && !ok:
			continue
		case err != nil:
			return nil, failure
		case len(head) <= reconciler.StampWhole:
			results = append(results, aged{key, id, reconciler.Stamp{Len: int64(len(head)), Head: head}, DateDone(head)})
		default:
			a := aged{key: key, id: id, stamp: reconciler.Stamp{Head: strings.Clone(head[:reconciler.StampEdge])}}
			if err := x.readLarge(ctx, &a); err != nil {
				return nil, err
			}
			results = append(results, a)
		}
	}
	return results, nil
}

// readLarge adds length, tail and date. All are read one after the other: if the value
// changes meanwhile, they are of none, and nothing is done with it. That holds for
// the date too, since only one counts that the stamp holds.
func (x *expiry) readLarge(ctx context.Context, a *aged) error {
	defer func(began time.Time) { x.pace.owe(time.Since(began)) }(time.Now())
	pipe := x.client.Pipeline()
	length, tail := pipe.StrLen(ctx, a.key), pipe.GetRange(ctx, a.key, -reconciler.StampEdge, -1)
	if _, err := pipe.Exec(ctx); err != nil {
		return err
	}
	a.stamp.Len, a.stamp.Tail = length.Val(), tail.Val()
	if contentOf(a.stamp.Head) == typeJSON {
		a.date = tailDate(a.stamp.Tail, a.id)
	}
	if a.date != "" || a.stamp.Len > maxResult {
		return nil
	}
	value, err := io.ReadAll(&pieceReader{ctx: ctx, client: x.client, key: a.key})
	if err != nil {
		return err
	}
	date := DateDone(string(value))
	if strings.Contains(a.stamp.Head, date) || strings.Contains(a.stamp.Tail, date) {
		a.date = date
	}
	return nil
}

// each runs a script on the results and counts the letters that it answers. The calls
// go one by one: a pipeline of them would be one long call for everybody else.
func (x *expiry) each(ctx context.Context, sc *script, results []aged, ask func([]aged) call, count func(letters string)) error {
	for len(results) > 0 {
		if err := x.pace.pay(ctx); err != nil {
			return err
		}
		n := oneCall(results)
		c := ask(results[:n])
		results = results[n:]
		began := time.Now()
		// What has been begun is ended and counted, whatever happens to ctx meanwhile.
		reply, err := sc.one(context.WithoutCancel(ctx), x.client, c.keys, c.args...)
		x.pace.owe(time.Since(began))
		if err != nil {
			return failed("remove expired results", err)
		}
		letters, _ := reply.(string)
		switch status := reconciler.RemoveStatus(letters); {
		case status == reconciler.Stale:
			return reconciler.ErrStale
		case status == reconciler.Paused:
			return reconciler.ErrPaused
		case len(letters) != n:
			return fmt.Errorf("redis: remove expired results: unexpected reply %v", reply)
		}
		count(letters)
	}
	return nil
}

// oneCall is how many of the first results go in one call.
func oneCall(results []aged) (n int) {
	for size := 0; n < min(expireKeys, len(results)) && size < expireBytes; n++ {
		size += len(results[n].stamp.Head) + len(results[n].stamp.Tail)
	}
	return n
}

// countRemoved reads an answer of expire.lua.
func (x *expiry) countRemoved(letters string) {
	x.report.Cleaned += int64(strings.Count(letters, "1"))
	x.report.Changed += int64(strings.Count(letters, "c"))
	x.report.Held += int64(strings.Count(letters, "h"))
}

// countUndated reads an answer of ttl.lua.
func (x *expiry) countUndated(letters string) {
	set := strings.Count(letters, "1")
	x.report.TTLSet += int64(set)
	x.report.Undated += int64(set + strings.Count(letters, "t"))
	x.report.Changed += int64(strings.Count(letters, "c"))
}

// trimAfter forgets records that have ended, now and then, as Remove does.
func (x *expiry) trimAfter(ctx context.Context, removed int64) error {
	if x.DryRun || x.records.Add(removed) < trimEvery {
		return nil
	}
	x.records.Store(0)
	return x.trim(ctx, 2*trimEvery)
}

func (x *expiry) removal(results []aged) call {
	c := call{
		keys: append(make([]string, 0, 2+2*len(results)), controlKey, recordsKey),
		args: []any{x.epoch, x.options.Quarantine.Milliseconds(), x.remember().Milliseconds(), x.dry(), 0},
	}
	c.args = appendFields(c.args, "", x.Record)
	c.args[4] = len(c.args) - 5
	for _, a := range results {
		record := x.Keys.recordID(reconciler.TaskSubject(a.id))
		c.keys = append(c.keys, recordPrefix+record, a.key)
		c.args = append(c.args, record, a.stamp.Len, a.stamp.Head, a.stamp.Tail)
	}
	return c
}

func (x *expiry) ttl(results []aged) call {
	c := call{
		keys: append(make([]string, 0, 1+len(results)), controlKey),
		args: []any{x.epoch, x.TTL.Milliseconds(), x.dry()},
	}
	for _, a := range results {
		c.keys = append(c.keys, a.key)
		c.args = append(c.args, a.stamp.Len, a.stamp.Head, a.stamp.Tail)
	}
	return c
}

// dry is how the scripts are told of a dry run.
func (x *expiry) dry() string {
	if x.DryRun {
		return "1"
	}
	return ""
}
