package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// RunScript runs a file in the database of a URL by psql, as superuser; variables are
// name=value. It stops at the first error.
func (pg *Postgres) RunScript(ctx context.Context, dsn, path string, variables ...string) error {
	database, err := databaseOf(dsn)
	if err != nil {
		return err
	}
	psql, err := pg.psql()
	if err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	args := []string{"-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", pg.SocketDSN(database), "-f", path}
	for _, v := range variables {
		args = append(args, "-v", v)
	}
	cmd := exec.CommandContext(ctx, psql, args...)
	cmd.Env = environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// psql stands beside the server; builds without clients take that of the PATH.
func (pg *Postgres) psql() (string, error) {
	beside := filepath.Join(filepath.Dir(pg.program.argv[0]), "psql")
	if info, err := os.Stat(beside); err == nil && !info.IsDir() {
		return beside, nil
	}
	path, err := exec.LookPath("psql")
	if err != nil {
		return "", errors.New("psql is neither beside the server nor on the PATH (run deploy/install-deps.sh)")
	}
	return path, nil
}

// As is the URL with another user.
func As(rawURL, user, password string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return rawURL // what uses it says why
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}
