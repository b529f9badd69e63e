package keyspace

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/reconciler"
)

func TestParse(t *testing.T) {
	t.Parallel()
	const prefix = "__keyspace@0__:"
	for _, c := range []struct {
		prefix, channel, payload string
		key                      string
		hint                     bool
	}{
		{prefix, prefix + "a", "set", "a", true},
		{prefix, prefix + "a", "rename_to", "a", true},
		{prefix, prefix + "a", "move_to", "a", true},
		{prefix, prefix + "a", "copy_to", "a", true},
		{prefix, prefix + "a", "new", "a", true},
		{prefix, prefix + "a", "an event that nobody knows yet", "a", true},
		{prefix, prefix + "a", "evicted", "a", false},
		{prefix, prefix + "a", "move_from", "a", false},
		{prefix, prefix, "set", "", false},
		{prefix, "__keyspace@1__:a", "set", "__keyspace@1__:a", false},
		{prefix, prefix + prefix + "a", "set", prefix + "a", true},
		{"", "a", "del", "a", true}, // a value that reads like an event
		{"", "", "x", "", false},
	} {
		key, hint := parse(c.prefix, c.channel, c.payload)
		if hint != c.hint || hint && key != c.key {
			t.Errorf("parse(%q, %q, %q) = %q, %t; want %q, %t", c.prefix, c.channel, c.payload, key, hint, c.key, c.hint)
		}
	}
}

// FuzzParse: any channel and event end in subjects that can be asked for, or in none.
func FuzzParse(f *testing.F) {
	f.Add("__keyspace@0__:celery-task-meta-0f8fad5b-d9cb-469f-a165-70867728950e", "set")
	f.Add("__keyspace@0__:celery-task-meta-0F8FAD5B-d9cb-469f-a165-70867728950e", "rename_to")
	f.Add("__keyspace@0__:celery-task-meta-", "set")
	f.Add("__keyspace@0__:a:1:b:1", "del")
	f.Add("celery-task-meta-x", "\x00\xff")
	f.Add("__keyspace@0__:orphanwatch:canary:x", "set")
	source := New(Options{Client: redis.NewClient(&redis.Options{}), Keys: newKeys("a:{key}:b:{key}", "celery-task-meta-{key}")})
	f.Cleanup(func() { source.opts.Client.Close() })
	f.Fuzz(func(t *testing.T, channel, payload string) {
		for _, prefix := range []string{"", channelPrefix(0)} {
			key, hint := parse(prefix, channel, payload)
			if !hint {
				continue
			}
			if key == "" || prefix+key != channel {
				t.Fatalf("key %q of channel %q", key, channel)
			}
			for _, l := range source.looks(nil, key) {
				switch {
				case l.Subject.ID == "":
					t.Fatalf("%q: a subject without an id", key)
				case l.Subject.Kind == reconciler.Canary:
				case l.Spelling != "" && reconciler.CanonicalID(l.Spelling) != l.Subject.ID:
					t.Fatalf("%q: spelling %q of %q", key, l.Spelling, l.Subject.ID)
				case l.Spelling != "" && !strings.Contains(key, l.Spelling):
					t.Fatalf("%q does not contain %q", key, l.Spelling)
				}
			}
		}
	})
}

const everyFlag = "KEg$lshzxetdmn"

func TestFlags(t *testing.T) {
	t.Parallel()
	for have, want := range map[string]string{
		"": "K$", "K$": "K$", "K": "K$", "$": "$K", "AKE": "AKE", "AK": "AK", "AE": "AEK",
		"Ex": "ExK$", "g$lK": "g$lK", "KEA": "KEA", "xE$K": "xE$K",
	} {
		if got := addFlags(have, resultKeys.flags); got != want {
			t.Errorf("addFlags(%q) = %q, want %q", have, got, want)
		}
	}
}

// TestFlagsUnion: nothing that was on goes off, what we need is on, as Redis itself
// reads both, and once is enough.
func TestFlagsUnion(t *testing.T) {
	t.Parallel()
	f := &fixture{t: t, client: dial(t, sandbox.NewRedis(t).URL())}
	read := func() string {
		have, err := readFlags(t.Context(), f.client)
		if err != nil {
			t.Fatal(err)
		}
		return have
	}
	rapid.Check(t, func(t *rapid.T) {
		start := strings.Join(rapid.SliceOfN(rapid.SampledFrom(strings.Split(everyFlag+"A", "")), 0, 14).Draw(t, "flags"), "")
		f.do("CONFIG", "SET", flagsName, start)
		have := read()
		want := addFlags(have, resultKeys.flags)
		if again := addFlags(want, resultKeys.flags); again != want {
			t.Fatalf("%q becomes %q, and then %q", have, want, again)
		}
		if hasFlags(have, resultKeys.flags) && want != have {
			t.Fatalf("%q has all, and becomes %q", have, want)
		}
		f.do("CONFIG", "SET", flagsName, want+hiddenFlags(have))
		after := read()
		if !hasFlags(after, resultKeys.flags) || !hasFlags(want+hiddenFlags(have), strings.ReplaceAll(start, "A", allFlags)) {
			t.Fatalf("%q (shown as %q) becomes %q, shown as %q", start, have, want, after)
		}
	})
}

func TestSet(t *testing.T) {
	t.Parallel()
	s := newSet(2)
	first := time.Now()
	if !s.add("a", first) || !s.add("a", first.Add(time.Second)) || !s.add("b", first) {
		t.Fatal("no room for two keys in two places")
	}
	if got := s.take(); len(got) != 2 || !got["a"].Equal(first) {
		t.Errorf("took %v, want a and b as first seen", got)
	}
	if got := s.take(); len(got) != 0 {
		t.Errorf("took %v from an empty set", got)
	}
	s.add("a", first)
	s.add("b", first)
	if s.add("c", first) {
		t.Error("room for a third key in two places")
	}
	if got := s.take(); len(got) != 0 {
		t.Errorf("took %v after an overflow, which empties", got)
	}
}
