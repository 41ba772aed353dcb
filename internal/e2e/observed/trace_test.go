package observed

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

const (
	callerTrace = "0af7651916cd43dd8448eb211c80319c"
	callerSpan  = "b7ad6b7169203331"
	otherTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	otherSpan   = "00f067aa0ba902b7"
)

// TestARealCollectorReceivesTheWholeTraceAndTheMetrics: over both protocols, the spans of one execution form one tree
// from the caller to the API. The collector's own receiver decides about what is valid.
func TestARealCollectorReceivesTheWholeTraceAndTheMetrics(t *testing.T) {
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			c, upstream, outside := startCollector(t), startAPI(t), startAPI(t)
			endpoint := c.http
			if protocol == "grpc" {
				endpoint = c.grpc
			}
			s := serve(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=" + protocol},
				"--api-root", upstream.URL+"/api")
			body := script(fmt.Sprintf(`
import os, requests
kizen.api.get("/custom-objects?page=2&flag")
kizen.api.get("/missing")
kizen.api.post("/business-config/import", json={})
kizen.api.get("/linked", headers={"traceparent": "00-%s-%s-01"})
requests.get(%q)
outputs.log(os.environ["TRACEPARENT"])
`, otherTrace, otherSpan, outside.URL+"/outside"))
			status, answer := s.run("00-"+callerTrace+"-"+callerSpan+"-01", body)
			if status != http.StatusOK {
				t.Fatalf("%d: %s", status, answer)
			}
			page := s.Metrics()
			s.stop()
			checkTree(t, c)
			checkPropagation(t, c, answer, upstream, outside)
			checkCalls(t, c, upstream)
			checkMetrics(t, c, page)
		})
	}
}

func checkTree(t *testing.T, c *collector) {
	t.Helper()
	want := map[string]int{
		callerSpan + " > execution (Server, Unset)": 1,
		"execution > queue (Internal, Unset)":       1,
		"execution > mint (Internal, Unset)":        1,
		"execution > spawn (Internal, Unset)":       1,
		"execution > import (Internal, Unset)":      1,
		"execution > step (Internal, Unset)":        1,
		"execution > teardown (Internal, Unset)":    1,
		"execution > revoke (Internal, Unset)":      1,
		"step > GET (Client, Unset)":                2,
		"step > GET (Client, Error)":                1,
		"step > POST (Client, Error)":               1,
	}
	if got := tree(c.of(callerTrace)); !maps.Equal(got, want) {
		t.Errorf("spans = %v\nwant    %v", got, want)
	}
	for _, span := range c.of(callerTrace) {
		if span.resource["service.name"] != "kizen-sidecar" || span.TraceState().AsRaw() != "vendor=1" {
			t.Errorf("%s: resource %v, tracestate %q", span.Name(), span.resource, span.TraceState().AsRaw())
		}
		if span.Name() != "execution" {
			continue
		}
		attributes := span.Attributes().AsRaw()
		for _, measured := range []string{"kizen.execution.id", "kizen.execution.cpu.time", "kizen.execution.memory.peak"} {
			if attributes[measured] == nil {
				t.Errorf("execution has no %s", measured)
			}
			delete(attributes, measured)
		}
		want := map[string]any{
			"kizen.business.id": "b-1", "kizen.account.type": "service_automation", "kizen.step.name": "",
			"kizen.step.runtime": "python-3-13", "kizen.execution.outcome": "ok", "process.exit.code": int64(0),
		}
		if !maps.Equal(attributes, want) {
			t.Errorf("execution has %v\nwant %v", attributes, want)
		}
	}
}

// checkPropagation checks that the API received the span of the call itself, and other hosts that of the step.
func checkPropagation(t *testing.T, c *collector, answer string, upstream, outside *api) {
	t.Helper()
	spans := map[string]bool{}
	step := ""
	for _, span := range c.of(callerTrace) {
		if span.Name() == "GET" {
			spans["00-"+callerTrace+"-"+span.SpanID().String()+"-01"] = true
		}
		if span.Name() == "step" {
			step = "00-" + callerTrace + "-" + span.SpanID().String() + "-01"
		}
	}
	if sent := upstream.header("/api/custom-objects", "traceparent"); !spans[sent] {
		t.Errorf("the API received %q, none of %v", sent, spans)
	}
	if sent := upstream.header("/api/custom-objects", "tracestate"); sent != "vendor=1" {
		t.Errorf("the API received tracestate %q", sent)
	}
	if sent := outside.header("/outside", "traceparent"); sent != step || sent == "" {
		t.Errorf("another host received %q, want %q", sent, step)
	}
	if !strings.Contains(answer, step) {
		t.Errorf("the step's environment does not name %q: %s", step, answer)
	}
}

