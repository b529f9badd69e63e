package keyspace

import "strings"

// allFlags is what the flag A stands for.
const allFlags = "g$lshzxetd"

// hasFlags tells whether a value of notify-keyspace-events includes the others.
func hasFlags(have, need string) bool {
	for _, f := range need {
		alias := strings.ContainsRune(have, 'A') && strings.ContainsRune(allFlags, f)
		if !alias && !strings.ContainsRune(have, f) {
			return false
		}
	}
	return true
}

// addFlags is the union of what is set and what we need: nothing is ever taken
// away, and nothing is added that is there already.
func addFlags(have, need string) string {
	for _, f := range need {
		if !hasFlags(have, string(f)) {
			have += string(f)
		}
	}
	return have
}

// hiddenFlags are those that may be set though the server does not show them: it
// leaves out n once A is set. Writing a value without them would take them away;
// servers before 7.0 refuse them.
func hiddenFlags(have string) string {
	if strings.ContainsRune(have, 'A') && !strings.ContainsRune(have, 'n') {
		return "n"
	}
	return ""
}
