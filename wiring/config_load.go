package wiring

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	koanfyaml "github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
	"go.yaml.in/yaml/v3"
)

// LoadOptions is what Load reads from.
type LoadOptions struct {
	// Path is the configuration file; empty means ORPHANWATCH_CONFIG, and
	// without that no file.
	Path string
	// Environ is the environment as os.Environ gives it.
	Environ []string
	// ReadFile reads the configuration file and the files of X_FILE
	// variables; nil means os.ReadFile.
	ReadFile func(path string) ([]byte, error)
}

// Load reads the configuration: defaults, then the file, then the environment,
// the later over the earlier. The error is a *ConfigError with every problem.
func Load(o LoadOptions) (*Config, error) {
	l := &loader{
		readFile: o.ReadFile, config: Default(),
		origin: map[string]string{}, bad: map[string]bool{},
	}
	if l.readFile == nil {
		l.readFile = os.ReadFile
	}
	settings := l.fromEnvironment(o.Environ)
	l.file = o.Path
	if l.file == "" {
		l.file = l.configVariable
	}
	file, ok := l.fromFile()
	if !ok {
		// Without the file there would be a problem for each key in it.
		return nil, &ConfigError{l.problems}
	}
	l.decode(file, settings)
	l.validate()
	if len(l.problems) > 0 {
		return nil, &ConfigError{l.problems}
	}
	return l.config, nil
}

// loader is one run of Load.
type loader struct {
	readFile       func(string) ([]byte, error)
	configVariable string
	// file is the path of the configuration file, or empty.
	file   string
	config *Config
	// origin says where each key that is set was set: file:key, or a variable.
	origin map[string]string
	// bad are the keys with a problem; they are not judged again.
	bad      map[string]bool
	problems []Problem
}

// problem notes what is wrong.
func (l *loader) problem(where, what, fix string) {
	l.problems = append(l.problems, Problem{where, what, fix})
}

// refuse notes a problem with a key's value, once.
func (l *loader) refuse(path, what, fix string) {
	if !l.bad[path] {
		l.bad[path] = true
		l.problem(l.where(path), what, fix)
	}
}

// where says what set the key; for one with its default, the key itself.
func (l *loader) where(path string) string {
	if o, ok := l.origin[path]; ok {
		return o
	}
	return path
}

// fromFile reads the configuration file and reports the keys that do not exist.
func (l *loader) fromFile() (*koanf.Koanf, bool) {
	k := koanf.New(".")
	if l.file == "" {
		return k, true
	}
	content, err := l.readFile(l.file)
	if err != nil {
		l.problem(l.file, fmt.Sprintf("cannot be read: %v", err), "give the path of a readable file with --config or "+envConfig)
		return nil, false
	}
	if err := oneDocument(content); err != nil {
		l.problem(l.file, err.Error(), "mend the YAML")
		return nil, false
	}
	if err := k.Load(rawbytes.Provider(content), koanfyaml.Parser()); err != nil {
		l.problem(l.file, yamlText(err), "mend the YAML: it must be sections with keys")
		return nil, false
	}
	l.unknownKeys(k.Raw(), "")
	return k, true
}

// oneDocument refuses what follows a "---", which the parser would pass over.
func oneDocument(content []byte) error {
	d := yaml.NewDecoder(bytes.NewReader(content))
	var node yaml.Node
	if err := d.Decode(&node); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return errors.New(yamlText(err))
	}
	if err := d.Decode(&node); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one YAML document")
	}
	return nil
}

// yamlText is the parser's message without what it quotes of the file.
func yamlText(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	for {
		before, rest, ok := strings.Cut(text, "`")
		if !ok {
			return text
		}
		_, after, _ := strings.Cut(rest, "`")
		text = before + "…" + after
	}
}

// unknownKeys reports the keys of a section (of the file itself for "") that
// do not exist, and sections that are none.
func (l *loader) unknownKeys(section map[string]any, prefix string) {
	for _, key := range slices.Sorted(maps.Keys(section)) {
		path, value := prefix+key, section[key]
		if path == "tasks" || (prefix != "" && slices.ContainsFunc(configFields, func(f field) bool { return f.path == path })) {
			continue
		}
		known := prefix == "" && slices.ContainsFunc(configFields, func(f field) bool { return strings.HasPrefix(f.path, key+".") && !strings.Contains(key, ".") })
		if !known {
			l.unknown(path, knownPaths())
			continue
		}
		if value == nil {
			continue
		}
		inner, ok := value.(map[string]any)
		if !ok {
			bad := wrongKind(value, "a section", "write its keys on lines of their own below it, indented")
			l.problem(l.file+":"+path, bad.what, bad.fix)
			continue
		}
		l.unknownKeys(inner, path+".")
	}
}

