package watcher

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Deletions that go on and on do not put off the look at what was in no key when the
// first of them was seen.
func TestDeletionsDoNotPutOffALook(t *testing.T) {
	var l looks
	began := time.Now()
	for at := time.Duration(0); at < time.Minute; at += afterDeleted / 2 {
		l.deleted(began.Add(at))
	}
	require.Equal(t, began.Add(afterDeleted), l.follow)
	require.Zero(t, l.clean)
	l.follow = began.Add(time.Hour)
	l.deleted(began)
	require.Equal(t, began.Add(afterDeleted), l.follow)
}

// However many lists there are, few are noted: then all are looked at.
func TestListsAreBounded(t *testing.T) {
	l := newLists()
	for i := range 3 * maxLists {
		l.add(strconv.Itoa(i))
	}
	keys, lost := l.take()
	require.LessOrEqual(t, len(keys), maxLists)
	require.True(t, lost)
	l.add("celery")
	keys, lost = l.take()
	require.Len(t, keys, 1)
	require.False(t, lost)
}
