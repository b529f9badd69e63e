// Command orphanwatch removes from Redis what Celery left there of deleted rows.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is what the binary was built from, set by -ldflags.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.Environ())
	stop()
	os.Exit(code)
}
