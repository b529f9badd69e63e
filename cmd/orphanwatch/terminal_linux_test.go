package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

// terminal is a pseudo-terminal: what is written to keyboard is read from screen's
// side as if typed.
func terminal(t *testing.T) (keyboard, screen *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { screen.Close() })
	return keyboard, screen
}

func TestColorsOnTerminal(t *testing.T) {
	_, screen := terminal(t)
	for variable, want := range map[string]string{
		"": "\x1b[32mok\x1b[0m", "NO_COLOR=": "\x1b[32mok\x1b[0m", "NO_COLOR=1": "ok", "TERM=dumb": "ok",
	} {
		c := &cli{streams: streams{out: screen}, environ: []string{variable}}
		if got := c.good("ok"); got != want {
			t.Errorf("%q: %q, want %q", variable, got, want)
		}
	}
}

func TestConfirmOnTerminal(t *testing.T) {
	keyboard, screen := terminal(t)
	c := &cli{streams: streams{in: screen, err: screen}}
	for answer, want := range map[string]bool{"y\n": true, "n\n": false, "\n": false} {
		if _, err := keyboard.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		err := c.confirm(false, "Drop it?")
		var refused notAllowedError
		if (err == nil) != want || err != nil && !errors.As(err, &refused) {
			t.Errorf("answer %q: %v", answer, err)
		}
	}
	if err := (&cli{streams: streams{in: strings.NewReader("y\n"), err: screen}}).confirm(false, "Drop it?"); err == nil {
		t.Error("a pipe confirmed")
	}
}

func TestTeardownAsks(t *testing.T) {
	keyboard, screen := terminal(t)
	s := newOwner(t, sandbox.NewExampleDatabase(t))
	s.expect(exitOK, []string{"setup"})
	var out strings.Builder
	for _, try := range []struct {
		answer string
		code   int
		slot   string
	}{{"no\n", exitNotAllowed, "read by nobody"}, {"y\n", exitOK, "does not exist"}} {
		if _, err := keyboard.WriteString(try.answer); err != nil {
			t.Fatal(err)
		}
		if got := execute(t.Context(), []string{"teardown"}, streams{in: screen, out: &out, err: screen}, s.environ); got != try.code {
			t.Errorf("answer %q: exit code %d, want %d", try.answer, got, try.code)
		}
		s.expect(exitOK, []string{"status"}, try.slot)
	}
}

// On a terminal a cleanup shows what it would do, and asks.
func TestCleanupAsks(t *testing.T) {
	s := newTasks(t)
	keyboard, screen := terminal(t)
	answer := func(line string) (int, string) {
		if _, err := keyboard.WriteString(line); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		code := execute(t.Context(), []string{"cleanup-orphaned"}, streams{in: screen, out: &out, err: screen}, s.environ)
		return code, out.String()
	}
	if code, out := answer("n\n"); code != exitNotAllowed || !strings.Contains(out, doomed) {
		t.Errorf("exit code %d\n%s", code, out)
	}
	s.there(result + doomed)
	if code, out := answer("y\n"); code != exitOK {
		t.Errorf("exit code %d\n%s", code, out)
	}
	s.gone(result + doomed)
	s.there(result + living)
	if code, _ := answer(""); code != exitOK { // there is nothing to ask about
		t.Errorf("exit code %d", code)
	}
}
