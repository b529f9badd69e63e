package check_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	chart = "../helm/orphanwatch"
	// kubeVersion is that of the types that the chart is decoded into.
	kubeVersion = "1.37.0"
	namespace   = "jobs"
)

// helm runs it, away from whatever the user has configured.
func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	bin := os.Getenv("HELM")
	if bin == "" {
		bin = "helm"
	}
	cmd := exec.CommandContext(t.Context(), bin, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = []string{"HOME=" + t.TempDir(), "KUBECONFIG=/dev/null"}
	err = cmd.Run()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatalf("%v\nrun these tests by `make deploy-check`, which builds helm, or set HELM to its path", err)
	}
	var said []string
	for line := range strings.Lines(errs.String()) {
		// The rules are linked from deploy/prometheus; helm says so each time.
		if !strings.Contains(line, "found symbolic link in path: ") {
			said = append(said, line)
		}
	}
	return out.String(), strings.Join(said, ""), err
}

// template is the chart as helm renders it.
func template(t *testing.T, chart string, args ...string) string {
	t.Helper()
	out, said, err := helm(t, append([]string{"template", "ow", chart, "--namespace", namespace, "--kube-version", kubeVersion}, args...)...)
	require.NoError(t, err, said)
	require.Empty(t, said)
	return out
}

// release is a rendered chart; what was not rendered is nil.
type release struct {
	Deployment *appsv1.Deployment
	Service    *corev1.Service
	Config     *corev1.ConfigMap
	Secret     *corev1.Secret
	Account    *corev1.ServiceAccount
	Budget     *policyv1.PodDisruptionBudget
	Network    *networkingv1.NetworkPolicy
	Monitor    *monitoringv1.ServiceMonitor
	Rule       *monitoringv1.PrometheusRule
	Test       *corev1.Pod

	kinds []string
	// public is the text of all but the Secret.
	public string
}

// decode reads YAML into a typed object as the API server does with strict field
// validation: unknown, misspelt and repeated fields are errors.
func decode[T any](t *testing.T, text string, into **T) {
	t.Helper()
	require.Nil(t, *into, "there are two of these:\n%s", text)
	*into = new(T)
	decodeInto(t, text, *into)
}

func decodeInto(t *testing.T, text string, into any) {
	t.Helper()
	asJSON, err := yaml.YAMLToJSONStrict([]byte(text))
	require.NoError(t, err, text)
	strict, err := kjson.UnmarshalStrict(asJSON, into)
	require.NoError(t, err, text)
	require.Empty(t, strict, text)
}

// documents are those of a stream that hold anything.
func documents(text string) (all []string) {
	for _, d := range strings.Split("\n"+text, "\n---") {
		if strings.TrimSpace(d) != "" {
			all = append(all, d)
		}
	}
	return all
}

func render(t *testing.T, args ...string) *release {
	t.Helper()
	r := &release{}
	for _, text := range documents(template(t, chart, args...)) {
		var meta metav1.PartialObjectMetadata
		require.NoError(t, yaml.Unmarshal([]byte(text), &meta), text)
		require.Equal(t, namespace, meta.Namespace, text)
		require.Empty(t, validation.IsDNS1123Subdomain(meta.Name), meta.Name)
		for name, value := range meta.Labels {
			require.Empty(t, validation.IsQualifiedName(name), name)
			require.Empty(t, validation.IsValidLabelValue(value), value)
		}
		kind := meta.APIVersion + " " + meta.Kind
		switch kind {
		case "apps/v1 Deployment":
			decode(t, text, &r.Deployment)
		case "v1 Service":
			require.Empty(t, validation.IsDNS1035Label(meta.Name), meta.Name)
			decode(t, text, &r.Service)
		case "v1 ConfigMap":
			decode(t, text, &r.Config)
		case "v1 Secret":
			decode(t, text, &r.Secret)
		case "v1 ServiceAccount":
			decode(t, text, &r.Account)
		case "policy/v1 PodDisruptionBudget":
			decode(t, text, &r.Budget)
		case "networking.k8s.io/v1 NetworkPolicy":
			decode(t, text, &r.Network)
		case "monitoring.coreos.com/v1 ServiceMonitor":
			decode(t, text, &r.Monitor)
		case "monitoring.coreos.com/v1 PrometheusRule":
			decode(t, text, &r.Rule)
		case "v1 Pod":
			decode(t, text, &r.Test)
		default:
			t.Fatalf("the chart makes a %s, which is not expected", kind)
		}
		r.kinds = append(r.kinds, meta.Kind)
		if meta.Kind != "Secret" {
			r.public += text
		}
	}
	slices.Sort(r.kinds)
	return r
}

// values is the path of a set of values in the chart's ci.
func values(name string) string { return filepath.Join(chart, "ci", name+"-values.yaml") }

// always is made whatever the values are.
var always = []string{"ConfigMap", "Deployment", "Pod", "Service"}

