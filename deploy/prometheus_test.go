// Package deploy_test checks what is shipped for operators.
package deploy_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

const rulesFile = "prometheus/orphanwatch.rules.yaml"

// rule is one of a file of rules.
type rule struct {
	Record      string            `yaml:"record,omitempty"`
	Alert       string            `yaml:"alert,omitempty"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

type ruleFile struct {
	Groups []struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	} `yaml:"groups"`
}

func promtool(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(sandbox.Promtool(t), args...).CombinedOutput()
	require.NoError(t, err, "promtool %s\n%s", strings.Join(args, " "), out)
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, into), path)
}

func alerts(t *testing.T) (all []rule) {
	t.Helper()
	var f ruleFile
	readYAML(t, rulesFile, &f)
	for _, g := range f.Groups {
		for _, r := range g.Rules {
			if r.Alert != "" {
				all = append(all, r)
			}
		}
	}
	return all
}

// unitTests are the files that promtool runs.
func unitTests(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("prometheus/tests/*.test.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

func TestPrometheusRules(t *testing.T) {
	promtool(t, "check", "rules", rulesFile)
	promtool(t, "check", "config", "prometheus/prometheus.yaml")
	for _, file := range unitTests(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			promtool(t, "test", "rules", file)
		})
	}
}

// TestEveryAlert: has what who is woken needs, and a test in which it fires and one in
// which it does not.
func TestEveryAlert(t *testing.T) {
	runbook, err := os.ReadFile("RUNBOOK.md")
	require.NoError(t, err)
	sections := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(runbook), -1) {
		sections[m[1]] = true
	}

	type expected struct {
		Labels map[string]string `yaml:"exp_labels"`
	}
	fires, silent := map[string][]expected{}, map[string]bool{}
	for _, file := range unitTests(t) {
		var f struct {
			Tests []struct {
				Alerts []struct {
					Name     string     `yaml:"alertname"`
					Expected []expected `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
			} `yaml:"tests"`
		}
		readYAML(t, file, &f)
		for _, test := range f.Tests {
			for _, a := range test.Alerts {
				fires[a.Name] = append(fires[a.Name], a.Expected...)
				silent[a.Name] = silent[a.Name] || len(a.Expected) == 0
			}
		}
	}

	names := map[string]bool{}
	for _, a := range alerts(t) {
		names[a.Alert] = true
		require.Contains(t, []string{"critical", "warning"}, a.Labels["severity"], a.Alert)
		require.NotEmpty(t, a.Annotations["summary"], a.Alert)
		require.Regexp(t, `\{\{ \$(value|labels)`, a.Annotations["description"], a.Alert)
		require.Equal(t, "https://github.com/orphanwatch/orphanwatch/blob/main/deploy/RUNBOOK.md#"+strings.ToLower(a.Alert), a.Annotations["runbook_url"])
		require.True(t, sections[a.Alert], "RUNBOOK.md has no section %s", a.Alert)
		require.True(t, silent[a.Alert], "no test in which %s does not fire", a.Alert)
		require.True(t, slices.ContainsFunc(fires[a.Alert], func(e expected) bool {
			for label, value := range a.Labels {
				if e.Labels[label] != value {
					return false
				}
			}
			return true
		}), "no test in which %s %v fires", a.Alert, a.Labels)
	}
	require.Equal(t, []string{
		"CanaryMissing", "GuardTripped", "KeyspaceEventsLost", "LagBudgetBurnFast", "LagBudgetBurnMedium", "LagBudgetBurnSlow", "NoLeader",
		"OldestPending", "OrphansHeld", "RevokeReachedNobody", "SlotLost", "SlotRetainedWAL", "SourceDisconnected",
	}, slices.Sorted(maps.Keys(names)))
	require.Equal(t, slices.Sorted(maps.Keys(names)), slices.Sorted(maps.Keys(sections)), "sections of RUNBOOK.md")
}

// TestTheDashboard: its queries are valid, and its variables and data sources are there.
func TestTheDashboard(t *testing.T) {
	text, err := os.ReadFile("grafana/orphanwatch.json")
	require.NoError(t, err)
	type target struct {
		Expr       string `json:"expr"`
		Datasource struct {
			UID string `json:"uid"`
		} `json:"datasource"`
	}
	var d struct {
		UID         string `json:"uid"`
		Annotations struct {
			List []target `json:"list"`
		} `json:"annotations"`
		Templating struct {
			List []struct {
				Name string `json:"name"`
			} `json:"list"`
		} `json:"templating"`
		Panels []struct {
			ID      int      `json:"id"`
			Type    string   `json:"type"`
			Title   string   `json:"title"`
			Targets []target `json:"targets"`
		} `json:"panels"`
	}
	require.NoError(t, json.Unmarshal(text, &d))
	require.NotEmpty(t, d.UID)

	// promtool parses no bare expression, but the rules in a file.
	variables := strings.NewReplacer("$__rate_interval", "1m", `"$job"`, `".*"`, `"$instance"`, `".*"`)
	known := []string{"datasource", "job", "instance"}
	for i, v := range d.Templating.List {
		require.Equal(t, known[i], v.Name)
	}
	var rules []rule
	add := func(where string, q target) {
		require.NotEmpty(t, q.Expr, where)
		require.Equal(t, "${datasource}", q.Datasource.UID, where)
		expr := variables.Replace(q.Expr)
		require.NotContains(t, expr, "$", where)
		rules = append(rules, rule{Record: "panel", Expr: expr, Labels: map[string]string{"n": where}})
	}
	ids, rows := map[int]bool{}, 0
	for _, p := range d.Panels {
		require.False(t, ids[p.ID], "two panels have the id %d", p.ID)
		ids[p.ID] = true
		if p.Type == "row" {
			rows++
			continue
		}
		require.NotEmpty(t, p.Targets, p.Title)
		for i, q := range p.Targets {
			add(p.Title+string(rune('A'+i)), q)
		}
	}
	require.Greater(t, len(d.Panels), rows)
	for _, q := range d.Annotations.List {
		if q.Expr != "" {
			add("annotations", q)
			alertname := regexp.MustCompile(`alertname=~"([^"]*)"`).FindStringSubmatch(q.Expr)
			require.NotNil(t, alertname)
			for _, a := range alerts(t) {
				require.Regexp(t, "^("+alertname[1]+")$", a.Alert)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "panels.yaml")
	body, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": rules}}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, body, 0o600))
	promtool(t, "check", "rules", file)

	var sources struct {
		Datasources []struct{ UID, Type, URL string } `yaml:"datasources"`
	}
	readYAML(t, "grafana/provisioning/datasources/orphanwatch.yaml", &sources)
	require.Equal(t, []struct{ UID, Type, URL string }{
		{"prometheus", "prometheus", "http://prometheus:9090"}, {"jaeger", "jaeger", "http://jaeger:16686"},
	}, sources.Datasources)
}
