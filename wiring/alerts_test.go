package wiring_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

const (
	rulesFile     = "../deploy/prometheus/orphanwatch.rules.yaml"
	dashboardFile = "../deploy/grafana/orphanwatch.json"
)

// selector is a metric in an expression, and what its labels must match.
type selector struct {
	metric string
	match  map[string]string // regexps
}

// selectors finds them by their form: expressions are valid, promtool has checked that.
func selectors(exprs string) (all []selector) {
	exprs = strings.ReplaceAll(exprs, `\"`, `"`) // the dashboard's are in JSON
	label := regexp.MustCompile(`(\w+)(=~|=)"([^"]*)"`)
	for _, m := range regexp.MustCompile(`\b((?:orphanwatch|process|go)_\w+)(\{[^}]*\})?`).FindAllStringSubmatch(exprs, -1) {
		s := selector{metric: m[1], match: map[string]string{}}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			switch name, value := l[1], l[3]; {
			case name == "job" || name == "instance": // Prometheus adds them
			case l[2] == "=":
				s.match[name] = regexp.QuoteMeta(value)
			default:
				s.match[name] = value
			}
		}
		all = append(all, s)
	}
	return all
}

// scrape gives the labels of each series by its name, as one who accepts that format
// gets them.
func (d *daemon) scrape(accept string) map[string][]map[string]string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.addr+"/metrics", nil)
	require.NoError(d.t, err)
	req.Header.Set("Accept", accept)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(d.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(d.t, err)

	series := map[string][]map[string]string{}
	label := regexp.MustCompile(`(\w+)="([^"]*)"`)
	for _, m := range regexp.MustCompile(`(?m)^([a-z]\w*)(?:\{([^}]*)\})? `).FindAllStringSubmatch(string(body), -1) {
		labels := map[string]string{}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			labels[l[1]] = l[2]
		}
		series[m[1]] = append(series[m[1]], labels)
	}
	return series
}

// TestMetricsOfRulesAndDashboard: whatever is asked for exists in a running daemon, each
// value of a label too.
func TestMetricsOfRulesAndDashboard(t *testing.T) {
	w, rows := watched(t, 3)
	d := w.daemon
	histograms := []string{"orphanwatch_lag_seconds", "orphanwatch_canary_lag_seconds", "orphanwatch_reconcile_duration_seconds"}
	atStart := d.scrape("text/plain")
	w.sql("DELETE FROM scan_tasks WHERE id = $1", rows[0])
	w.gone(recovery, rows[0])
	sandbox.AwaitTB(t, recovery, "the canaries and the lag", sandbox.Until(func() bool {
		for _, source := range []string{"redis", "broker", "postgres"} {
			if d.metric("orphanwatch_canary_lag_seconds_count", `source="`+source+`"`) == 0 {
				return false
			}
		}
		return d.metric("orphanwatch_lag_seconds_count", `trigger="pg_delete"`, `outcome="removed"`) > 0
	}))
	series := d.scrape("text/plain")
	for _, h := range histograms { // nothing is new, or twice
		for _, part := range []string{h + "_count", h + "_sum", h + "_bucket"} {
			require.NotEmpty(t, atStart[part])
			require.ElementsMatch(t, atStart[part], series[part], part)
		}
	}
	for name, all := range d.scrape("application/openmetrics-text; version=1.0.0") {
		series[name] = append(series[name], all...) // le has other values there
	}

	checked := map[string]bool{}
	for _, file := range []string{rulesFile, dashboardFile} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, s := range selectors(withoutComments(string(text))) {
			checked[s.metric] = true
			require.Contains(t, series, s.metric, file)
			require.True(t, slices.ContainsFunc(series[s.metric], func(labels map[string]string) bool { return matches(labels, s.match) }),
				"%s: no series of %s matches %v", file, s.metric, s.match)
			for name, alternatives := range s.match {
				for one := range strings.SplitSeq(alternatives, "|") {
					require.True(t, slices.ContainsFunc(series[s.metric], func(labels map[string]string) bool {
						return matches(labels, map[string]string{name: one})
					}), "%s: %s never has %s=%q", file, s.metric, name, one)
				}
			}
		}
	}
	require.Greater(t, len(checked), 20)
}

func matches(labels, match map[string]string) bool {
	for name, expr := range match {
		if !regexp.MustCompile("^(?:" + expr + ")$").MatchString(labels[name]) {
			return false
		}
	}
	return true
}

func withoutComments(text string) string {
	return regexp.MustCompile(`(?m)^\s*#.*$`).ReplaceAllString(text, "")
}

// firing tells whether the alert of deploy/prometheus fires at that time, with these
// series: by the metric with its labels, a value each step from 0 on, NaN for a scrape that
// failed. It is promtool that judges, on the real rules.
func firing(t *testing.T, alert string, series map[string][]float64, step, at time.Duration) bool {
	t.Helper()
	rules, err := filepath.Abs(rulesFile)
	require.NoError(t, err)
	type input struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	}
	var inputs []input
	for name, values := range series {
		words := make([]string, len(values))
		for i, v := range values {
			if words[i] = strconv.FormatFloat(v, 'f', -1, 64); math.IsNaN(v) {
				words[i] = "_"
			}
		}
		inputs = append(inputs, input{name, strings.Join(words, " ")})
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }
	judge := func(is int) ([]byte, error) {
		test := map[string]any{
			"rule_files": []string{rules}, "evaluation_interval": ms(min(step, 15*time.Second)),
			"tests": []any{map[string]any{
				"interval": ms(step), "input_series": inputs,
				"promql_expr_test": []any{map[string]any{
					"expr":      fmt.Sprintf("count(ALERTS{alertname=%q,alertstate=\"firing\"}) > bool 0 or vector(0)", alert),
					"eval_time": ms(at), "exp_samples": []any{map[string]any{"labels": "{}", "value": is}},
				}},
			}},
		}
		text, err := yaml.Marshal(test)
		require.NoError(t, err)
		file := filepath.Join(t.TempDir(), "firing.test.yaml")
		require.NoError(t, os.WriteFile(file, text, 0o600))
		return exec.Command(sandbox.Promtool(t), "test", "rules", file).CombinedOutput()
	}
	if _, err := judge(1); err == nil {
		return true
	}
	out, err := judge(0) // a mistake in the file is no answer
	require.NoError(t, err, "%s", out)
	return false
}

func TestFiring(t *testing.T) {
	stuck, well, broken := make([]float64, 120), make([]float64, 120), make([]float64, 120)
	for i := range stuck {
		stuck[i], broken[i] = float64(max(i-20, 0)), math.NaN()
	}
	const metric = `orphanwatch_pending_oldest_seconds{instance="a"}`
	fires := func(values []float64, at time.Duration) bool {
		return firing(t, "OldestPending", map[string][]float64{metric: values}, time.Second, at)
	}
	require.False(t, fires(stuck, 50*time.Second), "it has waited for 30 s only")
	require.False(t, fires(stuck, 79*time.Second), "for 59 s")
	require.True(t, fires(stuck, 82*time.Second), "for 62 s")
	require.False(t, fires(well, 100*time.Second))
	require.False(t, fires(broken, 100*time.Second))
}