// sets are all sets of values, and what is made with them beyond always.
var sets = map[string][]string{
	"default":       {"PodDisruptionBudget", "ServiceAccount"},
	"single":        {"Secret", "ServiceAccount"},
	"tls":           {"PodDisruptionBudget", "PrometheusRule", "ServiceAccount", "ServiceMonitor"},
	"monitoring":    {"PodDisruptionBudget", "ServiceAccount", "ServiceMonitor"},
	"networkpolicy": {"NetworkPolicy"},
	"full":          {"NetworkPolicy", "PodDisruptionBudget", "PrometheusRule", "Secret", "ServiceAccount", "ServiceMonitor"},
}

// TestChart: whatever the values are, helm accepts it, Kubernetes can decode it, and its
// parts fit each other.
func TestChart(t *testing.T) {
	files, err := filepath.Glob(values("*"))
	require.NoError(t, err)
	require.Len(t, files, len(sets), "a set of values in ci/ is not tested")
	for name, more := range sets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, said, err := helm(t, "lint", "--strict", "--kube-version", kubeVersion, "--values", values(name), chart)
			require.NoError(t, err, out+said)

			r := render(t, "--values", values(name))
			require.Equal(t, slices.Sorted(slices.Values(append(slices.Clone(always), more...))), r.kinds)
			r.selects(t)
			r.serves(t)
			r.mounts(t, r.Deployment.Spec.Template.Spec)
			r.mounts(t, r.Test.Spec)
			r.confined(t, r.Deployment.Spec.Template.Spec)
			r.confined(t, r.Test.Spec)
			r.secretive(t)
			r.lives(t)
			if r.Network != nil {
				r.admits(t)
			}
			if r.Rule != nil {
				r.alerts(t)
			}
		})
	}
}

// TestAConfigurationRestarts: pods are replaced when the configuration changes, and not
// when something else does.
func TestAConfigurationRestarts(t *testing.T) {
	pods := func(args ...string) map[string]string {
		return render(t, append([]string{"--values", values("default")}, args...)...).Deployment.Spec.Template.Annotations
	}
	before := pods()
	require.NotEmpty(t, before["checksum/config"])
	require.Equal(t, before, pods("--set", "replicaCount=3"))
	require.NotEqual(t, before, pods("--set", "config.policy.grace=6s"))
}

// TestNothingToExport: without a collector nothing is exported, and no way to one is open.
func TestNothingToExport(t *testing.T) {
	r := render(t, "--values", values("networkpolicy"), "--set", "telemetry.endpoint=")
	require.Len(t, r.Network.Spec.Egress, 3, "DNS, PostgreSQL, Redis")
	for name := range env(r.container(t)) {
		require.NotContains(t, name, "OTEL_")
	}
}

// TestPackage: a packaged chart holds what the checkout's does, the linked rules too.
func TestPackage(t *testing.T) {
	dir := t.TempDir()
	out, said, err := helm(t, "package", chart, "--destination", dir)
	require.NoError(t, err, out+said)
	packed, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	require.NoError(t, err)
	require.Len(t, packed, 1)
	require.Equal(t, template(t, chart, "--values", values("full")), template(t, packed[0], "--values", values("full")))
}

// TestNotes: what helm install says in the end fits the values.
func TestNotes(t *testing.T) {
	// helm install renders the notes alone, for which it wants a cluster: here they are a template.
	dir := filepath.Join(t.TempDir(), "orphanwatch")
	out, err := exec.CommandContext(t.Context(), "cp", "-rL", chart, dir).CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.Rename(filepath.Join(dir, "templates/NOTES.txt"), filepath.Join(dir, "files/NOTES.txt")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "templates/notes.yaml"),
		[]byte(`{{ dict "kind" "Notes" "text" (tpl (.Files.Get "files/NOTES.txt") .) | toYaml }}`), 0o600))
	warnings := map[string]string{
		"plain":   "tokens cross the network",
		"trial":   "secret.create keeps",
		"nobody":  "nobody is told",
		"doctor":  "kubectl -n jobs exec deployment/",
		"several": "copies, of which one leads",
	}
	for name, want := range map[string][]string{
		"default": {"doctor", "nobody", "several"},
		"single":  {"doctor", "nobody", "trial"},
		"tls":     {"doctor", "several"},
		"full":    {"doctor", "several", "trial"},
	} {
		text := template(t, dir, "--values", values(name), "--show-only", "templates/notes.yaml")
		var notes struct{ Text string }
		require.NoError(t, yaml.Unmarshal([]byte(text), &notes))
		var found []string
		for w, text := range warnings {
			if strings.Contains(notes.Text, text) {
				found = append(found, w)
			}
		}
		require.Equal(t, want, slices.Sorted(slices.Values(found)), notes.Text)
	}
	text := template(t, dir, "--values", values("default"), "--set", "secretKeys.tokens=tokens", "--show-only", "templates/notes.yaml")
	require.Contains(t, text, warnings["plain"])
}

