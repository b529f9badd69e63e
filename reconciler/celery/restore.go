package celery

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// restorePage is how many subjects are restored in one pipeline.
const restorePage = 500

// Restored is what came back of one subject.
type Restored struct {
	// Kind is task or row; Table is empty for a task.
	Kind  string        `json:"kind"`
	Table string        `json:"table,omitempty"`
	ID    string        `json:"id"`
	Keys  []RestoredKey `json:"keys"`
	// HoldUntil is until when it is not removed again.
	HoldUntil time.Time `json:"hold_until,omitzero"`
	// RevokedAt is when workers were told not to run it: those that have been up since
	// then refuse a restored message.
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// RestoredKey is one key and what became of it.
type RestoredKey struct {
	// Key is of a result or companion; of a message that of the list to which it was
	// pushed, and Tag its delivery tag.
	Key string `json:"key"`
	Tag string `json:"tag,omitempty"`
	// Status is restored, exists (a newer value is there and stays), expired (it
	// would have expired by now), gone (the quarantine has ended), or unplaced (a
	// message whose queue is not known: it is kept until the quarantine ends).
	Status string `json:"status"`
}

// Entry is what is remembered of one subject.
type Entry struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
	reconciler.Record
	// RemovedAgain is when something was last removed, zero for only once.
	RemovedAgain time.Time `json:"removed_again_at,omitzero"`
	// Count is how many artifacts of each kind were removed in all.
	Count map[reconciler.ArtifactKind]int `json:"removed"`
	// Undo are the keys that can be restored, with when each would have expired.
	Undo       map[string]time.Time `json:"undo,omitempty"`
	RestoredAt time.Time            `json:"restored_at,omitzero"`
	HoldUntil  time.Time            `json:"hold_until,omitzero"`
	// RevokedAt is when workers were told not to run it; those that were up then
	// refuse it as long as they live.
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	// RevokeHeard is how many workers that were; nil where nobody could tell yet.
	RevokeHeard *int `json:"revoke_heard,omitempty"`
}

// Restore puts back what was removed of the tasks with these ids, in any
// spelling, and of the rows with these keys, and holds them from being removed
// again. What has a newer value now keeps it. Subjects that nothing is known of
// are not in the answer.
func (s *Store) Restore(ctx context.Context, ids []string, hold time.Duration) ([]Restored, error) {
	var all []Restored
	for len(ids) > 0 {
		page := ids[:min(restorePage, len(ids))]
		ids = ids[len(page):]
		records, err := s.recordsOf(ctx, page)
		if err != nil {
			return nil, failed("restore", err)
		}
		restored, err := s.restore(ctx, records, hold)
		if err != nil {
			return nil, failed("restore", err)
		}
		all = append(all, restored...)
	}
	return all, nil
}

// RestoreSince restores whatever was last removed within that time, page by page.
func (s *Store) RestoreSince(ctx context.Context, since, hold time.Duration, yield func([]Restored) error) error {
	now, err := s.client.Time(ctx).Result()
	if err != nil {
		return failed("restore", err)
	}
	by := &redis.ZRangeBy{Min: strconv.FormatInt(now.Add(-since).UnixMilli(), 10), Max: strconv.FormatInt(now.UnixMilli(), 10), Count: restorePage}
	for {
		page, err := s.client.ZRangeByScoreWithScores(ctx, recordsKey, by).Result()
		if err != nil {
			return failed("restore", err)
		}
		if len(page) == 0 {
			return nil
		}
		records := make([]string, len(page))
		for i, z := range page {
			records[i], _ = z.Member.(string)
		}
		restored, err := s.restore(ctx, records, hold)
		if err != nil {
			return failed("restore", err)
		}
		if err := yield(restored); err != nil {
			return err
		}
		// On from the last time, behind those of it that we have seen: removals that
		// go on meanwhile take records out of the range, and an offset would skip.
		last := page[len(page)-1].Score
		if minimum := strconv.FormatInt(int64(last), 10); minimum != by.Min {
			by.Min, by.Offset = minimum, 0
		}
		for _, z := range page {
			if z.Score == last {
				by.Offset++
			}
		}
	}
}

// History is what is remembered of the task with this id and of the rows with
// this key; empty for nothing.
func (s *Store) History(ctx context.Context, id string) ([]Entry, error) {
	records, err := s.recordsOf(ctx, []string{id})
	if err != nil {
		return nil, failed("history", err)
	}
	var out []Entry
	for _, record := range records {
		fields, err := s.client.HGetAll(ctx, recordPrefix+record).Result()
		if err != nil {
			return nil, failed("history", err)
		}
		if len(fields) > 0 {
			out = append(out, entry(record, fields))
		}
	}
	return out, nil
}

