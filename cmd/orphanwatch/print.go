package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// The values of --output.
const (
	outputTable = "table"
	outputJSON  = "json"
)

// printJSON is data, as the API's answer has it.
func (c *cli) printJSON(data any) error {
	encoder := json.NewEncoder(c.out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(data); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// printTable is rows without lines between them.
func (c *cli) printTable(header table.Row, rows []table.Row) error {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	if header != nil {
		t.AppendHeader(header)
	}
	t.AppendRows(rows)
	if _, err := fmt.Fprintln(c.out, t.Render()); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// progress is for people: it goes to stderr.
func (c *cli) progress(format string, args ...any) {
	fmt.Fprintf(c.err, format+"\n", args...)
}

// colored paints only on a terminal, and where NO_COLOR is not set.
func (c *cli) colored(s string, color text.Color) string {
	if !isTerminal(c.out) {
		return s
	}
	for _, v := range c.environ {
		if value, ok := strings.CutPrefix(v, "NO_COLOR="); ok && value != "" || v == "TERM=dumb" {
			return s
		}
	}
	return color.EscapeSeq() + s + text.Reset.EscapeSeq()
}

func (c *cli) good(s string) string { return c.colored(s, text.FgGreen) }
func (c *cli) warn(s string) string { return c.colored(s, text.FgYellow) }
func (c *cli) bad(s string) string  { return c.colored(s, text.FgRed) }

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) //nolint:gosec // a file descriptor fits
}

// confirm asks on a terminal, and refuses elsewhere; yes is the flag --yes.
func (c *cli) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !isTerminal(c.in) || !isTerminal(c.err) {
		return notAllowedError{errors.New("not confirmed: give --yes, or run it on a terminal")}
	}
	return ask(c.in, c.err, question)
}

func ask(in io.Reader, out io.Writer, question string) error {
	fmt.Fprintf(out, "%s [y/N] ", question)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return notAllowedError{errors.New("not confirmed")}
}

// span is a duration for people: 12 s, 4 min, 3 h, 2 d.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f d", d.Hours()/24)
}

// clock is a moment for people, to the second, with the zone.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
