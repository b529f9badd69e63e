package reconciler

import "context"

// Finding is the answer to one precondition of a store: met, or what is wrong and
// what mends it. doctor shows it, and run fails with the same words.
type Finding struct {
	// Name is constant: what was looked at.
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Detail is what is so, Fix the exact command that mends it, "" where OK.
	Detail string `json:"detail,omitempty"`
	Fix    string `json:"fix,omitempty"`
	// Fatal: without it nothing can be watched or removed, or the application
	// would be harmed.
	Fatal bool `json:"fatal,omitempty"`
	// Advice: all works without it; it is a recommendation.
	Advice bool `json:"advice,omitempty"`
	// Mends: a start of run mends this by itself, where the role may.
	Mends bool `json:"-"`
	// Mend is what doctor --fix does about it, and tells what it did; nil where
	// that is an operator's.
	Mend func(ctx context.Context) (did string, err error) `json:"-"`
}
