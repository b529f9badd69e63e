package wiring

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	// Where is file:key, or the variable's name.
	Where string
	// What is wrong.
	What string
	// Fix is what to do.
	Fix string
}

// String is the problem as one line.
func (p Problem) String() string {
	s := p.Where + ": " + p.What
	if p.Fix != "" {
		s += "; " + p.Fix
	}
	return s
}

// ConfigError is every problem of a configuration. It holds no secret.
type ConfigError struct{ Problems []Problem }

// Error is a line if there is one problem, else a heading and a line for each.
func (e *ConfigError) Error() string {
	if len(e.Problems) == 1 {
		return "configuration: " + e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "configuration: %d problems", len(e.Problems))
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// nearest is the known name that was probably meant, or "". What only lacks
// leading parts (grace for policy.grace) is taken before what is misspelt.
func nearest(name string, known []string, sep string) string {
	name = strings.ToLower(name)
	last := name[strings.LastIndex(name, sep)+1:]
	best, bestDistance := "", 2+len(name)/4
	for _, k := range known {
		lower := strings.ToLower(k)
		if d := editDistance(name, lower); d < bestDistance {
			best, bestDistance = k, d
		}
		if last != "" && strings.HasSuffix(lower, sep+last) && bestDistance > 1 {
			best, bestDistance = k, 1
		}
	}
	return best
}

// editDistance is the number of changed, added, removed or swapped bytes
// between a and b.
func editDistance(a, b string) int {
	const far = 1 << 20
	if len(a) > 100 || len(b) > 100 {
		return far
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
