//go:build !unix

package wiring

import "os"

func likeBefore(*os.File, string) error { return nil }
