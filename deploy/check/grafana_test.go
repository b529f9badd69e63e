package check_test

import (
	"os"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/stretchr/testify/require"
)

// TestTheDashboard: it has nothing that Grafana's types do not know, and all that they ask
// for, the options of each kind of panel and of query included.
func TestTheDashboard(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	text, err := os.ReadFile("../grafana/orphanwatch.json")
	require.NoError(t, err)
	var d dashboard.Dashboard //nolint:staticcheck // the kind that is provisioned by a file
	for _, err := range []error{d.UnmarshalJSONStrict(text), d.Validate()} {
		if err != nil {
			require.Empty(t, err.Error()) // an empty list of errors is not nil there
		}
	}
	require.Greater(t, len(d.Panels), 20)
}
