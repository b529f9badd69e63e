package wiring_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
	"github.com/orphanwatch/orphanwatch/wiring"
)

// asDaemon makes the test binary the daemon, so that a test can kill it.
const asDaemon = "E2E_AS_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		os.Exit(runDaemon())
	}
	if os.Getenv(asChecker) != "" {
		os.Exit(runChecker(os.Args[1:]))
	}
	goleak.VerifyTestMain(sandbox.Shared(m))
}

func runDaemon() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	config, err := wiring.Load(wiring.LoadOptions{Environ: os.Environ()})
	if err == nil {
		err = wiring.Run(ctx, config, wiring.NewLog(config, os.Stderr), "test")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "orphanwatch:", strings.TrimSpace(err.Error()))
		return 1
	}
	return 0
}
