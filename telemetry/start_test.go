package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	collectormetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/phases"
)

// environment sets these variables and unsets all others of OpenTelemetry.
func environment(t *testing.T, variables map[string]string) {
	t.Helper()
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "") // an empty one counts as unset
		}
	}
	for name, value := range variables {
		t.Setenv(name, value)
	}
}

// started starts telemetry that logs to the returned lines.
func started(t *testing.T, config Config) (*Telemetry, *lines) {
	t.Helper()
	out := &lines{}
	logger, err := NewLogger(out, LogConfig{Level: "debug", Format: "json"})
	if err != nil {
		t.Fatal(err)
	}
	config.Service, config.Version, config.Logger = "kizen-sidecar", "1", logger
	telemetry, err := Start(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	return telemetry, out
}

// lines is a log that is safe for concurrent use.
type lines struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

// spansEach is how many spans execute makes: the execution, its phases and two calls.
var spansEach = int64(1 + len(phases.All()) + 2)

// execute simulates one execution with a call, and everything else that is measured.
func execute(t *Telemetry) {
	ctx, execution := t.Execution(context.Background(), info())
	for _, phase := range phases.All() {
		execution.Phase(phase, at(1), at(2), nil)
	}
	execution.EndCall(execution.StartCall("GET", "", ""),
		CallEnd{Method: "GET", Path: "/custom-objects", Status: 200, Received: 9})
	execution.EndCall(execution.StartCall("POST", "", ""),
		CallEnd{Method: "POST", Path: "/x", Status: 403, Error: "guardrail", Policy: "guardrail.own_token", Denied: true})
	execution.End(Ending{Outcome: outcomes.OK})
	t.Metrics().Key(ctx, KeyMint, 1, nil)
	t.Metrics().Key(ctx, KeyRenew, 1, context.DeadlineExceeded)
	t.Metrics().Redis(ctx, "SET", 1, nil)
}

func TestTelemetryIsOffWithoutAnExporterOrAnEndpoint(t *testing.T) {
	for name, variables := range map[string]map[string]string{
		"nothing": {},
		"disabled": {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
			"OTEL_METRICS_EXPORTER": "prometheus"},
		"none": {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none",
			"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
		"other things": {"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, variables)
			telemetry, log := started(t, Config{Prometheus: name == "disabled"})
			if telemetry.Tracing() || telemetry.Metrics() != nil {
				t.Error("telemetry is on")
			}
			execute(telemetry)
			stop := telemetry.Metrics().Watch(func() State { t.Error("asked for the state"); return State{} })
			stop()
			answer := httptest.NewRecorder()
			telemetry.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
			if answer.Code != 404 {
				t.Errorf("/metrics answered %d", answer.Code)
			}
			if len(telemetry.closers) > 0 || telemetry.Shutdown(context.Background()) != nil || log.String() != "" {
				t.Errorf("closers %d, log %q", len(telemetry.closers), log)
			}
		})
	}
}

func TestTheCallersTraceReachesTheStepWhenTracingIsOff(t *testing.T) {
	environment(t, nil)
	telemetry, _ := started(t, Config{})
	_, execution := telemetry.Execution(context.Background(), info())
	if traceparent, tracestate := execution.StepContext(); traceparent != caller || tracestate != "vendor=1" {
		t.Errorf("the step is given %q, %q", traceparent, tracestate)
	}
	if call := execution.StartCall("GET", caller, ""); call != nil {
		t.Errorf("the step's headers are replaced by %+v", call)
	}
	begin := info()
	begin.Traceparent = "garbage\n"
	_, execution = telemetry.Execution(context.Background(), begin)
	if traceparent, _ := execution.StepContext(); traceparent != "" {
		t.Errorf("the step is given %q", traceparent)
	}
}

func TestEnvironmentChoosesExportersAndProtocols(t *testing.T) {
	const endpoint = "http://127.0.0.1:4318"
	for name, c := range map[string]struct {
		variables map[string]string
		want      settings
		warning   string
	}{
		"endpoint alone": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
			settings{traces: "http/protobuf", metrics: "http/protobuf"}, ""},
		"endpoint of traces": {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint},
			settings{traces: "http/protobuf"}, ""},
		"endpoint of metrics": {map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": endpoint},
			settings{metrics: "http/protobuf"}, ""},
		"exporter alone": {map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, settings{traces: "http/protobuf"}, ""},
		"exporter beats default": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
			"OTEL_METRICS_EXPORTER": "none"}, settings{traces: "http/protobuf"}, ""},
		"gRPC": {map[string]string{"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
			settings{traces: "grpc"}, ""},
		"protocol of a signal": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
			"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
			settings{traces: "http/json", metrics: "grpc"}, ""},
		"both ways": {map[string]string{"OTEL_METRICS_EXPORTER": "otlp, prometheus"},
			settings{metrics: "http/protobuf", prometheus: true}, ""},
		"unknown exporter": {map[string]string{"OTEL_TRACES_EXPORTER": "console"}, settings{},
			"OTEL_TRACES_EXPORTER"},
		"exporter of metrics": {map[string]string{"OTEL_METRICS_EXPORTER": "statsd"}, settings{},
			"OTEL_METRICS_EXPORTER"},
		"unknown protocol": {map[string]string{"OTEL_TRACES_EXPORTER": "otlp",
			"OTEL_EXPORTER_OTLP_PROTOCOL": "udp"}, settings{traces: "http/protobuf"}, "OTEL_EXPORTER_OTLP_PROTOCOL"},
		"disabled": {map[string]string{"OTEL_SDK_DISABLED": "TRUE",
			"OTEL_TRACES_EXPORTER": "otlp"}, settings{disabled: true}, ""},
		"disabled by an invalid value": {map[string]string{"OTEL_SDK_DISABLED": "yes",
			"OTEL_TRACES_EXPORTER": "otlp"}, settings{traces: "http/protobuf"}, "OTEL_SDK_DISABLED"},
		"invalid setting of a disabled signal": {map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, settings{}, ""},
		"blank counts as unset": {map[string]string{"OTEL_TRACES_EXPORTER": " ",
			"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, settings{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			got := readSettings(func(name string) string { return c.variables[name] }, slog.New(slog.NewTextHandler(&out, nil)))
			if got.traces != c.want.traces || got.metrics != c.want.metrics || got.prometheus != c.want.prometheus ||
				got.disabled != c.want.disabled {
				t.Errorf("settings = %+v, want %+v", got, c.want)
			}
			if !strings.Contains(out.String(), c.warning) || c.warning == "" && out.Len() > 0 {
				t.Errorf("log = %q", out.String())
			}
		})
	}
}

