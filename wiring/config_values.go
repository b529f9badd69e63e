package wiring

import (
	"math/big"
	"strconv"
	"strings"
	"time"
)

// ByteSize is a number of bytes, written with a unit: 1GiB, 512MB.
type ByteSize int64

// byteUnits, from the largest down; binary before decimal of the same name.
var byteUnits = []struct {
	name  string
	bytes int64
}{
	{"PiB", 1 << 50},
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"PB", 1e15},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"KB", 1e3},
	{"B", 1},
}

// String is the size in the unit that gives the smallest whole number.
func (b ByteSize) String() string {
	best := byteUnits[len(byteUnits)-1]
	for _, u := range byteUnits {
		if b != 0 && int64(b)%u.bytes == 0 && u.bytes > best.bytes {
			best = u
		}
	}
	return strconv.FormatInt(int64(b)/best.bytes, 10) + best.name
}

// MarshalText is the size with its unit.
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// fault is why a value is not acceptable, and what would be. Neither part
// holds a secret.
type fault struct{ what, fix string }

// parseByteSize reads a size with a unit; a fraction is fine if it makes whole bytes.
func parseByteSize(text string) (ByteSize, *fault) {
	const units = "write a number with a unit: B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024), such as 1GiB"
	text = strings.TrimSpace(text)
	digits := strings.TrimRightFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	unit := strings.TrimSpace(text[len(digits):])
	digits = strings.TrimSpace(digits)
	if digits == "" || len(digits) > 40 || strings.Trim(digits, "0123456789.") != "" {
		return 0, &fault{quote(text) + " is not a size", units}
	}
	number, ok := new(big.Rat).SetString(digits)
	if !ok {
		return 0, &fault{quote(text) + " is not a size", units}
	}
	if unit == "" {
		if number.Sign() == 0 {
			return 0, nil
		}
		return 0, &fault{quote(text) + " has no unit", "write " + digits + "MiB or " + digits + "B, whichever you mean"}
	}
	for _, u := range byteUnits {
		if !strings.EqualFold(u.name, unit) {
			continue
		}
		number.Mul(number, new(big.Rat).SetInt64(u.bytes))
		if !number.IsInt() || !number.Num().IsInt64() {
			return 0, &fault{quote(text) + " is not a whole number of bytes, or too large", units}
		}
		return ByteSize(number.Num().Int64()), nil
	}
	return 0, &fault{quote(unit) + " is not a unit of size", units}
}

// parseDuration reads a Go duration and says what to write where a unit is missing.
func parseDuration(text string) (time.Duration, *fault) {
	text = strings.TrimSpace(text)
	d, err := time.ParseDuration(text)
	if err == nil {
		return d, nil
	}
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return 0, &fault{quote(text) + " has no unit", "write " + text + "s for seconds (units: ms, s, m, h)"}
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			return 0, &fault{quote(text) + " is not a duration: there is no unit for days", "write " + strconv.Itoa(24*n) + "h"}
		}
	}
	return 0, &fault{quote(text) + " is not a duration", "write a number with a unit (ms, s, m, h), such as 5s or 1h30m"}
}

// formatDuration is d as people write it: 5m, not 5m0s.
func formatDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// parseBool reads what people write for yes and no.
func parseBool(text string) (bool, *fault) {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "true", "yes", "on", "1":
		return true, nil
	case "false", "no", "off", "0":
		return false, nil
	}
	return false, &fault{quote(text) + " is neither true nor false", "write true or false"}
}

// splitList reads a list by comma; empty elements are dropped.
func splitList(text string) []string {
	out := []string{}
	for _, e := range strings.Split(text, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out
}

// quote shows a value in a message, shortened.
func quote(text string) string {
	if r := []rune(text); len(r) > 60 {
		text = string(r[:60]) + "…"
	}
	return strconv.Quote(text)
}
