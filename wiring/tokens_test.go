package wiring

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/orphanwatch/orphanwatch/reconciler/httpapi"
)

func TestTokensOfMany(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, _, err := CreateToken(t.Context(), file, fmt.Sprintf("ci%d", i), []string{"read", "purge"}, time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	tokens, err := ListTokens(file)
	require.NoError(t, err)
	require.Len(t, tokens, n, "none overwrote another")
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	left, err := filepath.Glob(filepath.Dir(file) + "/*")
	require.NoError(t, err)
	require.Equal(t, []string{file}, left)
}

func TestRevokeKeepsTheRest(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "tokens"), filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(file, []byte("# ours"), 0o640))
	require.NoError(t, os.Symlink("tokens", link))
	a, text, err := CreateToken(t.Context(), link, "ci", []string{"read"}, 0)
	require.NoError(t, err)
	b, _, err := CreateToken(t.Context(), link, "ci", []string{"read", "admin"}, 0)
	require.NoError(t, err)
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(content), "# ours\nid="+a.ID), string(content))
	require.NotContains(t, string(content), text)
	require.NotContains(t, string(content), strings.Split(text, "_")[2])

	_, err = RevokeToken(t.Context(), link, "ci")
	require.ErrorContains(t, err, a.ID+", "+b.ID)
	_, err = RevokeToken(t.Context(), link, "nobody")
	require.ErrorIs(t, err, ErrNoToken)
	gone, err := RevokeToken(t.Context(), link, a.ID)
	require.NoError(t, err)
	require.Equal(t, a, gone)
	gone, err = RevokeToken(t.Context(), link, "ci")
	require.NoError(t, err)
	require.Equal(t, b, gone)
	content, err = os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "# ours\n", string(content))
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode(), "the daemon's group may read it still")
}

func TestTokensFileThatIsNotGood(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	require.NoError(t, os.WriteFile(file, []byte("id=x\n"), 0o600))
	_, _, err := CreateToken(t.Context(), file, "ci", []string{"read"}, 0)
	require.ErrorContains(t, err, "line 1")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Chmod(file, 0o622))
	_, _, err = CreateToken(t.Context(), file, "ci", []string{"read"}, 0)
	require.ErrorContains(t, err, "chmod 600")
	var bad *TokenInputError
	_, _, err = CreateToken(t.Context(), file, "ci", []string{"reed"}, 0)
	require.ErrorAs(t, err, &bad)
	_, _, err = CreateToken(t.Context(), file, "c i", []string{"read"}, 0)
	require.ErrorAs(t, err, &bad)

	// What another left, or is at work with, is waited for, and not for ever.
	require.NoError(t, os.WriteFile(file+".new", nil, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 2*editWait)
	defer cancel()
	_, err = RevokeToken(ctx, file, "ci")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.FileExists(t, file+".new", "it is the other's")
}

// A scope of the configuration is one of the API.
func TestJWTScopesAreScopes(t *testing.T) {
	_, err := loadText("http: {jwt_scopes: [read, everything]}", database)
	require.ErrorContains(t, err, "c.yaml:http.jwt_scopes: is not a list of scopes")
	for _, s := range httpapi.Scopes {
		_, err := loadText("http: {jwt_scopes: ["+string(s)+"]}", database)
		require.NoError(t, err)
	}
}
