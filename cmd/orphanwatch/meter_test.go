package main

import (
	"strings"
	"testing"
	"time"

	"github.com/orphanwatch/orphanwatch/reconciler"
)

func TestMeter(t *testing.T) {
	var out strings.Builder
	now := time.Unix(1000, 0)
	m := &meter{out: &out, now: func() time.Time { return now }, between: 5 * time.Second, begin: now}
	tell := func(after time.Duration, done int64) {
		now = now.Add(after)
		m.tell(reconciler.Progress{Stage: "scanning", Done: done, Total: 1000})
	}
	tell(0, 0)
	tell(900*time.Millisecond, 90)
	if out.String() != "" {
		t.Errorf("something within the first second: %q", out.String())
	}
	tell(1100*time.Millisecond, 200)
	tell(time.Second, 300) // too soon
	tell(5*time.Second, 800)
	m.done()
	if want := "scanning: 200 of 1000 (20 %), 100/s, 8 s left\nscanning: 800 of 1000 (80 %), 100/s, 2 s left\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	m.tell(reconciler.Progress{Stage: "waiting"})
	if now = now.Add(6 * time.Second); true {
		m.tell(reconciler.Progress{Stage: "waiting"})
	}
	if !strings.HasSuffix(out.String(), "\nwaiting\n") {
		t.Errorf("%q", out.String())
	}
}

func TestMeterOnTerminal(t *testing.T) {
	var out strings.Builder
	now := time.Unix(1000, 0)
	m := &meter{out: &out, live: true, now: func() time.Time { return now }, begin: now}
	now = now.Add(2 * time.Second)
	m.tell(reconciler.Progress{Stage: "a long stage", Done: 1})
	m.tell(reconciler.Progress{Stage: "b"})
	m.done()
	if want := "\ra long stage: 1\rb              \r \r"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
