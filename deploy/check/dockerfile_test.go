package check_test

import (
	"bufio"
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/stretchr/testify/require"
)

const root = "../.."

// orphanwatch is the daemon, as a user builds it.
func orphanwatch(t *testing.T) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), "orphanwatch")
	cmd := exec.Command("go", "build", "-o", binary, "./cmd/orphanwatch")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return binary
}

func stages(t *testing.T, file string) []instructions.Stage {
	t.Helper()
	f, err := os.Open(filepath.Join(root, file))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	ast, err := parser.Parse(f)
	require.NoError(t, err)
	all, _, err := instructions.Parse(ast.AST, nil)
	require.NoError(t, err)
	return all
}

// last is a stage's last instruction of a kind.
func last[T instructions.Command](t *testing.T, s instructions.Stage) T {
	t.Helper()
	for _, c := range slices.Backward(s.Commands) {
		if c, ok := c.(T); ok {
			return c
		}
	}
	var none T
	require.Failf(t, "there is no such instruction", "%T", none)
	return none
}

// buildContext is a directory with what .dockerignore lets in.
func buildContext(t *testing.T) string {
	t.Helper()
	f, err := os.Open(filepath.Join(root, ".dockerignore"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	patterns, err := ignorefile.ReadAll(f)
	require.NoError(t, err)
	ignored, err := patternmatcher.New(patterns)
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, fs.WalkDir(os.DirFS(root), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			if entry != nil && entry.Name() == ".git" {
				return fs.SkipDir
			}
			return err
		}
		skip, err := ignored.MatchesOrParentMatches(path)
		if err != nil || skip {
			return err
		}
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, path), text, 0o644)
	}))
	return dir
}

// TestDockerfiles: what must be true of both images.
func TestDockerfiles(t *testing.T) {
	context := buildContext(t)
	for _, file := range []string{"deploy/Dockerfile", "deploy/example/Dockerfile"} {
		all := stages(t, file)
		for _, s := range all {
			require.Regexp(t, `:(\d+\.\d+\S*|nonroot)$`, s.BaseName, file)
			for _, c := range s.Commands {
				copied, ok := c.(*instructions.CopyCommand)
				if !ok || copied.From != "" {
					continue
				}
				for _, source := range copied.SourcePaths {
					_, err := os.Stat(filepath.Join(context, source))
					require.NoError(t, err, "%s copies it from the context", file)
				}
			}
		}
		require.Regexp(t, `^[1-9]\d*:[1-9]\d*$`, last[*instructions.UserCommand](t, all[len(all)-1]).User, file)
	}
}

// TestTheImage: the build of deploy/Dockerfile succeeds on what is in its context, and
// gives a static program of the version that was asked for.
func TestTheImage(t *testing.T) {
	all := stages(t, "deploy/Dockerfile")
	require.Len(t, all, 2)
	compiler, image := all[0], all[1]

	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	require.NoError(t, err)
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(mod)
	require.Equal(t, "golang:"+string(version[1]), compiler.BaseName, "the Go of go.mod, with its newest fixes")

	run := last[*instructions.RunCommand](t, compiler)
	require.Len(t, run.CmdLine, 1)
	cmd := exec.Command("sh", "-eu", "-c", run.CmdLine[0])
	cmd.Dir = buildContext(t)
	cmd.Env = append(os.Environ(), "VERSION=v1.2.3-check", "TARGETOS=linux", "TARGETARCH="+runtime.GOARCH, "GOFLAGS=-mod=readonly", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))

	copied := last[*instructions.CopyCommand](t, image)
	require.Equal(t, compiler.Name, copied.From)
	binary := filepath.Join(cmd.Dir, strings.TrimPrefix(copied.SourcePaths[0], "/src/"))
	program, err := elf.Open(binary)
	require.NoError(t, err)
	defer func() { _ = program.Close() }()
	for _, p := range program.Progs {
		require.NotEqual(t, elf.PT_INTERP, p.Type, "it needs a dynamic linker, which the image lacks")
	}
	out, err = exec.Command(binary, "version").CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "v1.2.3-check")

	// There is no shell in the image: all three are lists.
	entrypoint := last[*instructions.EntrypointCommand](t, image)
	health := last[*instructions.HealthCheckCommand](t, image).Health.Test
	command := last[*instructions.CmdCommand](t, image)
	require.False(t, entrypoint.PrependShell)
	require.False(t, command.PrependShell)
	require.Equal(t, []string{copied.DestPath}, entrypoint.CmdLine)
	require.Equal(t, []string{"CMD", copied.DestPath}, health[:2])
	require.Equal(t, []string{"8000"}, last[*instructions.ExposeCommand](t, image).Ports)
	require.Equal(t, []string{"run"}, command.CmdLine)
	require.Equal(t, []string{"health"}, health[2:])
	for _, name := range []string{"run", "health"} {
		out, err := exec.Command(binary, name, "--help").CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "orphanwatch "+name+" [flags]", "the program has such a command")
	}
}

// TestExampleRequirements: every package of the example has one version.
func TestExampleRequirements(t *testing.T) {
	f, err := os.Open("../example/requirements.txt")
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	n := 0
	for ; lines.Scan(); n++ {
		require.Regexp(t, `^[a-z0-9-]+==\d+\.\d+\.\d+$`, lines.Text())
	}
	require.NoError(t, lines.Err())
	require.Positive(t, n)
}
