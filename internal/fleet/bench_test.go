package fleet

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/client"
)

// comment returns a script of the given size that does nothing. It compresses to a little more than half.
func comment(random *rand.Rand, size int) string {
	script := []byte("#")
	for len(script) < size {
		script = fmt.Appendf(script, "%016x", random.Uint64())
	}
	return string(script[:size])
}

// use is the work that Redis has done, and the memory that it uses.
type use struct {
	microseconds float64            // processor time of its main thread
	in, out      float64            // bytes received and sent
	memory       float64            // bytes in use
	calls        map[string]float64 // of each command
}

func (f *fleetOf) redisUse(t testing.TB) use {
	t.Helper()
	u := use{calls: map[string]float64{}}
	number := func(text string) float64 {
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for line := range strings.Lines(f.store.Info(t.Context(), "cpu", "stats", "memory", "commandstats").Val()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "used_cpu_sys_main_thread", "used_cpu_user_main_thread":
			u.microseconds += number(value) * 1e6
		case "total_net_input_bytes":
			u.in = number(value)
		case "total_net_output_bytes":
			u.out = number(value)
		case "used_memory":
			u.memory = number(value)
		}
		if command, found := strings.CutPrefix(name, "cmdstat_"); found {
			count, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
			u.calls[command] += number(count)
		}
	}
	return u
}

// BenchmarkFleetOnRedis measures the cost of an execution in Redis: from the queue to its result, with an empty step
// and no keys. Commands run by scripts count too. Waiting before and after does not count. docs/sizing.md has the
// figures.
func BenchmarkFleetOnRedis(b *testing.B) {
	const total = 2000
	random := rand.New(rand.NewPCG(1, 2))
	for _, kind := range []struct {
		name     string
		callback bool
		script   int // bytes
		queues   int
	}{
		{"plain", false, 100, 1}, {"callback", true, 100, 1}, {"payload=64kB", false, 64 << 10, 1},
		{"queues=16", false, 100, 16},
	} {
		b.Run(kind.name, func(b *testing.B) {
			f := newFleet(b)
			f.queues = kind.queues
			callback, ended := "", func() int { return f.started() }
			if kind.callback {
				receiver := newReceiver(b, 0)
				f.sender, callback, ended = receiver.sender, receiver.URL, receiver.count
			}
			f.worker(f.server.Addr, 5, fine)
			operator := NewOperator(f.store, queue, kind.queues)
			orchestrator := client.Queue{Redis: f.store, Name: queue, Queues: kind.queues}
			for n := 0; b.Loop(); n++ {
				if err := operator.Drain(b.Context(), func(int) {}); err != nil {
					b.Fatal(err)
				}
				empty := f.redisUse(b)
				for i := range total {
					request := client.Request{
						Runtime: "python-3-13", UserScript: comment(random, kind.script), ExecutionID: fmt.Sprintf("e-%d-%d", n, i),
						BusinessID: fmt.Sprint("b-", i%10), UserID: "u", CallbackURL: callback,
					}
					if _, err := orchestrator.Enqueue(b.Context(), request); err != nil {
						b.Fatal(err)
					}
				}
				before := f.redisUse(b)
				if err := operator.Resume(); err != nil {
					b.Fatal(err)
				}
				f.await("the end of all", func() bool { return ended() == (n+1)*total }) // this sends nothing to Redis
				f.await("empty queues", func() bool {
					found, err := operator.List(b.Context(), false, "", 1)
					return err == nil && found.Waiting+found.Active+found.PutOff == 0
				})
				after := f.redisUse(b)
				all := 0.0
				for name, n := range after.calls {
					after.calls[name] = n - before.calls[name]
					all += after.calls[name]
				}
				scripts := after.calls["evalsha"] + after.calls["eval"]
				for unit, amount := range map[string]float64{
					"redis-µs": after.microseconds - before.microseconds, "scripts": scripts, "commands": all - scripts,
					"in-B": after.in - before.in, "out-B": after.out - before.out,
					"waiting-B": before.memory - empty.memory, "kept-B": after.memory - empty.memory,
				} {
					b.ReportMetric(amount/total, unit+"/execution")
				}
			}
		})
	}
}
