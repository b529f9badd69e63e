package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// screen shows the demo: a table that is drawn again and again on a terminal, plain
// lines with their time elsewhere.
type screen struct {
	out    io.Writer
	live   bool
	color  bool
	fd     int
	begin  time.Time
	length time.Duration

	mu    sync.Mutex
	said  []string
	drawn int // lines of the table as it stands
}

func newScreen(out io.Writer, environ []string, length time.Duration) *screen {
	s := &screen{out: out, begin: time.Now(), length: length}
	if f, ok := out.(*os.File); ok {
		s.fd = int(f.Fd())
		s.live = term.IsTerminal(s.fd) && variable(environ, "TERM") != "dumb"
	}
	s.color = s.live && variable(environ, "NO_COLOR") == ""
	return s
}

// variable is the value of one of environ, "" for none.
func variable(environ []string, name string) string {
	for _, e := range environ {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// say tells what happens.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := fmt.Sprintf("%5.1fs  ", time.Since(s.begin).Seconds()) + fmt.Sprintf(format, args...)
	if !s.live || s.drawn == 0 {
		fmt.Fprintln(s.out, line)
		return
	}
	s.said = append(s.said, line)
}

const (
	drawEvery = 200 * time.Millisecond
	lineEvery = 5 * time.Second
	lastSaid  = 8
)

// run shows the table until ctx ends.
func (s *screen) run(ctx context.Context, w *world, daemon func() string) {
	every := drawEvery
	if !s.live {
		every = lineEvery
	}
	for sleep(ctx, every) == nil {
		if s.live {
			s.draw(w.table(daemon()))
		} else {
			s.say("%s", w.line())
		}
	}
	if s.live {
		s.draw(w.table(daemon()))
	}
}

// draw replaces the table by a newer one, with the last that was said under it.
func (s *screen) draw(table []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	width, _, err := term.GetSize(s.fd)
	if err != nil || width < 20 {
		width = 80
	}
	head := fmt.Sprintf("orphanwatch demo    %2.0f s of about %.0f s", time.Since(s.begin).Seconds(), s.length.Seconds())
	lines := append([]string{s.bold(head), ""}, table...)
	lines = append(lines, "")
	lines = append(lines, s.said[max(0, len(s.said)-lastSaid):]...)
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", s.drawn)
	}
	for _, line := range lines {
		b.WriteString(cut(line, width-1) + s.paint("0", "") + "\n")
	}
	s.drawn = len(lines)
	fmt.Fprint(s.out, b.String())
}

func (s *screen) bold(text string) string { return s.paint("1", text) }

func (s *screen) paint(code, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// cut shortens a line to a number of visible characters: one that wraps would spoil
// the next drawing.
func cut(line string, width int) string {
	visible, escape := 0, false
	for i, r := range line {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r != 'm'
		case visible == width:
			return line[:i]
		default:
			visible++
		}
	}
	return line
}

// table is the state of the world in lines.
func (w *world) table(daemon string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := []string{fmt.Sprintf("  %-28s %9s %9s   %s", "", "rows/keys", "keys left", "")}
	for i, v := range w.waves {
		note := v.note
		if i == oneByOne {
			note = w.lag()
		}
		lines = append(lines, strings.TrimRight(fmt.Sprintf("  %-28s %9d %9d   %s", waveNames[i], len(v.ids), v.left, note), " "))
	}
	return append(lines, "",
		fmt.Sprintf("  %-28s %9d %9d   results gone or changed: %d", "living rows", len(w.living), w.results(), len(w.wrong)),
		"  daemon: "+daemon)
}

// line is the same in one.
func (w *world) line() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	gone, left := 0, 0
	for _, v := range w.waves {
		gone, left = gone+len(v.ids), left+v.left
	}
	return fmt.Sprintf("living rows %d, their results gone or changed %d; deleted rows and orphan keys %d, keys left %d; %s",
		len(w.living), len(w.wrong), gone, left, w.lag())
}

// lag tells the percentiles. w.mu is held.
func (w *world) lag() string {
	if len(w.lags) == 0 {
		return "lag not measured yet"
	}
	sorted := slices.Sorted(slices.Values(w.lags))
	return fmt.Sprintf("lag p50 %s, p99 %s", ms(percentile(sorted, 50)), ms(percentile(sorted, 99)))
}

// results counts the living rows whose result is there. w.mu is held.
func (w *world) results() (n int) {
	for _, value := range w.living {
		if value != "" {
			n++
		}
	}
	return n
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