// receiver is a collector on loopback, over HTTP or gRPC.
type receiver struct {
	collectortrace.UnimplementedTraceServiceServer
	mu      sync.Mutex
	traces  []*collectortrace.ExportTraceServiceRequest
	metrics []*collectormetrics.ExportMetricsServiceRequest
	headers []string // the values of the header "x-team"
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var body io.Reader = req.Body
	if req.Header.Get("Content-Encoding") == "gzip" {
		body, _ = gzip.NewReader(body)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	traces, metrics := &collectortrace.ExportTraceServiceRequest{}, &collectormetrics.ExportMetricsServiceRequest{}
	switch req.URL.Path {
	case "/v1/traces":
		err = proto.Unmarshal(data, traces)
	case "/v1/metrics":
		err = proto.Unmarshal(data, metrics)
	}
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.headers = append(r.headers, req.Header.Get("X-Team"))
	r.traces, r.metrics = append(r.traces, traces), append(r.metrics, metrics)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func (r *receiver) Export(ctx context.Context,
	req *collectortrace.ExportTraceServiceRequest) (*collectortrace.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	r.headers = append(r.headers, md.Get("x-team")...)
	r.traces = append(r.traces, req)
	return &collectortrace.ExportTraceServiceResponse{}, nil
}

// received returns the names of the received spans and metrics, and the attributes of their resources.
func (r *receiver) received() (spans, metrics map[string]int, resource map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	spans, metrics, resource = map[string]int{}, map[string]int{}, map[string]string{}
	for _, request := range r.traces {
		for _, from := range request.ResourceSpans {
			for _, kv := range from.Resource.Attributes {
				resource[kv.Key] = kv.Value.GetStringValue()
			}
			for _, scope := range from.ScopeSpans {
				for _, span := range scope.Spans {
					spans[span.Name]++
				}
			}
		}
	}
	for _, request := range r.metrics {
		for _, from := range request.ResourceMetrics {
			for _, scope := range from.ScopeMetrics {
				for _, metric := range scope.Metrics {
					metrics[metric.Name]++
				}
			}
		}
	}
	return spans, metrics, resource
}

func TestTracesAndMetricsArriveOverHTTP(t *testing.T) {
	collector := &receiver{}
	server := httptest.NewServer(collector)
	defer server.Close()
	environment(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL, "OTEL_EXPORTER_OTLP_HEADERS": "x-team=blue%20one",
		"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
		"OTEL_RESOURCE_ATTRIBUTES":       "deployment.environment.name=test,service.name=ignored",
		"OTEL_SERVICE_NAME":              "steps",
	})
	telemetry, log := started(t, Config{})
	execute(telemetry)
	if err := telemetry.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	spans, metrics, resource := collector.received()
	for _, name := range []string{"execution", "queue", "mint", "spawn", "import", "step", "revoke", "GET", "POST"} {
		if spans[name] != 1 {
			t.Errorf("%d spans %q arrived", spans[name], name)
		}
	}
	for _, name := range []string{"kizen.execution.duration", "http.client.request.duration", "kizen.policy.denials",
		"db.client.operation.duration"} {
		if metrics[name] != 1 {
			t.Errorf("metric %q arrived %d times", name, metrics[name])
		}
	}
	if resource["service.name"] != "steps" || resource["service.version"] != "1" ||
		resource["deployment.environment.name"] != "test" ||
		resource["service.instance.id"] == "" || resource["telemetry.sdk.name"] != "opentelemetry" {
		t.Errorf("resource = %v", resource)
	}
	for _, header := range collector.headers {
		if header != "blue one" {
			t.Errorf("x-team = %q", header)
		}
	}
	if log.String() != "" {
		t.Errorf("log = %s", log)
	}
}

func TestTracesArriveOverGRPC(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	collector, server := &receiver{}, grpc.NewServer()
	collectortrace.RegisterTraceServiceServer(server, collector)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) }) // it ends with Stop
	defer serving.Wait()
	defer server.Stop()
	environment(t, map[string]string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://" + listener.Addr().String(), "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
		"OTEL_EXPORTER_OTLP_HEADERS": "x-team=blue",
	})
	telemetry, _ := started(t, Config{OneShot: true})
	execute(telemetry)
	if err := telemetry.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	spans, _, _ := collector.received()
	if spans["execution"] != 1 || spans["GET"] != 1 || len(collector.headers) == 0 || collector.headers[0] != "blue" {
		t.Errorf("spans = %v, x-team = %q", spans, collector.headers)
	}
}

