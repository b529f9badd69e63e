package wiring

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// field is a key of the configuration, as the struct tags declare it: the name
// in the file, the well-known variable, and the values that it may have.
type field struct {
	// path is section.key; in a binding the bare key.
	path  string
	index []int
	typ   reflect.Type
	// alias is a variable that sets the key beside ORPHANWATCH_<SECTION>_<KEY>.
	alias string
	oneOf []string
}

var (
	typeSecret = reflect.TypeFor[Secret]()
	typeTasks  = reflect.TypeFor[[]TaskConfig]()

	configFields = fieldsOf(reflect.TypeFor[Config](), "", nil)
	taskFields   = fieldsOf(reflect.TypeFor[TaskConfig](), "", nil)
)

// fieldsOf lists the keys of a struct in their order, those of sections
// included. The list of bindings is not a key in this sense.
func fieldsOf(t reflect.Type, prefix string, index []int) []field {
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		at := append(append([]int{}, index...), i)
		path := prefix + sf.Tag.Get("yaml")
		switch {
		case sf.Type == typeTasks:
		case sf.Type.Kind() == reflect.Struct && sf.Type != typeSecret:
			out = append(out, fieldsOf(sf.Type, path+".", at)...)
		default:
			f := field{path: path, index: at, typ: sf.Type, alias: sf.Tag.Get("env")}
			if values := sf.Tag.Get("oneof"); values != "" {
				f.oneOf = strings.Fields(values)
			}
			out = append(out, f)
		}
	}
	return out
}

// set decodes raw, which is a value from the file or the text of a variable,
// into the field of the struct that v is.
func (f field) set(v reflect.Value, raw any, fromEnv bool) *fault {
	target := v.FieldByIndex(f.index)
	if fromEnv {
		text, _ := raw.(string)
		return f.setText(target, text)
	}
	return f.setValue(target, raw)
}

// setText decodes the text of a variable.
func (f field) setText(target reflect.Value, text string) *fault {
	var err *fault
	switch target.Interface().(type) {
	case time.Duration, ByteSize:
		return f.setValue(target, text)
	case Secret:
		target.Set(reflect.ValueOf(NewSecret(text)))
	case bool:
		var b bool
		if b, err = parseBool(text); err == nil {
			target.SetBool(b)
		}
	case int:
		n, convErr := strconv.Atoi(strings.TrimSpace(text))
		if convErr != nil {
			return &fault{quote(text) + " is not a whole number", "write digits only"}
		}
		target.SetInt(int64(n))
	case float64:
		x, convErr := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if convErr != nil {
			return &fault{quote(text) + " is not a number", "write a number such as 0.5"}
		}
		target.SetFloat(x)
	case []string:
		target.Set(reflect.ValueOf(splitList(text)))
	case []int:
		numbers := []any{}
		for _, e := range splitList(text) {
			n, convErr := strconv.Atoi(e)
			if convErr != nil {
				return &fault{quote(e) + " is not a whole number", "write numbers separated by commas"}
			}
			numbers = append(numbers, n)
		}
		return f.setValue(target, numbers)
	case string:
		if text, err = unescape(f, text); err == nil {
			return f.setValue(target, text)
		}
	}
	return err
}

// unescape reads \x06\x16 in celery.sep, bytes that a variable can hardly hold.
func unescape(f field, text string) (string, *fault) {
	if f.path != "celery.sep" {
		return strings.TrimSpace(text), nil
	}
	if !strings.Contains(text, `\`) {
		return text, nil
	}
	plain, err := strconv.Unquote(`"` + text + `"`)
	if err != nil {
		return "", &fault{quote(text) + " is not valid", `write control bytes as \x06\x16`}
	}
	return plain, nil
}

// setValue decodes a value as YAML gives it.
func (f field) setValue(target reflect.Value, raw any) *fault {
	text, isText := raw.(string)
	switch target.Interface().(type) {
	case time.Duration:
		if n, ok := raw.(int); ok {
			text, isText = strconv.Itoa(n), true
		} else if x, ok := raw.(float64); ok {
			text, isText = strconv.FormatFloat(x, 'g', -1, 64), true
		}
		if !isText {
			return wrongKind(raw, "a duration", "write a number with a unit, such as 5s")
		}
		d, err := parseDuration(text)
		if err != nil {
			return err
		}
		target.SetInt(int64(d))
	case ByteSize:
		if n, ok := raw.(int); ok {
			text, isText = strconv.Itoa(n), true
		}
		if !isText {
			return wrongKind(raw, "a size", "write a number with a unit, such as 1GiB")
		}
		size, err := parseByteSize(text)
		if err != nil {
			return err
		}
		target.SetInt(int64(size))
	case Secret:
		if !isText {
			return wrongKind(raw, "text", "write text, in quotes if need be")
		}
		target.Set(reflect.ValueOf(NewSecret(text)))
	case bool:
		b, ok := raw.(bool)
		if !ok {
			return wrongKind(raw, "true or false", "write true or false")
		}
		target.SetBool(b)
	case int:
		n, ok := raw.(int)
		if !ok {
			return wrongKind(raw, "a whole number", "write digits only")
		}
		target.SetInt(int64(n))
	case float64:
		switch x := raw.(type) {
		case float64:
			target.SetFloat(x)
		case int:
			target.SetFloat(float64(x))
		default:
			return wrongKind(raw, "a number", "write a number such as 0.5")
		}
	case string:
		if !isText {
			return wrongKind(raw, "text", "put it in quotes if it is meant as text")
		}
		if f.oneOf != nil && !slices.Contains(f.oneOf, text) {
			return &fault{quote(text) + " is not a value of this key", "write " + orList(f.oneOf)}
		}
		target.SetString(text)
	case []string:
		return setList(target, raw, "text")
	case []int:
		return setList(target, raw, "a whole number")
	}
	return nil
}

// setList decodes a list; each element must be of the target's element type.
func setList(target reflect.Value, raw any, what string) *fault {
	list, ok := raw.([]any)
	if !ok {
		return wrongKind(raw, "a list", "write a list: [a, b]")
	}
	out := reflect.MakeSlice(target.Type(), 0, len(list))
	for i, e := range list {
		v := reflect.ValueOf(e)
		if e == nil || v.Type() != target.Type().Elem() {
			bad := wrongKind(e, what, "each element must be "+what+"; put text that holds a colon in quotes")
			return &fault{fmt.Sprintf("element %d: %s", i+1, bad.what), bad.fix}
		}
		out = reflect.Append(out, v)
	}
	target.Set(out)
	return nil
}

// wrongKind says that a value is not of the kind that its key wants. It does
// not repeat the value: it may be a secret in the wrong place.
func wrongKind(raw any, want, fix string) *fault {
	found := "a value of another kind"
	switch raw.(type) {
	case nil:
		found = "nothing"
	case string:
		found = "text"
	case bool:
		found = "true or false"
	case int, int64, uint64, float64:
		found = "a number"
	case []any:
		found = "a list"
	case map[string]any, map[any]any:
		found = "a section"
	case time.Time:
		found = "a date"
	}
	return &fault{"must be " + want + ", found " + found, fix}
}

// orList is "a, b or c".
func orList(values []string) string {
	if len(values) < 2 {
		return strings.Join(values, "")
	}
	return strings.Join(values[:len(values)-1], ", ") + " or " + values[len(values)-1]
}
