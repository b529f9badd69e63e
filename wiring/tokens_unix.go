//go:build unix

package wiring

import (
	"fmt"
	"os"
	"syscall"
)

// likeBefore gives the new file owner and mode of the one that it replaces: the daemon,
// which is another user, must be able to read it.
func likeBefore(f *os.File, file string) error {
	info, err := os.Stat(file)
	if err == nil {
		err = f.Chmod(info.Mode().Perm())
	}
	if err != nil {
		return fmt.Errorf("tokens file: %w", err)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && (int(s.Uid) != os.Geteuid() || int(s.Gid) != os.Getegid()) {
		if err := f.Chown(int(s.Uid), int(s.Gid)); err != nil {
			return fmt.Errorf("tokens file: keep its owner: %w", err)
		}
	}
	return nil
}
