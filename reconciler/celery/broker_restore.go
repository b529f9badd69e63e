package celery

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// RestoredMessage is one message and what became of it.
type RestoredMessage struct {
	// Tag is its delivery tag, List the key of the list to which it was pushed.
	Tag  string `json:"tag"`
	List string `json:"list"`
	// Status is restored, or unplaced (its queue is not known, or that key holds
	// another type now): it is kept until the quarantine ends.
	Status string `json:"status"`
}

// RestoredMessages is what came back of one subject.
type RestoredMessages struct {
	Messages []RestoredMessage `json:"messages"`
	// HoldUntil is until when its messages are not pulled again, zero for no hold.
	HoldUntil time.Time `json:"hold_until,omitzero"`
}

// KeptMessage is a pulled message that can be restored.
type KeptMessage struct {
	Tag, List string
	// Envelope are its bytes.
	Envelope string
}

// RestoreMessages pushes the pulled messages of these records (task:<id>) back to
// their lists, each once: at the head or the tail, whichever was nearer. It holds
// the subjects of those from being pulled again. The answers are in the order of
// the records, empty where nothing is kept (any more).
func (b *Broker) RestoreMessages(ctx context.Context, recordIDs []string, hold time.Duration) ([]RestoredMessages, error) {
	out := make([]RestoredMessages, 0, len(recordIDs))
	for page := range slices.Chunk(recordIDs, restorePage) {
		calls := make([]call, len(page))
		for i, record := range page {
			calls[i] = call{[]string{messagesPrefix + record}, []any{hold.Milliseconds()}}
		}
		replies, err := requeueScript.run(ctx, b.client, calls)
		if err != nil {
			return nil, failed("restore messages", err)
		}
		for _, reply := range replies {
			r, err := requeued(reply)
			if err != nil {
				return nil, failed("restore messages", err)
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// requeued reads a reply of requeue.lua.
func requeued(reply any) (RestoredMessages, error) {
	list, _ := reply.([]any)
	if len(list)%3 != 1 {
		return RestoredMessages{}, fmt.Errorf("requeue.lua: unexpected reply %v", reply)
	}
	r := RestoredMessages{Messages: []RestoredMessage{}}
	if ms, _ := list[0].(int64); ms > 0 {
		r.HoldUntil = time.UnixMilli(ms).UTC()
	}
	for f := list[1:]; len(f) > 0; f = f[3:] {
		tag, _ := f[0].(string)
		key, _ := f[1].(string)
		status, _ := f[2].(string)
		r.Messages = append(r.Messages, RestoredMessage{tag, key, status})
	}
	return r, nil
}

// MessagesOf are the messages of a record that RestoreMessages would push back.
func (b *Broker) MessagesOf(ctx context.Context, recordID string) ([]KeptMessage, error) {
	fields, err := b.client.HGetAll(ctx, messagesPrefix+recordID).Result()
	if err != nil {
		return nil, failed("read kept messages", err)
	}
	var out []KeptMessage
	for field, value := range fields {
		if tag, ok := strings.CutPrefix(field, "m:"); ok {
			place := fields["p:"+tag]
			out = append(out, KeptMessage{Tag: tag, List: place[min(1, len(place)):], Envelope: value})
		}
	}
	slices.SortFunc(out, func(x, y KeptMessage) int { return strings.Compare(x.Tag, y.Tag) })
	return out, nil
}
