//go:build !linux

package main

import "syscall"

// apart keeps Ctrl-C from the child, which we stop ourselves.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