func checkCalls(t *testing.T, c *collector, upstream *api) {
	t.Helper()
	root, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseInt(root.Port(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path string, received int64, more map[string]any) map[string]any {
		all := map[string]any{
			"http.request.method": method, "url.full": upstream.URL + "/api" + path, "server.address": "127.0.0.1",
			"server.port":            port,
			"http.request.body.size": int64(0), "http.response.body.size": received, "network.protocol.version": "1.1",
			"kizen.policy.decision": "allow", "http.response.status_code": int64(200),
		}
		maps.Copy(all, more)
		return all
	}
	want := map[string]map[string]any{
		"/custom-objects": call("GET", "/custom-objects?page=REDACTED&REDACTED", 12, nil),
		"/missing": call("GET", "/missing", 12,
			map[string]any{"http.response.status_code": int64(404), "error.type": "404"}),
		"/linked": call("GET", "/linked", 12, nil),
		"/business-config/import": call("POST", "/business-config/import", 0, map[string]any{
			"http.response.status_code": int64(403), "error.type": "guardrail", "kizen.policy.decision": "deny",
			"kizen.policy.id": "guardrail.import_business_config",
		}),
	}
	for _, span := range c.of(callerTrace) {
		attributes := span.Attributes().AsRaw()
		full, isCall := attributes["url.full"].(string)
		if !isCall {
			continue
		}
		path, _, _ := strings.Cut(strings.TrimPrefix(full, upstream.URL+"/api"), "?")
		if attributes["kizen.policy.decision"] == "allow" {
			if attributes["kizen.policy.id"] == nil {
				t.Errorf("%s names no policy", path)
			}
			delete(attributes, "kizen.policy.id")
		}
		if !maps.Equal(attributes, want[path]) {
			t.Errorf("%s has %v\nwant %v", path, attributes, want[path])
		}
		links := ""
		for _, link := range span.Links().All() {
			links += link.TraceID().String() + "/" + link.SpanID().String()
		}
		if linked := otherTrace + "/" + otherSpan; (path == "/linked") != (links == linked) || path != "/linked" &&
			links != "" {
			t.Errorf("%s has links %q", path, links)
		}
	}
}

func checkMetrics(t *testing.T, c *collector, page string) {
	t.Helper()
	one := func(names ...string) map[string]uint64 {
		counts := map[string]uint64{}
		for _, name := range names {
			counts[name] = 1
		}
		return counts
	}
	for _, want := range []struct {
		metric, by string
		counts     map[string]uint64
	}{
		{"kizen.execution.duration", "kizen.execution.outcome", one("ok")},
		{"kizen.execution.phase.duration", "kizen.execution.phase",
			one("queue", "spawn", "mint", "import", "step", "teardown", "revoke")},
		{"http.client.request.duration", "http.response.status_code", map[string]uint64{"200": 2, "404": 1, "403": 1}},
		{"http.client.request.body.size", "http.request.method", map[string]uint64{"GET": 3, "POST": 1}},
		{"http.client.response.body.size", "http.request.method", map[string]uint64{"GET": 3, "POST": 1}},
		{"kizen.policy.denials", "kizen.policy.id", one("guardrail.import_business_config")},
		{"kizen.key.operation.duration", "kizen.key.operation", one("mint", "revoke")},
		{"kizen.execution.slot.usage", "", map[string]uint64{"": 0}},
		{"kizen.execution.queue.length", "", map[string]uint64{"": 0}},
	} {
		if got := c.counts(t, want.metric, want.by); !maps.Equal(got, want.counts) {
			t.Errorf("%s by %q = %v, want %v", want.metric, want.by, got, want.counts)
		}
	}
	if len(c.counts(t, "db.client.operation.duration", "db.operation.name")) == 0 {
		t.Error("no command to Redis was measured")
	}
	if got := c.counts(t, "kizen.execution.slot.limit", ""); got[""] == 0 {
		t.Error("no slots were reported")
	}
	c.counts(t, "kizen.pool.ready", "")
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.metrics {
		if spelled := strings.NewReplacer(".", "_").Replace(name); !strings.Contains(page, spelled) {
			t.Errorf("/metrics does not have %s", name)
		}
	}
}

// TestFailuresArriveAsStatusesAndEvents: an exception, a time limit and a memory limit arrive as statuses and events,
// without the exception's text. A trace that its caller does not sample does not arrive.
func TestFailuresArriveAsStatusesAndEvents(t *testing.T) {
	c, upstream := startCollector(t), startAPI(t)
	s := serve(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.grpc, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"},
		"--api-root", upstream.URL+"/api", "--memory", "150MiB")
	cases := map[string]struct {
		source, outcome, event, exception string
		timeout                           int
	}{
		"1": {"raise ValueError('customer 4711')", "exception", "exception", "ValueError", 0},
		"2": {"while True: pass", "timeout", "timeout", "", 200},
		"3": {"x = [bytearray(b'x' * (8 << 20)) for _ in range(100)]\nwhile True: pass", "memory_limit", "memory_limit", "",
			0},
	}
	for digit, k := range cases {
		body := script(k.source)
		if k.timeout > 0 {
			body["timeout_ms"] = k.timeout
		}
		if status, answer := s.run("00-"+strings.Repeat(digit, 32)+"-"+callerSpan+"-01", body); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", k.outcome, status, answer)
		}
	}
	// The caller asks not to sample, so nothing is exported.
	if status, _ := s.run("00-"+otherTrace+"-"+otherSpan+"-00", script(`kizen.api.get("/unsampled")`)); status != http.StatusOK {
		t.Errorf("unsampled: %d", status)
	}
	if sent := upstream.header("/api/unsampled", "traceparent"); !strings.HasPrefix(sent, "00-"+otherTrace+"-") ||
		!strings.HasSuffix(sent, "-00") {
		t.Errorf("the API received %q of an unsampled trace", sent)
	}
	s.stop()
	if spans := c.of(otherTrace); len(spans) != 0 {
		t.Errorf("an unsampled trace arrived: %v", tree(spans))
	}
	for digit, k := range cases {
		found := 0
		for _, span := range c.of(strings.Repeat(digit, 32)) {
			if span.Name() != "execution" && span.Name() != "step" {
				continue
			}
			found++
			attributes := span.Attributes().AsRaw()
			if span.Status().Message() != k.outcome || span.Status().Code().String() != "Error" ||
				attributes["error.type"] != k.outcome {
				t.Errorf("%s: %s has status %s %q, error.type %v", k.outcome, span.Name(), span.Status().Code(),
					span.Status().Message(), attributes["error.type"])
			}
			if span.Name() == "step" && (span.Events().Len() != 1 || span.Events().At(0).Name() != k.event) {
				t.Errorf("%s: the step has %d events", k.outcome, span.Events().Len())
			}
			if span.Name() == "execution" && k.exception != "" && attributes["exception.type"] != k.exception {
				t.Errorf("%s: exception.type is %v", k.outcome, attributes["exception.type"])
			}
		}
		if found != 2 {
			t.Errorf("%s: %d of the two spans arrived", k.outcome, found)
		}
	}
	if strings.Contains(c.received(), "customer") {
		t.Error("the exception of a step was exported")
	}
}