// TestBadValues: are refused before anything is installed, and the message says which.
func TestBadValues(t *testing.T) {
	for set, want := range map[string]string{
		"networkPolicy.egress=null":                          "at '/networkPolicy': missing property 'egress'",
		"config=null":                                        "missing property 'config'",
		"livenessProbe=null":                                 "missing property 'livenessProbe'",
		"fullnameOverride=scans.v2":                          "at '/fullnameOverride': 'scans.v2' does not match pattern",
		"existingSecret=":                                    "no Secret: set existingSecret",
		"secret.create=true":                                 "existingSecret and secret.create are both set",
		"secretKeys.databaseUrl=":                            "secretKeys.databaseUrl is empty",
		"secretKeys.redisUrl=":                               "secretKeys.redisUrl, brokerUrl and resultBackend are all empty",
		"config.http.jwt_issuer=app":                         "secretKeys.jwtSecret is empty, so that no JWT is accepted",
		"secretKeys.databaseUrl=a/b":                         "at '/secretKeys/databaseUrl': 'a/b' does not match pattern",
		"existingsecret=x":                                   "additional properties 'existingsecret' not allowed",
		"replicaCount=-1":                                    "at '/replicaCount': minimum: got -1, want 0",
		"replicaCount=two":                                   "at '/replicaCount': got string, want integer",
		"image.digest=2c26b46b":                              "at '/image/digest': '2c26b46b' does not match pattern",
		"image.pullPolicy=Sometimes":                         "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
		"config.postgres.url=postgres://x":                   "at '/config': additional properties 'postgres' not allowed",
		"config.redis.url=redis://x":                         "at '/config/redis': additional properties 'url' not allowed",
		"config.http.addr=:9000":                             "at '/config/http': additional properties 'addr' not allowed",
		"config.http.jwt_scopes={all}":                       "at '/config/http/jwt_scopes/0': value must be one of 'read', 'cleanup', 'purge', 'admin'",
		"config.policy.remove=everything":                    "at '/config/policy/remove': value must be one of 'all', 'deleted', 'none'",
		"config.policy.graze=5s":                             "at '/config/policy': additional properties 'graze' not allowed",
		"config.policy.grace=5":                              "at '/config/policy/grace': got number, want string",
		"config.policy.grace=1d":                             "at '/config/policy/grace': '1d' does not match pattern",
		"config.policy.max_age_hours=169":                    "at '/config/policy/max_age_hours': maximum: got 169, want 168",
		"config.policy.max_absent_ratio=0":                   "at '/config/policy/max_absent_ratio': exclusiveMinimum: got 0, want 0",
		"config.replication.slot=Ow":                         "at '/config/replication/slot': 'Ow' does not match pattern",
		"config.replication.max_wal=1":                       "at '/config/replication/max_wal': got number, want string",
		"config.redis.configure=always":                      "at '/config/redis/configure': value must be one of 'auto', 'never'",
		"config.celery.terminate=false":                      "at '/config/celery/terminate': got boolean, want string",
		"config.tasks[0].key=id":                             "at '/config/tasks/0': missing property 'table'",
		"config.tasks[0].table=t,config.tasks[0].match={id}": "at '/config/tasks/0/match/0': 'id' does not match pattern",
		"config.log.level=trace":                             "at '/config/log/level': value must be one of 'debug', 'info', 'warn', 'error'",
		"telemetry.endpoint=collector:4318":                  "at '/telemetry/endpoint': 'collector:4318' does not match pattern",
		"telemetry.protocol=http/json":                       "at '/telemetry/protocol': value must be one of 'http/protobuf', 'grpc'",
		"terminationGracePeriodSeconds=10":                   "at '/terminationGracePeriodSeconds': minimum: got 10, want 11",
		"service.port=70000":                                 "at '/service/port': maximum: got 70,000, want 65,535",
		"monitoring.interval=quarter":                        "at '/monitoring/interval': 'quarter' does not match pattern",
		"networkPolicy.egress.redis.ports=null":              "at '/networkPolicy/egress/redis': missing property 'ports'",
		"startupProbe.httpGet.path=/":                        "at '/startupProbe': additional properties 'httpGet' not allowed",
	} {
		t.Run(set, func(t *testing.T) {
			t.Parallel()
			_, said, err := helm(t, "template", chart, "--kube-version", kubeVersion, "--values", values("default"), "--set", set)
			require.Error(t, err)
			require.Contains(t, said, want)
		})
	}
	_, said, err := helm(t, "template", chart, "--kube-version", kubeVersion, "--set", "secret.create=true,secret.databaseUrl=x,secret.redisUrl=x,secret.tokens=x")
	require.Error(t, err)
	require.Contains(t, said, "secretKeys.tokens=tokens")
}
