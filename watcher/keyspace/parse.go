package keyspace

import (
	"strconv"
	"strings"
)

// channelPrefix is what Redis puts in front of a key to name its keyspace channel.
func channelPrefix(db int) string {
	return "__keyspace@" + strconv.Itoa(db) + "__:"
}

// parse finds the key that a message is about, and tells whether the message can
// mean that the key has a new value. payload is the name of the event under a
// keyspace prefix; under none (Celery's own PUBLISH, where the channel is the key)
// it is the value.
func parse(prefix, channel, payload string) (key string, hint bool) {
	if prefix == "" {
		return channel, channel != ""
	}
	key, ok := strings.CutPrefix(channel, prefix)
	return key, ok && key != "" && !isEcho(payload)
}

// isEcho tells of events that bring no new value: what follows from removals, also
// from our own, and from times to live.
func isEcho(event string) bool {
	switch event {
	case "del", "expire", "expired", "evicted", "rename_from", "move_from", "persist":
		return true
	}
	return false
}
