package redisconn_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain looks for goroutines that outlive their test. The one it lets be is go-redis's: a pool whose dials keep
// failing has it dial once a second, and notices only then that the client was closed.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}
