package celery

import (
	"strings"
	"time"
)

// DateDone is the field date_done of a result, as it is written, "" for none: value
// is all of it, told apart by the first byte as in ParseValue. It is stricter than
// ParseValue, since a removal rests on it: whatever the worker's own parser would
// refuse has no date, and pickle, which is never loaded, has none either.
func DateDone(value string) (date string) {
	content := contentOf(value)
	if content == "" {
		return ""
	}
	w, err := document(value, content)
	if err != nil {
		return ""
	}
	if top, err := w.value(); err != nil || top.kind != dict {
		return ""
	}
	err = fields(w, func(key string, v item) error {
		if key == "date_done" {
			date, _ = v.string() // the last one wins, in Python too
		}
		return w.skip(v)
	})
	if err != nil || w.end() != nil {
		return ""
	}
	return date
}

// tailDate is the date_done of a JSON result of that task by its last bytes: "" where
// they do not end as Celery writes them. What is between the date and the end has
// neither brackets nor backslashes, so in JSON both are of the outermost object.
func tailDate(tail, id string) string {
	rest, ok := strings.CutSuffix(tail, `, "task_id": "`+id+`"}`)
	const field = `, "date_done": "`
	at := strings.LastIndex(rest, field)
	if !ok || at < 0 {
		return ""
	}
	date, more, _ := strings.Cut(rest[at+len(field):], `"`)
	if strings.ContainsAny(more, `{}[]\`) {
		return ""
	}
	return date
}

// ParseDate reads date_done as Celery writes it (facts, 1.2), by Python's
// datetime.isoformat(): YYYY-MM-DDTHH:MM:SS, a fraction of a second unless it is 0,
// and the offset from UTC, +HH:MM or rarely with :SS. Without one, as before Celery
// 5.4, it is UTC; so is Z. Anything else is no date.
func ParseDate(s string) (t time.Time, ok bool) {
	const form = "0000-00-00T00:00:00"
	if !shaped(s, form) {
		return t, false
	}
	year, month, day := number(s[:4]), time.Month(number(s[5:7])), number(s[8:10])
	hour, minute, second := number(s[11:13]), number(s[14:16]), number(s[17:19])
	rest := s[len(form):]
	nanos := 0
	if digits := fraction(rest); digits > 0 {
		nanos = number(rest[1 : 1+digits])
		for range 9 - digits {
			nanos *= 10
		}
		rest = rest[1+digits:]
	}
	offset, ok := parseOffset(rest)
	t = time.Date(year, month, day, hour, minute, second, nanos, time.UTC)
	// Date counts on where a number is too large; then it is not what is written.
	if !ok || year == 0 || t.Month() != month || t.Day() != day || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	return t.Add(-offset), true
}

// fraction is how many digits, up to 9, follow a point at the beginning of s.
func fraction(s string) (digits int) {
	for digits < 9 && shaped(s, ".000000000"[:2+digits]) {
		digits++
	}
	return digits
}

// parseOffset reads "", Z, +HH:MM or +HH:MM:SS; a minus is west of Greenwich.
func parseOffset(s string) (offset time.Duration, ok bool) {
	if s == "" || s == "Z" {
		return 0, true
	}
	sign := time.Duration(1)
	if s[0] == '-' {
		sign = -1
	} else if s[0] != '+' {
		return 0, false
	}
	s = s[1:]
	if len(s) == len("00:00") {
		s += ":00"
	}
	if len(s) != len("00:00:00") || !shaped(s, "00:00:00") {
		return 0, false
	}
	h, m, sec := number(s[:2]), number(s[3:5]), number(s[6:])
	if h > 23 || m > 59 || sec > 59 {
		return 0, false
	}
	return sign * (time.Duration(h)*time.Hour + time.Duration(m)*time.Minute + time.Duration(sec)*time.Second), true
}

// shaped tells whether s begins like form, in which 0 stands for any digit.
func shaped(s, form string) bool {
	if len(s) < len(form) {
		return false
	}
	for i := range len(form) {
		if digit := s[i] >= '0' && s[i] <= '9'; digit != (form[i] == '0') || !digit && s[i] != form[i] {
			return false
		}
	}
	return true
}

// number is that of a few digits.
func number(digits string) (n int) {
	for i := range len(digits) {
		n = 10*n + int(digits[i]-'0')
	}
	return n
}
