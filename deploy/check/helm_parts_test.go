package check_test

import (
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// matches tells whether labels are selected.
func matches(t *testing.T, s *metav1.LabelSelector, set map[string]string) bool {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	require.NoError(t, err)
	require.False(t, selector.Empty())
	return selector.Matches(labels.Set(set))
}

// has tells whether one map has all of another.
func has(all, some map[string]string) bool {
	merged := maps.Clone(all)
	maps.Copy(merged, some)
	return maps.Equal(all, merged)
}

// container is the daemon's.
func (r *release) container(t *testing.T) corev1.Container {
	t.Helper()
	require.Len(t, r.Deployment.Spec.Template.Spec.Containers, 1)
	return r.Deployment.Spec.Template.Spec.Containers[0]
}

// selects: every selector finds the daemon's pods, and none the pod of helm test.
func (r *release) selects(t *testing.T) {
	t.Helper()
	pods, test := r.Deployment.Spec.Template.Labels, r.Test.Labels
	require.True(t, matches(t, r.Deployment.Spec.Selector, pods))
	require.False(t, matches(t, r.Deployment.Spec.Selector, test))
	require.NotEmpty(t, r.Service.Spec.Selector)
	require.True(t, has(pods, r.Service.Spec.Selector))
	require.False(t, has(test, r.Service.Spec.Selector))
	for _, spread := range r.Deployment.Spec.Template.Spec.TopologySpreadConstraints {
		require.True(t, matches(t, spread.LabelSelector, pods))
		require.Equal(t, corev1.ScheduleAnyway, spread.WhenUnsatisfiable, "two copies must start on one node too")
	}
	require.NotEmpty(t, r.Deployment.Spec.Template.Spec.TopologySpreadConstraints)
	if r.Budget != nil {
		require.Greater(t, *r.Deployment.Spec.Replicas, int32(1), "one copy alone must not hold up a drain")
		require.True(t, matches(t, r.Budget.Spec.Selector, pods))
		require.Equal(t, 1, r.Budget.Spec.MaxUnavailable.IntValue())
	}
	if r.Network != nil {
		require.True(t, matches(t, &r.Network.Spec.PodSelector, pods))
		require.False(t, matches(t, &r.Network.Spec.PodSelector, test))
	}
	if r.Monitor != nil {
		require.True(t, matches(t, &r.Monitor.Spec.Selector, r.Service.Labels))
	}
}

// serves: Service, probes, helm test and Prometheus all lead to the port that the daemon
// listens on, by the protocol that it speaks there.
func (r *release) serves(t *testing.T) {
	t.Helper()
	c := r.container(t)
	require.Equal(t, []corev1.ContainerPort{{Name: "http", ContainerPort: 8000, Protocol: corev1.ProtocolTCP}}, c.Ports)
	require.Len(t, r.Service.Spec.Ports, 1)
	port := r.Service.Spec.Ports[0]
	require.Equal(t, c.Ports[0].Name, port.TargetPort.StrVal)

	var config struct {
		HTTP struct {
			Addr     string `json:"addr"`
			Insecure bool   `json:"insecure"`
			TLSCert  string `json:"tls_cert"`
			TLSKey   string `json:"tls_key"`
		} `json:"http"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(r.Config.Data["orphanwatch.yaml"]), &config))
	require.Equal(t, "0.0.0.0:8000", config.HTTP.Addr)
	require.NotEqual(t, config.HTTP.Insecure, config.HTTP.TLSCert != "" && config.HTTP.TLSKey != "")
	scheme := corev1.URISchemeHTTPS
	if config.HTTP.Insecure {
		scheme = corev1.URISchemeHTTP
	}
	lower := strings.ToLower(string(scheme))
	require.Equal(t, lower, *port.AppProtocol)
	for path, probes := range map[string][]*corev1.Probe{"/livez": {c.StartupProbe, c.LivenessProbe}, "/readyz": {c.ReadinessProbe}} {
		for _, p := range probes {
			require.NotNil(t, p)
			require.NotNil(t, p.HTTPGet)
			require.Equal(t, path, p.HTTPGet.Path)
			require.Equal(t, c.Ports[0].Name, p.HTTPGet.Port.StrVal)
			require.Equal(t, scheme, p.HTTPGet.Scheme)
		}
	}
	host := r.Service.Name + "." + r.Service.Namespace + ".svc"
	require.Contains(t, r.Test.Spec.Containers[0].Args, "--url="+lower+"://"+host+":"+strconv.Itoa(int(port.Port)))
	require.Equal(t, "health", r.Test.Spec.Containers[0].Args[0])
	require.Equal(t, "test", r.Test.Annotations["helm.sh/hook"])
	require.Equal(t, c.Image, r.Test.Spec.Containers[0].Image)
	if r.Monitor != nil {
		require.Len(t, r.Monitor.Spec.Endpoints, 1)
		e := r.Monitor.Spec.Endpoints[0]
		require.Equal(t, port.Name, e.Port)
		require.Equal(t, "/metrics", e.Path)
		require.Equal(t, lower, e.Scheme.String())
		require.Equal(t, !config.HTTP.Insecure, e.TLSConfig != nil)
		if e.TLSConfig != nil && e.TLSConfig.InsecureSkipVerify == nil {
			require.Equal(t, host, *e.TLSConfig.ServerName)
			require.Contains(t, r.secrets(t)[e.TLSConfig.CA.Secret.Name], e.TLSConfig.CA.Secret.Key)
		}
	}
}

// secrets are those of the namespace, name to keys and values: those of testdata, which an
// SRE has made, and that of the chart.
func (r *release) secrets(t *testing.T) map[string]map[string]string {
	t.Helper()
	text, err := os.ReadFile("testdata/secrets.yaml")
	require.NoError(t, err)
	all := map[string]map[string]string{}
	for _, d := range documents(string(text)) {
		var s corev1.Secret
		decodeInto(t, d, &s)
		all[s.Name] = s.StringData
	}
	if r.Secret != nil {
		require.NotContains(t, all, r.Secret.Name)
		require.Empty(t, r.Secret.Data)
		all[r.Secret.Name] = r.Secret.StringData
	}
	return all
}

// mounts: each mount has a volume and each volume a mount, and what these refer to is there.
func (r *release) mounts(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	secrets := r.secrets(t)
	var mounted, volumes, paths []string
	for _, m := range pod.Containers[0].VolumeMounts {
		mounted, paths = append(mounted, m.Name), append(paths, m.MountPath)
		require.Empty(t, m.SubPath, "what is mounted by subPath never changes")
	}
	for _, path := range paths {
		require.False(t, slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(p, path+"/") }),
			"a mount below %s cannot be made: that is read-only", path)
	}
	for _, v := range pod.Volumes {
		volumes = append(volumes, v.Name)
		switch {
		case v.ConfigMap != nil:
			require.Equal(t, r.Config.Name, v.ConfigMap.Name)
		case v.Secret != nil:
			require.Contains(t, secrets, v.Secret.SecretName)
			require.NotEmpty(t, v.Secret.Items, "only what is read")
			for _, item := range v.Secret.Items {
				require.Contains(t, secrets[v.Secret.SecretName], item.Key, "Secret %s", v.Secret.SecretName)
			}
			require.EqualValues(t, 0o440, *v.Secret.DefaultMode, "readable by fsGroup, and writable by nobody")
			require.NotZero(t, *pod.SecurityContext.FSGroup)
		}
	}
	require.ElementsMatch(t, volumes, mounted)
	for _, e := range pod.Containers[0].Env {
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			require.Contains(t, secrets[e.ValueFrom.SecretKeyRef.Name], e.ValueFrom.SecretKeyRef.Key)
		}
	}
}

// confined: the pod passes the Pod Security Standard "restricted", writes nowhere, and has
// no token of Kubernetes.
func (r *release) confined(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	require.Len(t, pod.Containers, 1)
	require.Empty(t, pod.InitContainers)
	p, c := pod.SecurityContext, pod.Containers[0].SecurityContext
	require.True(t, *p.RunAsNonRoot)
	require.NotZero(t, *p.RunAsUser)
	require.NotZero(t, *p.RunAsGroup)
	require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, p.SeccompProfile.Type)
	require.True(t, *c.ReadOnlyRootFilesystem)
	require.False(t, *c.AllowPrivilegeEscalation)
	require.Equal(t, &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, c.Capabilities)
	require.Nil(t, c.Privileged)
	require.False(t, *pod.AutomountServiceAccountToken)
	require.False(t, *pod.EnableServiceLinks)
	require.False(t, pod.HostNetwork || pod.HostPID || pod.HostIPC)
	require.NotZero(t, pod.Containers[0].Resources.Limits.Memory().Value())
}

// secretive: no value of a Secret is anywhere else.
func (r *release) secretive(t *testing.T) {
	t.Helper()
	require.NotContains(t, r.public, "s3cret")
	if r.Secret == nil {
		return
	}
	require.NotEmpty(t, r.Secret.StringData)
	for key, value := range r.Secret.StringData {
		require.Contains(t, value, "s3cret", "the value of %s would not be found elsewhere", key)
	}
}

// lives: the pod starts, stops and is replaced as the daemon needs it.
func (r *release) lives(t *testing.T) {
	t.Helper()
	d, c := r.Deployment.Spec, r.container(t)
	require.Equal(t, 0, d.Strategy.RollingUpdate.MaxUnavailable.IntValue())
	require.Equal(t, 1, d.Strategy.RollingUpdate.MaxSurge.IntValue())
	require.Greater(t, *d.Template.Spec.TerminationGracePeriodSeconds, int64(10), "the daemon stops within 10 s")
	require.Equal(t, []string{"run"}, c.Args)
	require.Regexp(t, `^[a-z0-9./-]+/orphanwatch(:0\.1\.0|@sha256:[0-9a-f]{64})$`, c.Image)
	account := "default"
	if r.Account != nil {
		account = r.Account.Name
		require.False(t, *r.Account.AutomountServiceAccountToken)
	}
	require.Equal(t, account, d.Template.Spec.ServiceAccountName)

	limit := c.Resources.Limits.Memory()
	goLimit := resource.MustParse(strings.TrimSuffix(env(c)["GOMEMLIMIT"], "B"))
	require.Less(t, goLimit.Value(), limit.Value()*9/10, "GOMEMLIMIT must leave room for what is not the heap")
	require.Greater(t, goLimit.Value(), int64(147<<20), "the highest RSS of the README's \"Measured\"")
	names := map[string]bool{}
	for _, e := range c.Env {
		require.False(t, names[e.Name], "%s is set twice", e.Name)
		names[e.Name] = true
	}
}

// env are the container's variables that have a value in the manifest.
func env(c corev1.Container) map[string]string {
	all := map[string]string{}
	for _, e := range c.Env {
		all[e.Name] = e.Value
	}
	return all
}

// admits: the policy lets in, to the daemon's port alone, whom it should, and out to what
// the daemon needs.
func (r *release) admits(t *testing.T) {
	t.Helper()
	spec := r.Network.Spec
	require.Equal(t, []networkingv1.PolicyType{"Ingress", "Egress"}, spec.PolicyTypes)
	require.Len(t, spec.Ingress, 1)
	require.NotEmpty(t, spec.Ingress[0].From, "no peer means everybody")
	require.Len(t, spec.Ingress[0].Ports, 1)
	require.Equal(t, r.container(t).Ports[0].Name, spec.Ingress[0].Ports[0].Port.StrVal)
	test := slices.ContainsFunc(spec.Ingress[0].From, func(p networkingv1.NetworkPolicyPeer) bool {
		if p.PodSelector == nil || p.NamespaceSelector != nil {
			return false
		}
		return len(p.PodSelector.MatchLabels) == 0 || matches(t, p.PodSelector, r.Test.Labels)
	})
	require.True(t, test, "helm test cannot reach the daemon")

	open := map[string]bool{}
	for _, rule := range spec.Egress {
		for _, p := range rule.Ports {
			open[string(*p.Protocol)+" "+p.Port.String()] = true
		}
	}
	for _, want := range []string{"UDP 53", "TCP 53", "TCP 5432", "TCP 6379", "TCP 4317", "TCP 4318"} {
		require.True(t, open[want], "%s of %v", want, open)
	}
}

// alerts: the rule is that of deploy/prometheus, templates of Prometheus and all.
func (r *release) alerts(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("../prometheus/orphanwatch.rules.yaml")
	require.NoError(t, err)
	var want monitoringv1.PrometheusRuleSpec
	decodeInto(t, string(text), &want)
	require.NotEmpty(t, want.Groups)
	require.Equal(t, want, r.Rule.Spec)
}
