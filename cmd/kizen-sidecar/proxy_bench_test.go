package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/sidecartest"
)

// BenchmarkProxyCommand drives the built proxy command, whose built-in policies decide every call: once without telemetry,
// once with a span of every call on its way to a collector. Each turn calls the API directly too, and what is reported of
// 1,000 requests a second is the difference. ns/op is of no interest; the metrics are.
func BenchmarkProxyCommand(b *testing.B) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"count": 2, "results": [{"name": "Deals"}, {"name": "Contacts"}]}`) // the caller may have gone
	}))
	defer api.Close()
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a sidecar that was killed sends no end
	}))
	defer collector.Close()
	for _, way := range []struct {
		name        string
		environment []string
	}{
		{"off", nil},
		{"traced", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL}},
	} {
		b.Run(way.name, func(b *testing.B) {
			p := sidecartest.StartProxy(b, way.environment, "--api-root", api.URL+apiRootPath, "--log-level", "error")
			for b.Loop() {
				direct, through := paced(b, api.URL+apiRootPath), paced(b, p.URL)
				b.ReportMetric(milliseconds(direct.Latencies.P50), "direct-p50-ms")
				b.ReportMetric(milliseconds(direct.Latencies.P99), "direct-p99-ms")
				b.ReportMetric(milliseconds(through.Latencies.P50-direct.Latencies.P50), "added-p50-ms")
				b.ReportMetric(milliseconds(through.Latencies.P99-direct.Latencies.P99), "added-p99-ms")
				b.ReportMetric(residentMiB(b, p.Process.Pid), "resident-MiB")
				before := processorTime(b, p.Process.Pid)
				flooded := load(b, p.URL, vegeta.Rate{}, 8)
				b.ReportMetric(float64(flooded.Requests)/(processorTime(b, p.Process.Pid)-before).Seconds(), "req/core-s")
				b.ReportMetric(flooded.Rate, "req/s")
				b.ReportMetric(0, "ns/op")
			}
			if code := p.Stop(b, syscall.SIGTERM); code != exitOK {
				b.Errorf("exit code %d\n%s", code, p.Log)
			}
		})
	}
}

// paced sends 1,000 requests a second, whatever becomes of those before.
func paced(b *testing.B, base string) vegeta.Metrics {
	b.Helper()
	return load(b, base, vegeta.Rate{Freq: 1000, Per: time.Second}, 64)
}

// load sends requests for five seconds: at a rate, or as fast as callers get their answers.
func load(b *testing.B, base string, rate vegeta.Rate, callers uint64) (metrics vegeta.Metrics) {
	b.Helper()
	targets := vegeta.NewStaticTargeter(vegeta.Target{Method: http.MethodGet, URL: base + "/custom-objects?page=2"})
	attacker := vegeta.NewAttacker(vegeta.Workers(callers), vegeta.MaxWorkers(callers), vegeta.Timeout(time.Minute))
	for result := range attacker.Attack(targets, rate, 5*time.Second, "proxy") {
		metrics.Add(result)
	}
	metrics.Close()
	if metrics.Success != 1 {
		b.Fatalf("%v: %v", metrics.StatusCodes, metrics.Errors)
	}
	return metrics
}

// processorTime is what a process has used of the processors, in the kernel's ticks of 10 ms (proc(5), stat).
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name before it may have blanks
	fields := strings.Fields(rest)
	ticks := 0
	for _, field := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
