package load

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

func TestMain(m *testing.M) { os.Exit(sidecartest.Main(m, "kizen-sidecar")) }

// apiRoot is the path of the API root.
const apiRoot = "/api"

// BenchmarkProxyCommand drives the built proxy command, whose built-in policies decide about every call: once without
// telemetry, and once with a span of every call sent to a collector. It also drives nginx, which only adds the same
// three headers. Each turn calls the API directly too, and the result for 1,000 requests a second is the difference.
// Ignore ns/op; read the metrics.
func BenchmarkProxyCommand(b *testing.B) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// Best effort: the caller may have disconnected.
		_, _ = io.WriteString(w, `{"count": 2, "results": [{"name": "Deals"}, {"name": "Contacts"}]}`)
	}))
	defer api.Close()
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a killed sidecar does not finish the body
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
			p := sidecartest.StartProxy(b, way.environment, "--api-root", api.URL+apiRoot, "--log-level", "error")
			driveProxy(b, api.URL+apiRoot, p.URL, p.Process.Pid)
			if code := p.Stop(b, syscall.SIGTERM); code != 0 {
				b.Errorf("exit code %d\n%s", code, p.Log)
			}
		})
	}
	b.Run("nginx", func(b *testing.B) {
		base, worker := startNginx(b, api.Listener.Addr().String())
		driveProxy(b, api.URL+apiRoot, base+apiRoot, worker)
	})
}

// driveProxy measures calls through a process against direct ones.
func driveProxy(b *testing.B, api, base string, pid int) {
	for b.Loop() {
		direct, through := paced(b, api), paced(b, base)
		b.ReportMetric(milliseconds(direct.Latencies.P50), "direct-p50-ms")
		b.ReportMetric(milliseconds(direct.Latencies.P99), "direct-p99-ms")
		b.ReportMetric(milliseconds(through.Latencies.P50-direct.Latencies.P50), "added-p50-ms")
		b.ReportMetric(milliseconds(through.Latencies.P99-direct.Latencies.P99), "added-p99-ms")
		b.ReportMetric(sidecartest.AnonymousMiB(b, pid), "anonymous-MiB")
		before := sidecartest.ProcessorTime(b, pid)
		flooded := load(b, base, vegeta.Rate{}, 8)
		b.ReportMetric(float64(flooded.Requests)/(sidecartest.ProcessorTime(b, pid)-before).Seconds(), "req/core-s")
		b.ReportMetric(flooded.Rate, "req/s")
		b.ReportMetric(0, "ns/op")
	}
}

// startNginx starts nginx with one worker in front of an API.
func startNginx(b *testing.B, api string) (base string, worker int) {
	b.Helper()
	listen, dir := fmt.Sprintf("127.0.0.1:%d", redistest.FreePort(b)), b.TempDir()
	// The worker of nginx runs as another user.
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o777)); err != nil {
		b.Fatal(err)
	}
	nginx := redistest.StartNginx(b, dir, strings.NewReplacer("DIR", dir, "API", api, "LISTEN",
		listen).Replace(nginxConfig))
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", nginx.Pid))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := fmt.Sscan(string(children), &worker); err != nil {
		b.Fatal(err)
	}
	return "http://" + listen, worker
}

const nginxConfig = `
daemon off;
pid DIR/pid;
error_log stderr notice;
worker_processes 1;
events {}
http {
	access_log off;
	client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
	keepalive_requests 100000000;
	upstream api { server API; keepalive 64; keepalive_requests 100000000; }
	server {
		listen LISTEN;
		location / {
			proxy_pass http://api;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header X-API-KEY "canary";
			proxy_set_header X-BUSINESS-ID "b-1";
			proxy_set_header X-USER-ID "u-1";
		}
	}
}
`

// paced sends 1,000 requests a second without waiting for responses.
func paced(b *testing.B, base string) vegeta.Metrics {
	b.Helper()
	return load(b, base, vegeta.Rate{Freq: 1000, Per: time.Second}, 64)
}

// load sends requests for five seconds: at a rate, or as fast as the callers get responses.
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

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
