package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// templateFormat changes whenever templates of older versions of this package must
// not be used any more.
const templateFormat = 1

// installation is PostgreSQL's programs and the user to run them as.
type installation struct {
	bin        string
	credential *syscall.Credential // nil: as ourselves
}

// findPostgres looks at ORPHANWATCH_PG_BIN, then for the newest of Debian's
// directories, then on the PATH.
func findPostgres() (installation, error) {
	credential, err := unprivileged()
	if err != nil {
		return installation{}, err
	}
	if bin := os.Getenv("ORPHANWATCH_PG_BIN"); bin != "" {
		if !holdsPostgres(bin) {
			return installation{}, fmt.Errorf("find PostgreSQL: no postgres and initdb in ORPHANWATCH_PG_BIN=%s (unset it, or name the directory that has both)", bin)
		}
		return installation{bin, credential}, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is right
	sort.Slice(found, func(i, j int) bool { return major(found[i]) > major(found[j]) })
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			found = append(found, filepath.Dir(path))
		}
	}
	for _, bin := range found {
		if holdsPostgres(bin) {
			return installation{bin, credential}, nil
		}
	}
	return installation{}, errors.New("find PostgreSQL: no postgres and initdb in /usr/lib/postgresql/*/bin or on the PATH (run deploy/install-deps.sh, or set ORPHANWATCH_PG_BIN)")
}

func holdsPostgres(bin string) bool {
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := exec.LookPath(filepath.Join(bin, name)); err != nil {
			return false
		}
	}
	return true
}

func major(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

// unprivileged is the user for PostgreSQL, which refuses to run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("find PostgreSQL: it refuses to run as root, and there is neither a user postgres nor nobody (run deploy/install-deps.sh)")
}

// give hands a file or directory to PostgreSQL's user.
func (in installation) give(path string) error {
	if in.credential == nil {
		return nil
	}
	return os.Chown(path, int(in.credential.Uid), int(in.credential.Gid))
}

// createCluster fills data from the cached template: initdb takes a second, a copy a
// tenth of that.
func (in installation) createCluster(ctx context.Context, sb *Sandbox, data string) error {
	template, err := in.template(ctx, sb, data)
	if err != nil {
		return err
	}
	if template == "" {
		return nil // initdb has made data itself
	}
	return copyTree(ctx, template, data)
}

// template returns the cached cluster, made under a lock if need be. Where the cache
// cannot be used, it makes the cluster in data and returns "".
func (in installation) template(ctx context.Context, sb *Sandbox, data string) (string, error) {
	version, err := exec.CommandContext(ctx, filepath.Join(in.bin, "postgres"), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", in.bin, err)
	}
	words := strings.Fields(string(version))
	if len(words) < 3 {
		return "", fmt.Errorf("ask %s for its version: it answered %q", in.bin, version)
	}
	uid := os.Getuid()
	if in.credential != nil {
		uid = int(in.credential.Uid)
	}
	name := fmt.Sprintf("postgres-%s-format%d-uid%d", words[2], templateFormat, uid)

	base, err := os.UserCacheDir()
	if err == nil {
		base = filepath.Join(base, "orphanwatch-sandbox")
		err = os.MkdirAll(base, 0o700)
	}
	if err != nil {
		return "", in.initdb(ctx, sb, data)
	}
	template := filepath.Join(base, name)
	if _, err := os.Stat(template); err == nil {
		return template, nil
	}
	lock, err := os.OpenFile(template+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", in.initdb(ctx, sb, data)
	}
	defer shut(lock) // unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", in.initdb(ctx, sb, data)
	}
	if _, err := os.Stat(template); err == nil {
		return template, nil // somebody else has made it meanwhile
	}
	if err := in.initdb(ctx, sb, data); err != nil {
		return "", err
	}
	// Under another name first: a template is there completely or not at all. An error
	// costs the next start a second and nothing else, for data is complete.
	fresh := template + ".new"
	err = os.RemoveAll(fresh)
	if err == nil {
		err = copyTree(ctx, data, fresh)
	}
	if err == nil {
		_ = os.Rename(fresh, template)
	}
	return "", nil
}

// initdb runs as a program of the sandbox, so that it too ends with us.
func (in installation) initdb(ctx context.Context, sb *Sandbox, data string) error {
	dir := filepath.Dir(data)
	proc, err := sb.spawn(program{
		name: "initdb", dir: dir, env: environment(), log: filepath.Join(dir, "initdb.log"),
		credential: in.credential,
		argv: []string{
			filepath.Join(in.bin, "initdb"), "-D", data, "-U", superuser, "-A", "trust",
			"-E", "UTF8", "--locale=C", "--no-sync",
		},
	})
	if err != nil {
		return err
	}
	select {
	case <-proc.done:
	case <-ctx.Done():
		return fmt.Errorf("initdb: %w", errors.Join(context.Cause(ctx), proc.kill(context.WithoutCancel(ctx))))
	}
	if proc.err != nil {
		return fmt.Errorf("initdb: %w\n%s", proc.err, proc.tail())
	}
	return nil
}

// copyTree copies with owners and modes; a file system with reflinks shares the blocks.
func copyTree(ctx context.Context, from, to string) error {
	out, err := exec.CommandContext(ctx, "cp", "-a", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy cluster: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
