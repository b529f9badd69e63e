package celery

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

// Reader reads messages of protocol 2.
type Reader struct{}

// NewReader makes a Reader.
func NewReader([]reconciler.Binding) *Reader { return &Reader{} }

const tombstone = `{"body": "", "content-encoding": "utf-8", "content-type": "application/json", ` +
	`"headers": {}, "properties": {"delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": ""}, ` +
	`"priority": 0, "body_encoding": "base64", "delivery_tag": "orphanwatch-tombstone"}}`

type envelope struct {
	Headers struct {
		ID   string `json:"id"`
		Task string `json:"task"`
	} `json:"headers"`
	Properties struct {
		Tag      string `json:"delivery_tag"`
		Priority int    `json:"priority"`
	} `json:"properties"`
}

// Read reads an element of a queue's list.
func (*Reader) Read(text string) (reconciler.Message, error) {
	var e envelope
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return reconciler.Message{}, err
	}
	if e.Headers.ID == "" {
		return reconciler.Message{}, errors.New("no id")
	}
	return reconciler.Message{ID: e.Headers.ID, Name: e.Headers.Task, Place: reconciler.Place{Kind: reconciler.QueuedMessage, Tag: e.Properties.Tag, Envelope: text}}, nil
}

// ReadUnacked reads a value of the hash of unacked messages.
func (r *Reader) ReadUnacked(value string) (m reconciler.Message, exchange, routingKey string, err error) {
	var parts []json.RawMessage
	if err := json.Unmarshal([]byte(value), &parts); err != nil {
		return m, "", "", err
	}
	if len(parts) != 3 {
		return m, "", "", errors.New("not three parts")
	}
	if err := errors.Join(json.Unmarshal(parts[1], &exchange), json.Unmarshal(parts[2], &routingKey)); err != nil {
		return m, "", "", err
	}
	m, err = r.Read(string(parts[0]))
	m.Place.Kind, m.Place.Held = reconciler.UnackedMessage, value
	return m, exchange, routingKey, err
}

// Priority is properties.priority of an envelope.
func Priority(text string) int {
	var e envelope
	_ = json.Unmarshal([]byte(text), &e)
	return e.Properties.Priority
}

func revokeMessage(ids []string, terminate string) (string, error) {
	arguments := map[string]any{"task_id": ids, "terminate": terminate != "" && terminate != "off", "signal": terminate}
	body, err := json.Marshal(map[string]any{"method": "revoke", "arguments": arguments, "destination": nil, "pattern": nil, "matcher": nil})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(`{"body": %q, "content-encoding": "utf-8", "content-type": "application/json", "headers": {}, "properties": {"delivery_tag": "orphanwatch", "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""}, "priority": 0, "body_encoding": "base64"}}`,
		base64.StdEncoding.EncodeToString(body)), nil
}

func pidboxChannel(prefix string, db int, exchange string) string {
	return fmt.Sprintf("%s/%d.%s.pidbox", prefix, db, exchange)
}
