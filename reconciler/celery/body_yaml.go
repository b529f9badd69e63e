package celery

import (
	"errors"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxYAML is smaller than maxBody: the parser makes a tree of the whole text, a
// hundred times as large.
const maxYAML = 256 << 10

// yamlWalker goes through a YAML document as PyYAML's safe_load reads it. Nothing
// is constructed: a value with a tag of its own is none of ours.
type yamlWalker struct {
	node *yaml.Node
	open []yamlOpen
	// left is how many more nodes may be seen: aliases can make few bytes of text
	// a document without end.
	left int
}

// yamlOpen is a list or dict with the index of its next child.
type yamlOpen struct {
	node *yaml.Node
	next int
}

func newYAMLWalker(s string) (w *yamlWalker, err error) {
	if len(s) > maxYAML {
		return nil, errSyntax
	}
	// Its parser has panicked on hostile texts before; a message must not end the
	// daemon.
	defer func() {
		if recover() != nil {
			w, err = nil, errSyntax
		}
	}()
	in := yaml.NewDecoder(strings.NewReader(s))
	var doc, second yaml.Node
	if err := in.Decode(&doc); err != nil || len(doc.Content) != 1 {
		return nil, errSyntax
	}
	if err := in.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errSyntax
	}
	return &yamlWalker{node: doc.Content[0], left: 4 * len(s)}, nil
}

func (w *yamlWalker) value() (item, error) {
	n := w.node
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if w.left -= 1 + len(n.Content); w.left < 0 {
		return item{}, errSyntax
	}
	v := yamlItem(n)
	if v.opens() {
		if len(w.open) == maxNesting {
			return item{}, errSyntax
		}
		w.open = append(w.open, yamlOpen{node: n})
	}
	return v, nil
}

func (w *yamlWalker) next() (key item, more bool, err error) {
	top := &w.open[len(w.open)-1]
	children := top.node.Content
	if top.next == len(children) {
		w.open = w.open[:len(w.open)-1]
		return item{}, false, nil
	}
	if top.node.Kind == yaml.MappingNode {
		key = item{kind: other, raw: "\xff"} // which no text equals
		if k := children[top.next]; k.Kind == yaml.ScalarNode {
			if v := yamlItem(k); v.kind == text {
				key = v
			}
		}
		top.next++
	}
	w.node = children[top.next]
	top.next++
	return key, true, nil
}

func (w *yamlWalker) skip(v item) error {
	if v.opens() {
		w.open = w.open[:len(w.open)-1]
	}
	return nil
}

func (w *yamlWalker) end() error { return nil }

// What a plain text is in YAML 1.1, from yaml.resolver of PyYAML. An integer in
// another spelling than the canonical one is never a row's key for us.
var (
	yamlInt = regexp.MustCompile(`^(?:0|-?[1-9][0-9]*)$`)
	yamlNot = regexp.MustCompile(`^(?:` + strings.Join([]string{
		`yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF`,
		`[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?`,
		`\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?`,
		`[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?`,
		`[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)`,
		`[-+]?0b[0-1_]+|[-+]?[0-9][0-9_]*|[-+]?0x[0-9a-fA-F_]+`,
		`[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9:.]+(?:[ \t]*(?:Z|[-+][0-9][0-9]?(?::[0-9]{2})?))?)?`,
		`<<|=`,
	}, "|") + `)$`)
)

func yamlItem(n *yaml.Node) item {
	tagged := n.Style&yaml.TaggedStyle != 0
	switch {
	case tagged && (n.Kind != yaml.ScalarNode || n.Tag != "!!str"):
		return item{kind: other}
	case n.Kind == yaml.SequenceNode:
		return item{kind: list}
	case n.Kind == yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			if n.Content[i].Value == "<<" { // PyYAML would merge another dict into it
				return item{kind: other}
			}
		}
		return item{kind: dict}
	case n.Kind != yaml.ScalarNode:
		return item{kind: other}
	case tagged || n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return item{kind: text, raw: n.Value}
	}
	switch s := n.Value; {
	case s == "", s == "~", s == "null", s == "Null", s == "NULL":
		return item{kind: null}
	case len(s) > maxText:
		return item{kind: text, raw: s}
	case yamlInt.MatchString(s):
		return item{kind: integer, raw: s}
	case yamlNot.MatchString(s):
		return item{kind: other}
	default:
		return item{kind: text, raw: s}
	}
}
