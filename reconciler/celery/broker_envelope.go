package celery

import "unicode/utf8"

// tombstoneTag is the delivery tag of our tombstones. A worker that consumes one
// finds an empty body, says at level WARNING that it deleted an unknown message,
// and acknowledges it; on anything less than a whole envelope it would die.
const tombstoneTag = "orphanwatch-tombstone"

// complete tells whether a worker survives this element: it has all that kombu
// takes from a message without looking (virtual.Message, QoS.append). It reads as
// Reader does: what that can read, such as a header that is NaN, can be pulled.
func complete(element string) bool {
	w := jsonWalker{s: element}
	var e parts
	return utf8.ValidString(element) && e.read(&w) == nil && w.end() == nil &&
		e.body.kind != missing && e.hasHeaders && e.hasProperties &&
		e.properties.tag.kind != missing && e.properties.routed()
}
