package main

import "syscall"

// apart keeps Ctrl-C from the child, which we stop ourselves, and ends it with us
// whatever ends us.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
