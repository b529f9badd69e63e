package celery

import "encoding/json"

// tombstoneTag is the delivery tag of our tombstones. A worker that consumes one
// finds an empty body, says at level WARNING that it deleted an unknown message,
// and acknowledges it; on anything less than a whole envelope it would die.
const tombstoneTag = "orphanwatch-tombstone"

// complete tells whether a worker survives this element: it has all that kombu
// takes from a message without looking (virtual.Message, QoS.append).
func complete(element string) bool {
	var e, properties, info map[string]json.RawMessage
	return json.Unmarshal([]byte(element), &e) == nil && members(e, "body", "headers") &&
		json.Unmarshal(e["properties"], &properties) == nil && members(properties, "delivery_tag", "delivery_info") &&
		json.Unmarshal(properties["delivery_info"], &info) == nil && members(info, "exchange", "routing_key")
}

func members(object map[string]json.RawMessage, first, second string) bool {
	return object[first] != nil && object[second] != nil
}
