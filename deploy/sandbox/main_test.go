package sandbox_test

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

func TestMain(m *testing.M) {
	redis.SetLogger(silence{}) // the tests cut its connections
	goleak.VerifyTestMain(sandbox.Shared(m))
}

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}