// unknown reports a key that does not exist, with the one that was probably meant.
func (l *loader) unknown(path string, known []string) {
	fix := "remove it"
	if near := nearest(path, known, "."); near == path {
		fix = "write the key inside its section"
	} else if near != "" {
		fix = "did you mean " + near + "?"
	}
	l.problem(l.file+":"+quoteName(path), "unknown key", fix)
}

// knownPaths are the sections and all keys in them.
func knownPaths() []string {
	paths := []string{"tasks"}
	for _, f := range configFields {
		section, _, _ := strings.Cut(f.path, ".")
		if !slices.Contains(paths, section) {
			paths = append(paths, section)
		}
	}
	for _, f := range configFields {
		paths = append(paths, f.path)
	}
	return paths
}

// decode merges file and settings and fills the configuration.
func (l *loader) decode(file *koanf.Koanf, settings []setting) {
	for _, f := range configFields {
		if file.Get(f.path) != nil {
			l.origin[f.path] = l.file + ":" + f.path
		}
	}
	tasks := l.fileTasks(file.Get("tasks"))

	var selected []string
	byVariable := map[string]setting{}
	for _, s := range settings {
		l.origin[s.path] = s.where
		byVariable[s.where] = s
		selected = append(selected, s.where+"="+s.value)
	}
	merged := file.Copy()
	err := merged.Load(env.Provider(".", env.Opt{
		EnvironFunc:   func() []string { return selected },
		TransformFunc: func(name, value string) (string, any) { return byVariable[name].path, value },
	}), nil)
	if err != nil {
		l.problem("environment", err.Error(), "")
		return
	}

	for _, f := range configFields {
		l.decodeField(f, f.path, reflect.ValueOf(l.config).Elem(), merged.Get(f.path))
	}
	first := map[string]any{}
	for _, f := range taskFields {
		if v := merged.Get(firstTask + f.path); v != nil && !l.fromFileKey(firstTask+f.path) {
			first[f.path] = v
		}
	}
	if len(first) > 0 {
		if len(tasks) == 0 {
			tasks = []TaskConfig{Default().Tasks[0]}
		}
		for _, f := range taskFields {
			l.decodeField(f, firstTask+f.path, reflect.ValueOf(&tasks[0]).Elem(), first[f.path])
		}
	}
	if len(tasks) > 0 {
		l.config.Tasks = tasks
	}
}

// fromFileKey tells whether the file, not a variable, set the key.
func (l *loader) fromFileKey(path string) bool {
	return strings.HasPrefix(l.origin[path], l.file+":") && l.file != ""
}

// decodeField decodes the value of one key; nil leaves what is there.
func (l *loader) decodeField(f field, path string, section reflect.Value, raw any) {
	if raw == nil || l.bad[path] {
		return
	}
	if bad := f.set(section, raw, !l.fromFileKey(path)); bad != nil {
		l.refuse(path, bad.what, bad.fix)
	}
}

// fileTasks decodes the bindings of the file.
func (l *loader) fileTasks(raw any) []TaskConfig {
	if raw == nil {
		return nil
	}
	list, ok := raw.([]any)
	if !ok {
		bad := wrongKind(raw, "a list of bindings", `write each binding below tasks, the first key after "- "`)
		l.problem(l.file+":tasks", bad.what, bad.fix)
		return nil
	}
	var tasks []TaskConfig
	for i, e := range list {
		prefix := fmt.Sprintf("tasks[%d].", i)
		task := defaultTask("")
		binding, ok := e.(map[string]any)
		if !ok {
			bad := wrongKind(e, "a binding", "write its keys: table, key, match, …")
			l.problem(l.file+":"+strings.TrimSuffix(prefix, "."), bad.what, bad.fix)
			l.bad[prefix+"table"] = true
		}
		var known []string
		for _, f := range taskFields {
			known = append(known, prefix+f.path)
			if value := binding[f.path]; value != nil {
				l.origin[prefix+f.path] = l.file + ":" + prefix + f.path
				l.decodeField(f, prefix+f.path, reflect.ValueOf(&task).Elem(), value)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(binding)) {
			if !slices.Contains(known, prefix+key) {
				l.unknown(prefix+key, known)
			}
		}
		tasks = append(tasks, task)
	}
	return tasks
}
