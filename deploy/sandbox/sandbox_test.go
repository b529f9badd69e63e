package sandbox_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

func TestStartTime(t *testing.T) {
	sandbox.New(t) // makes the template, if this machine has none
	begin := time.Now()
	sb := sandbox.New(t)
	took := time.Since(begin)
	t.Logf("PostgreSQL and Redis serve after %v", took.Round(time.Millisecond))
	require.Less(t, took, 5*time.Second, "2 s on an idle machine")
	require.NotNil(t, sb.Postgres)
	_, err := sb.NewDatabase(t.Context())
	require.NoError(t, err)
	begin = time.Now()
	require.NoError(t, sb.Close())
	t.Logf("closed after %v", time.Since(begin).Round(time.Millisecond))
	require.NoDirExists(t, sb.Dir())
}