// TestTheReportNamesTheTraceThatWasSent: the trace ID in the file of --report is the one that the collector received.
func TestTheReportNamesTheTraceThatWasSent(t *testing.T) {
	c := startCollector(t)
	report := filepath.Join(t.TempDir(), "out.html")
	ran := sidecartest.Command(t.Context(), exporting(c), "run", "--script", "-", "--report", report)
	ran.Stdin = strings.NewReader("pass")
	if out, err := ran.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) == 0 || !strings.Contains(read(t, report), `"trace_id":"`+c.spans[0].TraceID().String()+`"`) {
		t.Errorf("%d spans arrived, and the report names another trace", len(c.spans))
	}
}

// TestEveryLineOfAnExecutionNamesItAndItsTrace: log lines of serve about a call or an execution have the caller's trace
// ID, the execution and the business. The trace comes from the request, and the lines from several packages.
func TestEveryLineOfAnExecutionNamesItAndItsTrace(t *testing.T) {
	upstream := startAPI(t)
	s := serve(t, []string{"KIZEN_LOG=debug", "OTEL_EXPORTER_OTLP_ENDPOINT=http://" + startCollector(t).http},
		"--api-root", upstream.URL+"/api")
	if status, answer := s.run("00-"+callerTrace+"-"+callerSpan+"-01", script(`kizen.api.get("/custom-objects")`)); status != http.StatusOK {
		t.Fatalf("%d: %s", status, answer)
	}
	s.stop()
	infos := 0
	for line := range strings.Lines(s.Log.String()) {
		if !strings.Contains(line, `"msg":"call"`) && !strings.Contains(line, `"msg":"execution ended"`) {
			continue
		}
		if strings.Contains(line, `"INFO"`) {
			infos++
		}
		if !strings.Contains(line, `"trace_id":"`+callerTrace+`"`) || !strings.Contains(line, `"execution_id":"`) ||
			!strings.Contains(line, `"business_id":"b-1"`) {
			t.Errorf("line lacks attributes: %s", line)
		}
	}
	if infos != 1 {
		t.Errorf("%d lines at info for one execution", infos)
	}
}

