package observed

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// silentCollector accepts connections and never answers; the channel is closed when the first data arrives.
func silentCollector(t *testing.T) (address string, arrived <-chan struct{}) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	first, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var open []net.Conn
		for {
			conn, err := listener.Accept()
			if err != nil {
				break
			}
			if open = append(open, conn); len(open) == 1 {
				_, _ = io.ReadFull(conn, make([]byte, 1)) // only the arrival of a first byte matters
				close(first)
			}
		}
		for _, conn := range open {
			_ = conn.Close() // nothing reads the rest
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return listener.Addr().String(), first
}

// TestServeDoesNotWaitForABrokenCollector: with a collector that is down, slow or erroring, executions succeed, and
// serve's metrics count the spans that its bounded queue dropped.
func TestServeDoesNotWaitForABrokenCollector(t *testing.T) {
	silent, arrived := silentCollector(t)
	erroring := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter,
		_ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer erroring.Close()
	for name, address := range map[string]string{
		"down": sidecartest.FreeAddress(t), "slow": silent, "erroring": strings.TrimPrefix(erroring.URL, "http://"),
	} {
		t.Run(name, func(t *testing.T) {
			upstream := startAPI(t)
			s := serve(t, []string{
				"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + address, "OTEL_BSP_MAX_QUEUE_SIZE=16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=8",
				"OTEL_BSP_SCHEDULE_DELAY=20",
			}, "--api-root", upstream.URL+"/api")
			body := script(`for _ in range(20): kizen.api.get("/custom-objects")`)
			if status, answer := s.run("", body); status != http.StatusOK {
				t.Fatalf("%d: %s", status, answer)
			}
			if name == "slow" {
				<-arrived // from now on an export is under way that never ends
			}
			for range 4 {
				if status, answer := s.run("", body); status != http.StatusOK {
					t.Fatalf("%d: %s", status, answer)
				}
			}
			lost := 0.0
			for _, line := range regexp.MustCompile(`(?m)^otel_sdk_(?:processor_span_processed|exporter_span_exported)_total\{(.*)\} (\S+)$`).FindAllStringSubmatch(s.Metrics(), -1) {
				count, err := strconv.ParseFloat(line[2], 64)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(line[1], "error_type=") {
					lost += count
				} else if strings.Contains(line[0], "exported") && count != 0 {
					t.Errorf("%v spans are counted as exported", count)
				}
			}
			// Five executions have 27 spans each; the queue and one batch may hold 24.
			if lost < 5*27-16-8 {
				t.Errorf("%v spans were dropped; the others wait in a queue that is too long", lost)
			}
			s.stop()
		})
	}
}

// brokenCollectors returns addresses that accept no data, by reason.
func brokenCollectors(t *testing.T) map[string]string {
	t.Helper()
	silent, _ := silentCollector(t)
	erroring := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter,
		_ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
	}))
	t.Cleanup(erroring.Close)
	return map[string]string{"down": sidecartest.FreeAddress(t), "slow": silent,
		"erroring": strings.TrimPrefix(erroring.URL, "http://")}
}

// TestABrokenCollectorDoesNotAffectARun: run prints its result and exits with 0 over both protocols, though a process
// that ends soon has to give up its last export.
func TestABrokenCollectorDoesNotAffectARun(t *testing.T) {
	for name, address := range brokenCollectors(t) {
		for _, protocol := range []string{"grpc", "http/protobuf"} {
			ran := sidecartest.Command(t.Context(), []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + address,
				"OTEL_EXPORTER_OTLP_PROTOCOL=" + protocol},
				"run", "--script", "-", "--json", "--declare-output", "n:number")
			ran.Stdin = strings.NewReader("outputs.n = 42")
			if out, err := ran.Output(); err != nil || !strings.Contains(string(out), `"v": "42"`) {
				t.Errorf("%s, %s: %v: %s", name, protocol, err, out)
			}
		}
	}
}

// TestTortureBrokenCollectorCostsAProxyNoMemory: thousands of calls with a broken collector do not make the memory of
// the proxy's process grow.
func TestTortureBrokenCollectorCostsAProxyNoMemory(t *testing.T) {
	const calls, limit = 8_000, 8.0 // in MiB; an unbounded queue would take more than twice as much
	long := "/" + strings.Repeat("x", 1000)
	for name, address := range brokenCollectors(t) {
		t.Run(name, func(t *testing.T) {
			p := sidecartest.StartProxy(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + address,
				"OTEL_BSP_MAX_QUEUE_SIZE=256", "GOGC=20"},
				"--api-root", startForgetfulAPI(t)+"/api", "--log-level", "error")
			flood(t, p.URL+long, calls/4)
			before := sidecartest.AnonymousMiB(t, p.Process.Pid)
			flood(t, p.URL+long, calls)
			if grown := sidecartest.AnonymousMiB(t, p.Process.Pid) - before; grown > limit {
				t.Errorf("the memory grew by %.1f MiB over %d calls", grown, calls)
			}
			if code := p.Stop(t, syscall.SIGTERM); code != 0 {
				t.Errorf("it ended with %d\n%s", code, p.Log)
			}
		})
	}
}

// flood requests a URL repeatedly, on eight connections at once.
func flood(t *testing.T, address string, calls int) {
	t.Helper()
	const atOnce = 8
	transport := &http.Transport{MaxIdleConnsPerHost: atOnce}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var callers sync.WaitGroup
	for range atOnce {
		callers.Go(func() {
			for range calls / atOnce {
				response, err := client.Get(address)
				if err != nil {
					t.Error(err)
					return
				}
				_ = response.Body.Close()
				if response.StatusCode != http.StatusOK {
					t.Errorf("answered with %d", response.StatusCode)
					return
				}
			}
		})
	}
	callers.Wait()
}

// startForgetfulAPI starts an API that keeps nothing of the requests.
func startForgetfulAPI(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	return server.URL
}
