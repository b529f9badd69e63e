package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const unitFile = "systemd/orphanwatch.service"

func systemdAnalyze(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	require.NoError(t, err, "systemd-analyze %s (where it is missing: deploy/install-deps.sh)\n%s", strings.Join(args, " "), out)
	return string(out)
}

// The unit has no mistake that systemd would complain of, and an exposure below 2.0.
func TestTheUnit(t *testing.T) {
	text, err := os.ReadFile(unitFile)
	require.NoError(t, err)
	self, err := os.Executable() // ExecStart must exist
	require.NoError(t, err)
	start := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/orphanwatch run$`)
	require.True(t, start.Match(text))
	unit := filepath.Join(t.TempDir(), "orphanwatch.service")
	require.NoError(t, os.WriteFile(unit, start.ReplaceAllLiteral(text, []byte("ExecStart="+self+" run")), 0o600))
	for line := range strings.Lines(systemdAnalyze(t, "verify", "--recursive-errors=no", "--man=no", unit)) {
		assert.NotContains(t, line, "orphanwatch", "unknown keys and values are only warned of")
	}

	report := systemdAnalyze(t, "security", "--offline=true", "--threshold=20", "--no-pager", unitFile)
	figure := regexp.MustCompile(`Overall exposure level for \S+: (\S+)`).FindStringSubmatch(report)
	require.NotNil(t, figure, report)
	t.Logf("systemd-analyze security: exposure %s", figure[1])
}