// recordsOf are the records that an id may have: as a task, as the key of a row,
// and the row that a task's own record names.
func (s *Store) recordsOf(ctx context.Context, ids []string) ([]string, error) {
	var out []string
	add := func(record string) {
		if !has(out, record) {
			out = append(out, record)
		}
	}
	pipe := s.client.Pipeline()
	rows := make([]*redis.SliceCmd, len(ids))
	for i, id := range ids {
		task := reconciler.TaskSubject(id)
		rows[i] = pipe.HMGet(ctx, recordPrefix+s.Keys.recordID(task), "table", "key")
		add(s.Keys.recordID(task))
		for b := range s.options.Bindings {
			add(s.Keys.recordID(reconciler.RowSubject(b, id)))
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, err
	}
	for _, cmd := range rows {
		table, _ := cmd.Val()[0].(string)
		key, ok := cmd.Val()[1].(string)
		if ok {
			add("row:" + table + ":" + reconciler.CanonicalID(key))
		}
	}
	return out, nil
}

func (s *Store) restore(ctx context.Context, records []string, hold time.Duration) ([]Restored, error) {
	messages := make([]RestoredMessages, len(records))
	if s.options.Broker != nil {
		var err error
		if messages, err = s.options.Broker.RestoreMessages(ctx, records, hold); err != nil {
			return nil, err
		}
	}
	calls := make([]call, len(records))
	for i, record := range records {
		held := ""
		if !messages[i].HoldUntil.IsZero() {
			held = "1"
		}
		calls[i] = call{[]string{recordPrefix + record}, []any{hold.Milliseconds(), held}}
	}
	replies, err := restoreScript.run(ctx, s.client, calls)
	if err != nil {
		return nil, err
	}
	var out []Restored
	for i, record := range records {
		list, _ := replies[i].([]any)
		if len(list) == 0 && len(messages[i].Messages) == 0 {
			continue
		}
		if len(list)%2 != 0 {
			return nil, fmt.Errorf("restore.lua: unexpected reply of %d", len(list))
		}
		r := Restored{Keys: []RestoredKey{}, HoldUntil: messages[i].HoldUntil}
		r.Kind, r.Table, r.ID = splitRecord(record)
		if len(list) > 0 {
			if ms, _ := list[0].(int64); ms > 0 {
				r.HoldUntil = time.UnixMilli(ms).UTC()
			}
			if ms, _ := list[1].(int64); ms > 0 {
				r.RevokedAt = time.UnixMilli(ms).UTC()
			}
			list = list[2:]
		}
		for pair := list; len(pair) > 0; pair = pair[2:] {
			key, _ := pair[0].(string)
			status, _ := pair[1].(string)
			r.Keys = append(r.Keys, RestoredKey{Key: key, Status: status})
		}
		for _, m := range messages[i].Messages {
			r.Keys = append(r.Keys, RestoredKey{Key: m.List, Tag: m.Tag, Status: m.Status})
		}
		out = append(out, r)
	}
	return out, nil
}

// splitRecord takes a record's id apart: task:<id> or row:<table>:<key>.
func splitRecord(record string) (kind, table, id string) {
	kind, id, _ = strings.Cut(record, ":")
	if kind == "row" {
		table, id, _ = strings.Cut(id, ":")
	}
	return kind, table, id
}

// entry reads a record as remove.lua and restore.lua write it.
func entry(record string, fields map[string]string) Entry {
	e := Entry{Count: map[reconciler.ArtifactKind]int{}}
	e.Kind, e.Table, e.ID = splitRecord(record)
	e.Key = e.ID
	for field, value := range fields {
		switch field {
		case "evidence":
			e.Evidence = reconciler.Evidence(value)
		case "table":
			e.Table = value
		case "key":
			e.Key = value
		case "trigger":
			e.Trigger = reconciler.Trigger(value)
		case "lsn":
			e.LSN = value
		case "xid":
			xid, _ := strconv.ParseUint(value, 10, 32)
			e.XID = uint32(xid)
		case "commit_time":
			e.CommitTime, _ = time.Parse(time.RFC3339Nano, value)
		case "trace_id":
			e.TraceID = value
		case "removed_at":
			e.Removed = millis(value)
		case "again_at":
			e.RemovedAgain = millis(value)
		case "restored_at":
			e.RestoredAt = millis(value)
		case "hold_until":
			e.HoldUntil = millis(value)
		case "revoked_at":
			e.RevokedAt = millis(value)
		case fieldHeard:
			if n, err := strconv.Atoi(value); err == nil {
				e.RevokeHeard = &n
			}
		case "ended":
			e.Ended = true
		case string(reconciler.ResultKey), string(reconciler.CompanionKey), string(reconciler.QueuedMessage), string(reconciler.UnackedMessage):
			e.Count[reconciler.ArtifactKind(field)], _ = strconv.Atoi(value)
		default:
			if key, ok := strings.CutPrefix(field, "@"); ok {
				if e.Undo == nil {
					e.Undo = map[string]time.Time{}
				}
				expires := time.Time{}
				if value != "-1" {
					expires = millis(value)
				}
				e.Undo[key] = expires
			}
		}
	}
	return e
}
