package celery

import "github.com/orphanwatch/orphanwatch/reconciler"

// rules are what bindings say about arguments.
type rules struct {
	byName map[string][]rule
	// any are the rules of bindings without names.
	any []rule
	// args and kwargs are all arguments that a rule names: no others are kept.
	args   map[int]bool
	kwargs map[string]bool
}

// rule is args:N where kwarg is "", else kwargs:K.
type rule struct {
	binding, arg int
	kwarg        string
}

func newRules(bindings []reconciler.Binding) rules {
	s := rules{byName: map[string][]rule{}, args: map[int]bool{}, kwargs: map[string]bool{}}
	for _, b := range bindings {
		for _, name := range b.Names {
			s.byName[name] = nil
		}
	}
	for i, b := range bindings {
		var of []rule
		for _, n := range b.Args {
			s.args[n] = true
			of = append(of, rule{binding: i, arg: n})
		}
		for _, k := range b.Kwargs {
			if k == "" {
				continue
			}
			s.kwargs[k] = true
			of = append(of, rule{binding: i, kwarg: k})
		}
		if len(of) == 0 {
			continue
		}
		if len(b.Names) == 0 {
			s.any = append(s.any, of...)
		}
		for name := range s.byName {
			if b.HasName(name) {
				s.byName[name] = append(s.byName[name], of...)
			}
		}
	}
	return s
}

// of are the rules for tasks of that name, in the order of the bindings.
func (s *rules) of(name string) []rule {
	if r, ok := s.byName[name]; ok {
		return r
	}
	return s.any
}

// refs are the rows that the arguments name, each once.
func (s *rules) refs(name string, c invocation) (refs []reconciler.RowRef) {
	for _, r := range s.of(name) {
		key := c.kwargs[r.kwarg]
		if r.kwarg == "" {
			key = c.args[r.arg]
		}
		ref := reconciler.RowRef{Binding: r.binding, Key: key}
		if key != "" && !hasRef(refs, ref) {
			refs = append(refs, ref)
		}
	}
	return refs
}

func hasRef(refs []reconciler.RowRef, ref reconciler.RowRef) bool {
	for _, r := range refs {
		if r == ref {
			return true
		}
	}
	return false
}
