package daemon

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/kizen/kizen-sidecar/internal/cgroups"
)

// MemoryShares bounds the memory of a daemon that callers and steps can fill, in bytes. Zero means the default.
type MemoryShares struct {
	Kept, Waiting, Arriving, Callbacks int64
}

// LimitMemory limits this process to half of the memory of its control group, because the steps need the other half,
// and returns how much of it callers and steps may fill. If the group has no limit, every share is zero.
func LimitMemory() MemoryShares {
	own, err := cgroups.Find()
	if err != nil {
		return MemoryShares{}
	}
	limit := own.MemoryLimit()
	if limit == 0 {
		return MemoryShares{}
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit / 2)
	}
	return sharesOf(limit)
}

func sharesOf(limit int64) MemoryShares {
	const most = 64 << 20
	return MemoryShares{
		Kept: min(limit/8, most), Waiting: min(limit/16, most), Arriving: min(limit/16, most), Callbacks: min(limit/16, most),
	}
}

// returnMemory returns unused memory to the system until ctx ends. Otherwise an idle process collects its garbage only
// every two minutes.
func returnMemory(ctx context.Context) {
	const (
		interval = 10 * time.Second
		growth   = 16 << 20 // in bytes, since memory was last returned
	)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	least := mapped()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if now := mapped(); now > least+growth {
			debug.FreeOSMemory()
			least = mapped()
		} else {
			least = min(least, now)
		}
	}
}

// mapped returns how much memory of the system this process uses for its heap and its stacks, in bytes.
func mapped() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}
