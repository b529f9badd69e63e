package check_test

import (
	"net"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// loadCompose reads the stack as docker compose does, with nothing in the environment.
func loadCompose(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{"../compose.yaml"})
	require.NoError(t, err)
	project, err := options.LoadProject(t.Context())
	require.NoError(t, err)
	return project
}

// copies are the services that are orphanwatch.
func copies(t *testing.T, project *types.Project) (all []types.ServiceConfig) {
	t.Helper()
	for _, s := range project.Services {
		if s.Image == "orphanwatch:demo" {
			all = append(all, s)
		}
	}
	require.GreaterOrEqual(t, len(all), 2, "a leader and a standby")
	return all
}

func composeYAML(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, into), file)
}

// mounted is the repository's file or directory that a service sees under a path.
func mounted(t *testing.T, s types.ServiceConfig, target string) string {
	t.Helper()
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeBind && v.Target == target {
			return v.Source
		}
	}
	require.Fail(t, "nothing is mounted there", "%s: %s", s.Name, target)
	return ""
}

// argument is the value of a service's --name=value.
func argument(t *testing.T, s types.ServiceConfig, name string) string {
	t.Helper()
	for _, arg := range s.Command {
		if value, ok := strings.CutPrefix(arg, name+"="); ok {
			return value
		}
	}
	require.Fail(t, "there is no such flag", "%s: %s", s.Name, name)
	return ""
}

// TestComposeStack: what must be true of every service.
func TestComposeStack(t *testing.T) {
	project := loadCompose(t)
	builds := map[string]int{}
	for name, s := range project.Services {
		switch {
		case s.Build != nil:
			builds[s.Image]++
			require.Equal(t, types.PullPolicyBuild, s.PullPolicy, name)
			require.FileExists(t, filepath.Join(s.Build.Context, s.Build.Dockerfile), name)
		case strings.HasSuffix(s.Image, ":demo"):
			require.Equal(t, types.PullPolicyNever, s.PullPolicy, name)
		default:
			require.Regexp(t, `:v?\d+\.\d+(\.\d+)?(@sha256:[0-9a-f]{64})?$`, s.Image, name)
		}
		for _, p := range s.Ports {
			require.Equal(t, "127.0.0.1", p.HostIP, "%s publishes %s", name, p.Published)
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind {
				_, err := os.Stat(v.Source)
				require.NoError(t, err, "%s mounts it; Docker would make a directory", name)
				require.True(t, v.ReadOnly, "%s can write %s", name, v.Source)
			}
		}
		for dependency, how := range s.DependsOn {
			if how.Condition == types.ServiceConditionHealthy {
				require.NotNil(t, project.Services[dependency].HealthCheck, "%s waits for the health of %s", name, dependency)
			}
		}
	}
	require.Equal(t, map[string]int{"orphanwatch:demo": 1, "orphanwatch-example:demo": 1}, builds, "who builds an image")
}

// TestComposeDaemon: both copies are the same, hardened, and accept what they are given.
func TestComposeDaemon(t *testing.T) {
	all := copies(t, loadCompose(t))
	binary := orphanwatch(t)
	check := func(env ...string) error {
		cmd := exec.Command(binary, "config", "check")
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		t.Logf("config check: %s", out)
		return err
	}
	for _, s := range all {
		require.True(t, s.ReadOnly, s.Name)
		require.Equal(t, []string{"ALL"}, s.CapDrop, s.Name)
		require.Empty(t, s.CapAdd, s.Name)
		require.False(t, s.Privileged, s.Name)
		require.Equal(t, []string{"no-new-privileges:true"}, s.SecurityOpt, s.Name)
		require.Regexp(t, `^[1-9]\d*:[1-9]\d*$`, s.User, s.Name)
		require.Positive(t, s.MemLimit, s.Name)
		require.Empty(t, s.Volumes, s.Name)

		require.Equal(t, all[0].Environment, s.Environment, s.Name)
		env := s.Environment.ToMapping()
		var list []string
		for name, value := range env {
			list = append(list, name+"="+value)
		}
		require.NoError(t, check(list...), s.Name)
		require.Error(t, check(append(list, "ORPHANWATCH_POLICY_GRAZE=5s")...), "a variable that there is not")
	}
}

