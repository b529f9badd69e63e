package wiring

import (
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// Redacted is the configuration as a file that Load accepts, with every secret
// replaced, for config show.
func (c *Config) Redacted() ([]byte, error) { return c.encode(false) }

// encode writes the configuration as YAML, in the order of the struct; reveal
// writes secrets as they are.
func (c *Config) encode(reveal bool) ([]byte, error) {
	node, err := structNode(reflect.ValueOf(*c), reveal)
	if err != nil {
		return nil, err
	}
	text, err := yaml.Marshal(node)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return text, nil
}

// structNode is a section or a binding.
func structNode(v reflect.Value, reveal bool) (*yaml.Node, error) {
	node := &yaml.Node{Kind: yaml.MappingNode}
	for i := range v.NumField() {
		var key yaml.Node
		key.SetString(v.Type().Field(i).Tag.Get("yaml"))
		value, err := valueNode(v.Field(i), reveal)
		if err != nil {
			return nil, err
		}
		node.Content = append(node.Content, &key, value)
	}
	return node, nil
}

// valueNode is the value of a key.
func valueNode(v reflect.Value, reveal bool) (*yaml.Node, error) {
	node := &yaml.Node{}
	switch x := v.Interface().(type) {
	case []TaskConfig:
		node.Kind = yaml.SequenceNode
		for i := range x {
			task, err := structNode(v.Index(i), reveal)
			if err != nil {
				return nil, err
			}
			node.Content = append(node.Content, task)
		}
		return node, nil
	case []string:
		node.Kind, node.Style = yaml.SequenceNode, yaml.FlowStyle
		for _, e := range x {
			node.Content = append(node.Content, textNode(e))
		}
		return node, nil
	case Secret:
		if reveal {
			return textNode(x.Reveal()), nil
		}
		return textNode(x.String()), nil
	case string:
		return textNode(x), nil
	case time.Duration:
		return textNode(formatDuration(x)), nil
	case ByteSize:
		return textNode(x.String()), nil
	}
	if v.Kind() == reflect.Struct {
		return structNode(v, reveal)
	}
	if err := node.Encode(v.Interface()); err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	if v.Kind() == reflect.Slice {
		node.Style = yaml.FlowStyle
	}
	return node, nil
}

// textNode is text, in double quotes if it holds anything that YAML's block
// styles do not carry.
func textNode(text string) *yaml.Node {
	node := &yaml.Node{}
	node.SetString(text)
	if node.ShortTag() == "!!str" {
		node.Style = 0
		if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			node.Style = yaml.DoubleQuotedStyle
		}
	}
	return node
}
