package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
)

// Promtool is the path of promtool: of bin/tools, where deploy/install-promtool.sh puts
// it, else of the PATH. The test fails where there is none.
func Promtool(tb TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatalf("find promtool: %v", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		path := filepath.Join(dir, "bin", "tools", "promtool")
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
		if dir == filepath.Dir(dir) {
			break
		}
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
	}
	path, err := exec.LookPath("promtool")
	if err != nil {
		tb.Fatalf("find promtool: neither in bin/tools nor on the PATH (run deploy/install-promtool.sh): %v", err)
	}
	return path
}