// TestComposePrometheus: it scrapes every copy, and finds its rules.
func TestComposePrometheus(t *testing.T) {
	project := loadCompose(t)
	s := project.Services["prometheus"]
	file := argument(t, s, "--config.file")
	var config struct {
		Rules  []string `yaml:"rule_files"`
		Scrape []struct {
			Static []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	composeYAML(t, mounted(t, s, file), &config)
	for _, rules := range config.Rules {
		mounted(t, s, path.Join(path.Dir(file), rules))
	}
	var want []string
	for _, c := range copies(t, project) {
		_, port, err := net.SplitHostPort(*c.Environment["ORPHANWATCH_HTTP_ADDR"])
		require.NoError(t, err)
		want = append(want, net.JoinHostPort(c.Name, port))
	}
	require.ElementsMatch(t, want, config.Scrape[0].Static[0].Targets)
}

// TestComposeGrafana: its dashboard lies where it looks, and its sources are services.
func TestComposeGrafana(t *testing.T) {
	project := loadCompose(t)
	s := project.Services["grafana"]
	var dashboards struct {
		Providers []struct {
			Options struct{ Path string }
		}
	}
	composeYAML(t, filepath.Join(mounted(t, s, "/etc/grafana/provisioning/dashboards"), "orphanwatch.yaml"), &dashboards)
	home := *s.Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	require.Equal(t, dashboards.Providers[0].Options.Path, path.Dir(home))
	require.Equal(t, "orphanwatch.json", filepath.Base(mounted(t, s, home)))

	var sources struct{ Datasources []struct{ URL string } }
	composeYAML(t, filepath.Join(mounted(t, s, "/etc/grafana/provisioning/datasources"), "orphanwatch.yaml"), &sources)
	require.NotEmpty(t, sources.Datasources)
	for _, source := range sources.Datasources {
		u, err := url.Parse(source.URL)
		require.NoError(t, err)
		require.Contains(t, project.Services, u.Hostname())
	}
}

// TestComposeTraces: from the daemon to the collector, and from there to Jaeger.
func TestComposeTraces(t *testing.T) {
	project := loadCompose(t)
	s := project.Services["otel-collector"]
	var config struct {
		Receivers map[string]struct {
			Protocols map[string]struct{ Endpoint string }
		}
		Processors map[string]any
		Exporters  map[string]struct{ Endpoint string }
		Service    struct {
			Pipelines map[string]struct{ Receivers, Processors, Exporters []string }
		}
	}
	composeYAML(t, mounted(t, s, argument(t, s, "--config")), &config)
	require.Contains(t, config.Service.Pipelines, "traces")
	for name, p := range config.Service.Pipelines {
		require.NotEmpty(t, p.Receivers, name)
		require.NotEmpty(t, p.Exporters, name)
		for _, r := range p.Receivers {
			require.Contains(t, config.Receivers, r, name)
		}
		for _, r := range p.Processors {
			require.Contains(t, config.Processors, r, name)
		}
		for _, e := range p.Exporters {
			require.Contains(t, config.Exporters, e, name)
			host, _, err := net.SplitHostPort(config.Exporters[e].Endpoint)
			require.NoError(t, err)
			require.Contains(t, project.Services, host, name)
		}
	}
	for _, c := range copies(t, project) {
		require.Equal(t, "http/protobuf", *c.Environment["OTEL_EXPORTER_OTLP_PROTOCOL"])
		u, err := url.Parse(*c.Environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
		require.NoError(t, err)
		require.Equal(t, s.Name, u.Hostname())
		require.Equal(t, "0.0.0.0:"+u.Port(), config.Receivers["otlp"].Protocols["http"].Endpoint)
	}
}

// TestComposeRedisUsers: the daemon has the rights of deploy/redis/users.acl, no others.
func TestComposeRedisUsers(t *testing.T) {
	s := loadCompose(t).Services["redis"]
	at := slices.Index(s.Command, "--aclfile")
	require.Positive(t, at)
	demo, err := os.ReadFile(mounted(t, s, s.Command[at+1]))
	require.NoError(t, err)
	shipped, err := os.ReadFile("../redis/users.acl")
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^user orphanwatch on >\S+ (.*)$`)
	want, got := line.FindStringSubmatch(string(shipped)), line.FindStringSubmatch(string(demo))
	require.NotNil(t, want)
	require.NotNil(t, got)
	require.Equal(t, want[1], got[1])
	require.Contains(t, string(demo), "user default off\n")
	require.Contains(t, s.Command, "KEls$")
}
