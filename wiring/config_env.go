package wiring

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

const (
	envPrefix = "ORPHANWATCH_"
	// envConfig names the configuration file.
	envConfig = envPrefix + "CONFIG"
	// firstTask is where the variables of the first binding lead to.
	firstTask = "tasks[0]."
	// fileSuffix beside a secret-bearing variable names a file that holds the value.
	fileSuffix = "_FILE"
)

// variable is an environment variable that sets a key.
type variable struct {
	name string
	// path is the key: section.key, or tasks[0].key.
	path string
	// secret: name_FILE is accepted too.
	secret bool
}

// variables are all that we know, those that everybody knows (DATABASE_URL)
// before our own, which win where both are set.
var variables = knownVariables()

func knownVariables() []variable {
	var common, own []variable
	for _, f := range configFields {
		secret := f.typ == typeSecret
		if f.alias != "" {
			common = append(common, variable{f.alias, f.path, secret})
		}
		name := envPrefix + strings.ToUpper(strings.ReplaceAll(f.path, ".", "_"))
		own = append(own, variable{name, f.path, secret})
	}
	for _, f := range taskFields {
		own = append(own, variable{envPrefix + strings.ToUpper(f.path), firstTask + f.path, false})
	}
	return append(common, own...)
}

// kubernetesPattern matches what Kubernetes puts in the environment of every
// pod of a namespace that has a Service named orphanwatch or orphanwatch-….
var kubernetesPattern = regexp.MustCompile(`^ORPHANWATCH_([A-Z0-9_]+_)?(` +
	`SERVICE_HOST=.*|` +
	`SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]+|` +
	`PORT(_[0-9]+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*|` +
	`PORT_[0-9]+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)$`)

// setting is a key's value and where it comes from.
type setting struct{ path, value, where string }

// fromEnvironment is what the environment sets, one setting a key. Empty
// variables count as not set, as Compose passes them.
func (l *loader) fromEnvironment(environ []string) []setting {
	set := map[string]string{}
	var unknown []string
	names := l.variableNames()
	for _, entry := range environ {
		name, value, ok := strings.Cut(entry, "=")
		if !ok {
			continue
		}
		if slices.Contains(names, name) {
			set[name] = value
		} else if strings.HasPrefix(name, envPrefix) && !kubernetesPattern.MatchString(entry) {
			unknown = append(unknown, name)
		}
	}
	var own []string
	for _, name := range names {
		if name, ok := strings.CutPrefix(name, envPrefix); ok {
			own = append(own, name)
		}
	}
	slices.Sort(unknown)
	for _, name := range slices.Compact(unknown) {
		fix := "remove it"
		if near := nearest(strings.TrimPrefix(name, envPrefix), own, "_"); near != "" {
			fix = "did you mean " + envPrefix + near + "?"
		}
		l.problem(quoteName(name), "unknown variable", fix)
	}

	var out []setting
	for _, v := range variables {
		s, ok := l.variableValue(v, set)
		if !ok {
			continue
		}
		if i := slices.IndexFunc(out, func(o setting) bool { return o.path == s.path }); i >= 0 {
			out[i] = s
		} else {
			out = append(out, s)
		}
	}
	l.configVariable = set[envConfig]
	return out
}

// variableNames are all variables that we read.
func (l *loader) variableNames() []string {
	names := []string{envConfig}
	for _, v := range variables {
		names = append(names, v.name)
		if v.secret {
			names = append(names, v.name+fileSuffix)
		}
	}
	return names
}

// variableValue is the value of v, from v itself or from the file that v_FILE names.
func (l *loader) variableValue(v variable, set map[string]string) (setting, bool) {
	value, file := set[v.name], ""
	if v.secret {
		file = set[v.name+fileSuffix]
	}
	switch {
	case value != "" && file != "":
		l.problem(v.name, "is set, and "+v.name+fileSuffix+" too", "set one of them")
		l.bad[v.path] = true
		return setting{}, false
	case value != "":
		return setting{v.path, value, v.name}, true
	case file == "":
		return setting{}, false
	}
	content, err := l.readFile(file)
	if err != nil {
		l.problem(v.name+fileSuffix, fmt.Sprintf("cannot be read: %v", err), "make it the path of a readable file that holds the value of "+v.name)
		l.bad[v.path] = true
		return setting{}, false
	}
	text := strings.TrimRight(string(content), "\r\n")
	if text == "" {
		l.problem(v.name+fileSuffix, "the file "+quote(file)+" is empty", "put the value of "+v.name+" in it")
		l.bad[v.path] = true
		return setting{}, false
	}
	return setting{v.path, text, v.name + fileSuffix}, true
}

// quoteName shows the name of a variable or key that we do not know, in quotes
// if it holds anything unusual.
func quoteName(name string) string {
	for _, r := range name {
		if r <= ' ' || r > '~' {
			return quote(name)
		}
	}
	return name
}