func TestTracesArriveAsJSONOverTLSAndMetricsAsProtobuf(t *testing.T) {
	var mu sync.Mutex
	arrived := map[string]string{}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		arrived[r.URL.Path] = r.Header.Get("Content-Type")
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	}))
	defer server.Close()
	authority := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(authority, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	environment(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL + "/base", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
		"OTEL_EXPORTER_OTLP_CERTIFICATE": authority,
	})
	telemetry, log := started(t, Config{})
	execute(telemetry)
	if err := telemetry.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if arrived["/base/v1/traces"] != "application/json" || arrived["/base/v1/metrics"] != "application/x-protobuf" ||
		len(arrived) != 2 {
		t.Errorf("arrived: %v", arrived)
	}
	if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL") {
		t.Errorf("log = %s", log)
	}
}

func TestEveryInvalidSettingIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(&receiver{})
	defer server.Close()
	for name, value := range map[string]string{
		"OTEL_SDK_DISABLED": "1", "OTEL_TRACES_SAMPLER": "sometimes", "OTEL_TRACES_SAMPLER_ARG": "1.5",
		"OTEL_BSP_SCHEDULE_DELAY": "5s", "OTEL_BSP_MAX_QUEUE_SIZE": "many",
		"OTEL_METRIC_EXPORT_INTERVAL": "1m", "OTEL_SPAN_LINK_COUNT_LIMIT": "x", "OTEL_EXPORTER_OTLP_TIMEOUT": "10s",
		"OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "zip",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS":      plain, "OTEL_EXPORTER_OTLP_HEADERS": "a=" + plain + "%zz",
		"OTEL_EXPORTER_OTLP_CERTIFICATE": file,
		"OTEL_EXPORTER_OTLP_CLIENT_KEY":  "/no/such/file", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "localhost:4318",
		"OTEL_EXPORTER_OTLP_INSECURE": "maybe",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "udp", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE": "/no/such/file",
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL, name: value})
			telemetry, log := started(t, Config{})
			execute(telemetry)
			_ = telemetry.Shutdown(context.Background()) // not everything arrives
			said := strings.Split(strings.TrimSpace(log.String()), "\n")
			if !strings.Contains(said[0], `"variable":"`+name+`"`) || strings.Contains(log.String(), plain) {
				t.Errorf("logged for %s=%s: %s", name, value, log)
			}
			for _, line := range said[1:] {
				if !strings.Contains(line, "not exported") {
					t.Errorf("it is logged twice: %s", line)
				}
			}
		})
	}
}

func TestInvalidSettingsAreLoggedWithoutTheirValues(t *testing.T) {
	server := httptest.NewServer(&receiver{})
	defer server.Close()
	for name, variables := range map[string]map[string]string{
		"headers":  {"OTEL_EXPORTER_OTLP_HEADERS": plain},
		"encoding": {"OTEL_EXPORTER_OTLP_HEADERS": "x-team=" + plain + "%zz"},
		"resource": {"OTEL_RESOURCE_ATTRIBUTES": plain},
		"sampler":  {"OTEL_TRACES_SAMPLER": "sometimes"},
		"client TLS": {"OTEL_EXPORTER_OTLP_CLIENT_KEY": "/no/such/" + plain,
			"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/no/such/file"},
	} {
		t.Run(name, func(t *testing.T) {
			variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = server.URL
			environment(t, variables)
			telemetry, log := started(t, Config{})
			execute(telemetry)
			if err := telemetry.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			if !strings.Contains(log.String(), "WARN") || !strings.Contains(log.String(), "OTEL_") && name != "sampler" {
				t.Errorf("the log does not mention it: %q", log)
			}
			if strings.Contains(log.String(), plain) {
				t.Errorf("the log shows a secret: %s", log)
			}
		})
	}
}
