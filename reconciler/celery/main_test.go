package celery_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/orphanwatch/orphanwatch/deploy/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(sandbox.Shared(m)) }