// TestEveryLineOfAProxyNamesItsExecutionAndItsTrace: each line of a proxy after its start has the trace of TRACEPARENT
// and the ID of --execution-id.
func TestEveryLineOfAProxyNamesItsExecutionAndItsTrace(t *testing.T) {
	p := sidecartest.StartProxy(t, append(exporting(startCollector(t)), "KIZEN_LOG=debug",
		"TRACEPARENT=00-"+callerTrace+"-"+callerSpan+"-01"),
		"--api-root", startAPI(t).URL+"/api", "--execution-id", "e-1")
	call(t, p.URL+"/custom-objects")
	if code := p.Stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	lines := map[string]bool{}
	for line := range strings.Lines(p.Log.String()) {
		_, message, _ := strings.Cut(line, `"msg":"`)
		message, _, _ = strings.Cut(message, `"`)
		if lines[message] = true; lines["serving"] &&
			(!strings.Contains(line, `"trace_id":"`+callerTrace+`"`) || !strings.Contains(line, `"execution_id":"e-1"`)) {
			t.Errorf("a line lacks attributes: %s", line)
		}
	}
	for _, message := range []string{"serving", "call", "execution ended", "stopped"} {
		if !lines[message] {
			t.Errorf("the line %q is missing in %s", message, p.Log)
		}
	}
}

// call requests a URL, which must exist.
func call(t *testing.T, address string) {
	t.Helper()
	response, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("answered with %d", response.StatusCode)
	}
}

// TestEveryKeyOperationIsCounted: the collector counts a minted, a renewed and a revoked key, and a run without Redis
// as not started. The minter, the exporter and the end of the process meet.
func TestEveryKeyOperationIsCounted(t *testing.T) {
	c, upstream := startCollector(t), startAPI(t)
	p := sidecartest.StartProxy(t, exporting(c), "--api-root", upstream.URL+"/api", "--key-lifetime", "1s")
	first := ""
	sidecartest.WaitFor(t, func() bool { // a renewed key
		call(t, p.URL+"/custom-objects")
		upstream.mu.Lock()
		defer upstream.mu.Unlock()
		key := upstream.sent[len(upstream.sent)-1].Header.Get("X-API-KEY")
		if first == "" {
			first = key
		}
		return key != first
	})
	if code := p.Stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	got := c.counts(t, "kizen.key.operation.duration", "kizen.key.operation")
	if got["mint"] != 1 || got["renew"] == 0 || got["revoke"] != 1 {
		t.Errorf("keys were counted as %v", got)
	}

	c = startCollector(t)
	failed := sidecartest.Command(t.Context(), append(exporting(c), "REDIS_URL=redis://"+sidecartest.FreeAddress(t)),
		"run", "--script", os.DevNull)
	if out, err := failed.CombinedOutput(); err == nil {
		t.Fatalf("a run without Redis succeeded: %s", out)
	}
	if got := c.counts(t, "kizen.key.operation.duration", "error.type"); got["_OTHER"] != 1 {
		t.Errorf("a key that could not be minted was counted as %v", got)
	}
	if got := c.counts(t, "kizen.execution.duration", "kizen.execution.outcome"); got["not_started"] != 1 {
		t.Errorf("the execution was counted as %v", got)
	}
	if got := tree(c.spans); got["execution > mint (Internal, Error)"] != 1 || got[" > execution (Internal, Error)"] != 1 {
		t.Errorf("the spans are %v", got)
	}
}
