package check_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// buildDaemon builds the daemon of this checkout.
func buildDaemon(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "orphanwatch")
	out, err := exec.CommandContext(t.Context(), "go", "-C", "../..", "build", "-buildvcs=false", "-o", bin, "./cmd/orphanwatch").CombinedOutput()
	require.NoError(t, err, string(out))
	return bin
}

// pod is the daemon in its container, as far as that is files and variables.
type pod struct {
	bin string
	env []string
	// root is the directory that stands for the container's "/".
	root string
}

// layout makes the container's files and environment below a directory of ours, to which
// the paths in them lead.
func (r *release) layout(t *testing.T, bin string) pod {
	t.Helper()
	root, c := t.TempDir(), r.container(t)
	move := func(text string) string {
		for _, m := range c.VolumeMounts {
			text = strings.ReplaceAll(text, m.MountPath, root+m.MountPath)
		}
		return text
	}
	secrets := r.secrets(t)
	for _, m := range c.VolumeMounts {
		dir := root + m.MountPath
		require.NoError(t, os.MkdirAll(dir, 0o755))
		v := r.Deployment.Spec.Template.Spec.Volumes
		v = v[slices.IndexFunc(v, func(v corev1.Volume) bool { return v.Name == m.Name }):]
		switch s := v[0].VolumeSource; {
		case s.ConfigMap != nil:
			for name, text := range r.Config.Data {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(move(text)), 0o444))
			}
		case s.Secret != nil:
			for _, item := range s.Secret.Items {
				text := secrets[s.Secret.SecretName][item.Key]
				require.NoError(t, os.WriteFile(filepath.Join(dir, item.Path), []byte(text), os.FileMode(*s.Secret.DefaultMode)))
			}
		}
	}
	p := pod{bin: bin, root: root}
	for _, e := range c.Env {
		value := e.Value
		if from := e.ValueFrom; from != nil && from.SecretKeyRef != nil {
			value = secrets[from.SecretKeyRef.Name][from.SecretKeyRef.Key]
		}
		p.env = append(p.env, e.Name+"="+move(value))
	}
	return p
}

// run is a command of the daemon in the container, as kubectl exec starts it.
func (p pod) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.bin, args...)
	cmd.Env = p.env
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	require.NoError(t, err, "%v: %s", args, errs.String())
	return string(out)
}

// config is what is in force in the container.
func (p pod) config(t *testing.T) map[string]any {
	t.Helper()
	text := p.run(t, "config", "show", "-o", "json")
	if p.root != "" {
		text = strings.ReplaceAll(text, p.root, "")
	}
	var c map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &c))
	oneSpelling(c)
	return c
}

// oneSpelling makes one of 1h and 1h0m0s.
func oneSpelling(section map[string]any) {
	for key, value := range section {
		switch value := value.(type) {
		case map[string]any:
			oneSpelling(value)
		case string:
			if d, err := time.ParseDuration(value); err == nil {
				section[key] = d.String()
			}
		}
	}
}

func section(t *testing.T, m map[string]any, name string) map[string]any {
	t.Helper()
	require.IsType(t, map[string]any{}, m[name], name)
	return m[name].(map[string]any)
}

// ofTheChart are the keys that the chart sets and no value may.
var ofTheChart = []string{
	"postgres.url", "redis.url", "redis.broker_url", "redis.result_backend",
	"http.addr", "http.insecure", "http.tls_cert", "http.tls_key", "http.tokens_file", "http.jwt_secret",
}

// TestDaemon: with the container's environment and files, the daemon accepts its
// configuration, and every value has reached it.
func TestDaemon(t *testing.T) {
	bin := buildDaemon(t)
	t.Run("every key", func(t *testing.T) {
		t.Parallel()
		everyKey(t, pod{bin: bin, env: []string{"DATABASE_URL=postgres://u@h/d"}}.config(t))
	})
	for name := range sets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := render(t, "--values", values(name)).layout(t, bin)
			require.Equal(t, "the configuration is good\n", p.run(t, "config", "check"))

			inForce := p.config(t)
			http := section(t, inForce, "http")
			for _, key := range []string{"tls_cert", "tls_key", "tokens_file"} {
				if path := http[key]; path != "" {
					require.FileExists(t, p.root+path.(string), key)
				}
			}
			if http["tokens_file"] != "" {
				p.run(t, "token", "list") // which judges the file's mode, as the daemon does
			}
			// What the values say is in force, but for what the chart sets.
			var given struct{ Config map[string]any }
			readYAML(t, filepath.Join(chart, "values.yaml"), &given)
			overlay(t, name, given.Config)
			for _, key := range ofTheChart {
				at, key, _ := strings.Cut(key, ".")
				delete(section(t, inForce, at), key)
			}
			delete(inForce, "postgres")
			for i, task := range given.Config["tasks"].([]any) {
				for key, value := range task.(map[string]any) {
					require.Equal(t, value, inForce["tasks"].([]any)[i].(map[string]any)[key], "tasks.%s", key)
				}
			}
			delete(given.Config, "tasks")
			delete(inForce, "tasks")
			oneSpelling(given.Config)
			require.Equal(t, given.Config, inForce)
		})
	}
}

// overlay puts what a set of values has in config over the chart's defaults.
func overlay(t *testing.T, name string, over map[string]any) {
	t.Helper()
	var set struct{ Config map[string]any }
	readYAML(t, values(name), &set)
	for at, value := range set.Config {
		keys, ok := value.(map[string]any)
		if !ok {
			over[at] = value
			continue
		}
		for key, value := range keys {
			section(t, over, at)[key] = value
		}
	}
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, into), path)
}

// everyKey: each key of the daemon is in values.yaml with the daemon's own default, and in
// the schema; nothing else is.
func everyKey(t *testing.T, daemon map[string]any) {
	t.Helper()
	for _, key := range ofTheChart {
		at, key, _ := strings.Cut(key, ".")
		require.Contains(t, section(t, daemon, at), key)
		delete(section(t, daemon, at), key)
	}
	delete(daemon, "postgres")
	var defaults struct{ Config map[string]any }
	readYAML(t, filepath.Join(chart, "values.yaml"), &defaults)
	oneSpelling(defaults.Config)
	require.Equal(t, daemon, defaults.Config)

	var schema struct {
		Properties struct {
			Config object `json:"config"`
		} `json:"properties"`
	}
	readYAML(t, filepath.Join(chart, "values.schema.json"), &schema)
	schema.Properties.Config.describes(t, "config", daemon)
}

// object is a part of a JSON schema.
type object struct {
	AdditionalProperties *bool             `json:"additionalProperties"`
	Properties           map[string]object `json:"properties"`
	Items                *object           `json:"items"`
}

// describes: the schema has the keys of value, and no others.
func (o object) describes(t *testing.T, at string, value any) {
	t.Helper()
	switch value := value.(type) {
	case map[string]any:
		require.NotNil(t, o.AdditionalProperties, at)
		require.False(t, *o.AdditionalProperties, at)
		for key := range o.Properties {
			require.Contains(t, value, key, at)
		}
		for key, inner := range value {
			require.Contains(t, o.Properties, key, at)
			o.Properties[key].describes(t, at+"."+key, inner)
		}
	case []any:
		require.NotNil(t, o.Items, at)
		if len(value) > 0 {
			o.Items.describes(t, at+"[]", value[0])
		}
	}
}
