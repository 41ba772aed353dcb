package load

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// openRate is how many requests a second an open load sends, without waiting for responses.
const openRate = 10

// BenchmarkServe drives the built binary with 1, 8 and 64 callers that each wait for their response (closed load), and
// at a fixed rate (open load). The steps make no, one or ten API calls; the number of warm interpreters varies. The
// baseline is a plain handler that starts python3 for every request. Ignore ns/op; read the metrics.
func BenchmarkServe(b *testing.B) {
	python := redistest.RequirePython(b, "requests")
	b.Run("python3", func(b *testing.B) {
		baseline := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := exec.CommandContext(r.Context(), python, "-c", "import requests").Run(); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}))
		defer baseline.Close()
		loads(b, baseline.URL, "", "")
	})
	for _, warm := range []int{0, 2, 8} {
		b.Run(fmt.Sprintf("warm=%d", warm), func(b *testing.B) {
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter,
				_ *http.Request) {
				w.WriteHeader(http.StatusNoContent)
			}))
			defer api.Close()
			s := startBenchmarked(b, "--api-root", api.URL+apiRoot, "--python", python, "--queue-timeout", "2m", "--warm",
				strconv.Itoa(warm))
			for _, c := range []struct{ name, source string }{
				{"empty", "pass"},
				{"1call", "kizen.api.get('/x')"},
				{"10calls", "for _ in range(10): kizen.api.get('/x')"},
			} {
				b.Run(c.name, func(b *testing.B) { loads(b, s.URL+"/api/coderunner/run", s.Token, c.source) })
			}
		})
	}
}

// loads measures an address under each kind of load.
func loads(b *testing.B, url, token, source string) {
	for _, callers := range []uint64{1, 8, 64} {
		b.Run(fmt.Sprintf("closed=%d", callers), func(b *testing.B) { attack(b, url, token, source, callers, 0) })
	}
	b.Run(fmt.Sprintf("open=%dpersecond", openRate), func(b *testing.B) { attack(b, url, token, source, 64, openRate) })
}

// attack sends requests for five seconds: at a rate, or as fast as the callers get responses.
func attack(b *testing.B, url, token, source string, callers uint64, rate int) {
	body, err := json.Marshal(map[string]any{"runtime": "python-3-12", "user_script": source})
	if err != nil {
		b.Fatal(err)
	}
	header := http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + token}}
	targets := vegeta.NewStaticTargeter(vegeta.Target{Method: "POST", URL: url, Body: body, Header: header})
	attacker := vegeta.NewAttacker(vegeta.Workers(callers), vegeta.MaxWorkers(callers), vegeta.Timeout(time.Minute))
	for b.Loop() {
		var metrics vegeta.Metrics
		for result := range attacker.Attack(targets, vegeta.Rate{Freq: rate, Per: time.Second}, 5*time.Second, "serve") {
			metrics.Add(result)
		}
		metrics.Close()
		if metrics.Success != 1 {
			b.Fatalf("%v: %v", metrics.StatusCodes, metrics.Errors)
		}
		b.ReportMetric(metrics.Throughput, "executions/s")
		b.ReportMetric(milliseconds(metrics.Latencies.P50), "p50-ms")
		b.ReportMetric(milliseconds(metrics.Latencies.P99), "p99-ms")
	}
}

// BenchmarkServeMemory measures memory while steps use every slot and other callers wait: the sidecar's, the increase
// for each waiting caller, and that of the steps.
func BenchmarkServeMemory(b *testing.B) {
	for _, slots := range []int{4, 16} {
		for _, callers := range []int{64, 512} {
			b.Run(fmt.Sprintf("slots=%d/waiting=%d", slots, callers), func(b *testing.B) {
				for b.Loop() {
					waitingMemory(b, slots, callers)
				}
			})
		}
	}
}

func waitingMemory(b *testing.B, slots, callers int) {
	var calling atomic.Int64
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		calling.Add(1)
		<-r.Context().Done() // until the step ends
	}))
	defer api.Close()
	s := startBenchmarked(b, "--api-root", api.URL+apiRoot, "--slots", strconv.Itoa(slots), "--queue-depth", "1024",
		"--queue-timeout", "5m", "--warm", "0")
	call := func() {
		r, err := http.NewRequest("POST", s.URL+"/api/coderunner/run",
			strings.NewReader(`{"runtime": "python-3-12", "user_script": "kizen.api.get('/x')"}`))
		if err != nil {
			b.Error(err)
			return
		}
		r.Header.Set("Content-Type", "application/json")
		s.Authorize(r)
		response, err := http.DefaultClient.Do(r)
		if err == nil { // otherwise the sidecar has been killed
			_ = response.Body.Close()
		}
	}
	for range slots {
		go call()
	}
	sidecartest.WaitFor(b, func() bool { return calling.Load() == int64(slots) })
	before := sidecartest.AnonymousMiB(b, s.Process.Pid)
	for range callers {
		go call()
	}
	sidecartest.WaitFor(b, func() bool {
		return strings.Contains(s.Metrics(), fmt.Sprintf("\nkizen_execution_queue_length %d\n", callers))
	})
	anonymous := sidecartest.AnonymousMiB(b, s.Process.Pid)
	b.ReportMetric(anonymous, "anonymous-MiB")
	b.ReportMetric((anonymous-before)*1024/float64(callers), "KiB/caller")
	steps := 0.0
	for _, pid := range sidecartest.Descendants(s.Process.Pid) {
		steps += proportionalMiB(pid)
	}
	b.ReportMetric(steps, "steps-MiB")
	_ = s.Process.Kill()
	<-s.Ended
}

// proportionalSize returns the memory of a process, including its share of shared pages.
var proportionalSize = regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB`)

func proportionalMiB(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	found := proportionalSize.FindSubmatch(text)
	if err != nil || found == nil {
		return 0 // it has ended
	}
	kib, _ := strconv.Atoi(string(found[1]))
	return float64(kib) / 1024
}

// startBenchmarked starts a serve that is stopped with the benchmark.
func startBenchmarked(b *testing.B, arguments ...string) *sidecartest.Service {
	b.Helper()
	return sidecartest.StartService(b, nil, append([]string{"serve", "--listen", "127.0.0.1:0", "--log-level", "error"},
		arguments...)...)
}
