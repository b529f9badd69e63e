package celery

import (
	"encoding/json"
	"strings"
)

const (
	tombstoneTag = "orphanwatch-tombstone"
	// tombstone takes the place of a message that is too far from both ends of its
	// list to be taken out. A worker that consumes it finds an empty body, says at
	// level WARNING that it deleted an unknown message, and acknowledges it; on
	// anything less than a whole envelope it would die.
	tombstone = `{"body": "", "content-encoding": "utf-8", "content-type": "application/json", "headers": {}, "properties": {"correlation_id": null, "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": ""}, "priority": 0, "body_encoding": "base64", "delivery_tag": "` + tombstoneTag + `"}}`
)

// complete tells whether a worker survives this element: it has all that kombu
// takes from a message without looking (virtual.Message, QoS.append).
func complete(element string) bool {
	var e struct {
		Body       *json.RawMessage            `json:"body"`
		Headers    *map[string]json.RawMessage `json:"headers"`
		Properties *struct {
			Tag  *string `json:"delivery_tag"`
			Info *struct {
				Exchange   *string `json:"exchange"`
				RoutingKey *string `json:"routing_key"`
			} `json:"delivery_info"`
		} `json:"properties"`
	}
	if !strings.HasPrefix(strings.TrimLeft(element, " \t\r\n"), "{") || json.Unmarshal([]byte(element), &e) != nil {
		return false
	}
	p := e.Properties
	return e.Body != nil && e.Headers != nil && p != nil && p.Tag != nil && p.Info != nil && p.Info.Exchange != nil && p.Info.RoutingKey != nil
}
