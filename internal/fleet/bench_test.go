package fleet

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/client"
)

// redisUse returns the processor time that Redis has used, in microseconds, and the calls of each command.
func (f *fleetOf) redisUse(t testing.TB) (microseconds float64, calls map[string]float64) {
	t.Helper()
	calls = map[string]float64{}
	for line := range strings.Lines(f.store.Info(t.Context(), "cpu", "commandstats").Val()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch {
		case name == "used_cpu_sys_main_thread" || name == "used_cpu_user_main_thread":
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			microseconds += seconds * 1e6
		case strings.HasPrefix(name, "cmdstat_"):
			count, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
			n, err := strconv.ParseFloat(count, 64)
			if err != nil {
				t.Fatal(err)
			}
			calls[strings.TrimPrefix(name, "cmdstat_")] += n
		}
	}
	return microseconds, calls
}

// BenchmarkFleetOnRedis measures the cost of an execution in Redis: from the queue to its result, with an empty step
// and no keys. Commands run by scripts count too. Waiting before and after does not count.
func BenchmarkFleetOnRedis(b *testing.B) {
	const total = 2000
	for _, kind := range []struct {
		name     string
		callback bool
		script   int // bytes
	}{{"plain", false, 100}, {"callback", true, 100}, {"payload=64kB", false, 64 << 10}} {
		b.Run(kind.name, func(b *testing.B) {
			f := newFleet(b)
			callback, told := "", func() int { return f.started() }
			if kind.callback {
				receiver := newReceiver(b, 0)
				f.sender, callback, told = receiver.sender, receiver.URL, receiver.count
			}
			f.worker(f.server.Addr, 5, fine)
			for n := 0; b.Loop(); n++ {
				orchestrator := client.Queue{Redis: f.store, Name: queue}
				if err := NewOperator(f.store, queue).Drain(b.Context(), func(int) {}); err != nil {
					b.Fatal(err)
				}
				for i := range total {
					request := client.Request{
						Runtime: "python-3-13", UserScript: strings.Repeat("#", kind.script), ExecutionID: fmt.Sprintf("e-%d-%d", n, i),
						BusinessID: fmt.Sprint("b-", i%10), UserID: "u", CallbackURL: callback,
					}
					if _, err := orchestrator.Enqueue(b.Context(), request); err != nil {
						b.Fatal(err)
					}
				}
				before, callsBefore := f.redisUse(b)
				if err := NewOperator(f.store, queue).Resume(); err != nil {
					b.Fatal(err)
				}
				f.await("the end of all", func() bool { return told() == (n+1)*total }) // this sends nothing to Redis
				f.await("an empty queue", f.idle)
				used, calls := f.redisUse(b)
				all := 0.0
				for name, n := range calls {
					calls[name] = n - callsBefore[name]
					all += calls[name]
				}
				scripts := calls["evalsha"] + calls["eval"]
				b.ReportMetric((used-before)/total, "redis-µs/execution")
				b.ReportMetric(scripts/total, "scripts/execution")
				b.ReportMetric((all-scripts)/total, "commands/execution")
			}
		})
	}
}
