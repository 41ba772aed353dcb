package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/sidecartest"
)

// BenchmarkServe drives the built binary with 1, 8 and 64 callers that each
// wait for their answer (closed load), and at a fixed rate (open load): steps
// without, with one and with ten API calls. Its baseline starts python3 for
// every request from a plain handler. ns/op is of no interest; the metrics are.
func BenchmarkServe(b *testing.B) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	defer api.Close()
	python := pythonWithRequests(b)
	baseline := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := exec.CommandContext(r.Context(), python, "-c", "import requests").Run(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	defer baseline.Close()
	url := startBenchmarked(b, "--api-root", api.URL+"/api", "--python", python, "--queue-timeout", "2m").URL
	for _, c := range []struct {
		name, url, source string
	}{
		{"python3", baseline.URL, ""},
		{"empty", url + "/api/coderunner/run", "pass"},
		{"1call", url + "/api/coderunner/run", "kizen.api.get('/x')"},
		{"10calls", url + "/api/coderunner/run", "for _ in range(10): kizen.api.get('/x')"},
	} {
		for _, callers := range []uint64{1, 8, 64} {
			b.Run(fmt.Sprintf("closed/%s/%d", c.name, callers), func(b *testing.B) { attack(b, c.url, c.source, callers, 0) })
		}
		b.Run("open/"+c.name+"/2persecond", func(b *testing.B) { attack(b, c.url, c.source, 64, 2) })
	}
}

// attack sends requests for five seconds: at a rate, or as fast as callers get
// their answers.
func attack(b *testing.B, url, source string, callers uint64, rate int) {
	body, err := json.Marshal(script(source))
	if err != nil {
		b.Fatal(err)
	}
	targets := vegeta.NewStaticTargeter(vegeta.Target{Method: "POST", URL: url, Body: body})
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

// BenchmarkServeMemory reads the resident memory while callers wait for slots
// that are all taken.
func BenchmarkServeMemory(b *testing.B) {
	for _, callers := range []int{64, 512} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			for b.Loop() {
				server := startBenchmarked(b, "--slots", "2", "--queue-depth", "1024")
				post := func(id int) {
					text, _ := json.Marshal(script("import time\ntime.sleep(20)").with("execution_id", fmt.Sprintf("e-%d", id)))
					response, err := http.Post(server.URL+"/executions", "application/json", strings.NewReader(string(text)))
					if err != nil || response.StatusCode != http.StatusAccepted {
						b.Fatalf("%v, %v", response, err)
					}
					_ = response.Body.Close()
				}
				for i := range callers + 2 {
					post(i)
				}
				b.ReportMetric(residentMiB(b, server.Process.Pid), "resident-MiB")
				_ = server.Process.Kill()
				<-server.Ended
			}
		})
	}
}

func startBenchmarked(b *testing.B, arguments ...string) *sidecartest.Service {
	b.Helper()
	return sidecartest.StartService(b, nil, append([]string{"serve", "--listen", "127.0.0.1:0"}, arguments...)...)
}
