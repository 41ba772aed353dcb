package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/phases"
	"github.com/kizen/kizen-sidecar/internal/redacted"
)

const (
	callerTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	callerSpan  = "00f067aa0ba902b7"
	caller      = "00-" + callerTrace + "-" + callerSpan + "-01"
)

var (
	apiRoot = &url.URL{Scheme: "https", Host: "app.go.kizen.com", Path: "/api"}
	noon    = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
)

// tracing returns telemetry that keeps its spans, and a function that returns them.
func tracing(t *testing.T) (*Telemetry, func() tracetest.SpanStubs) {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	telemetry := &Telemetry{complaints: newComplaints(slog.New(slog.DiscardHandler), nil)}
	telemetry.trace(exporter, resource.Empty())
	t.Cleanup(func() {
		if err := telemetry.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return telemetry, func() tracetest.SpanStubs {
		if err := telemetry.queue.ForceFlush(context.Background()); err != nil {
			t.Fatal(err)
		}
		return exporter.GetSpans()
	}
}

func info() ExecutionInfo {
	return ExecutionInfo{
		ID: "ex-1", Business: "b-1", AccountType: "service_automation", Step: "notify", Runtime: "python-3-13", API: apiRoot,
		Traceparent: caller, Tracestate: "vendor=1", Server: true, Began: noon,
	}
}

// at returns a time in the execution, which began at noon.
func at(milliseconds int) time.Time { return noon.Add(time.Duration(milliseconds) * time.Millisecond) }

func named[Name ~string](t *testing.T, spans tracetest.SpanStubs, name Name) tracetest.SpanStub {
	t.Helper()
	var found tracetest.SpanStubs
	for _, span := range spans {
		if span.Name == string(name) {
			found = append(found, span)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans are named %q", len(found), name)
	}
	return found[0]
}

func attributes(list []attribute.KeyValue) map[string]any {
	all := map[string]any{}
	for _, kv := range list {
		all[string(kv.Key)] = kv.Value.AsInterface()
	}
	return all
}

func wantAttributes(t *testing.T, got []attribute.KeyValue, want map[string]any) {
	t.Helper()
	all := attributes(got)
	for key, value := range want {
		if fmt.Sprint(all[key]) != fmt.Sprint(value) {
			t.Errorf("%s = %v, want %v", key, all[key], value)
		}
	}
}

func TestOneTraceLeadsFromTheCallerThroughTheStepToTheAPI(t *testing.T) {
	telemetry, spans := tracing(t)
	ctx, execution := telemetry.Execution(context.Background(), info())
	if id := trace.SpanContextFromContext(ctx).TraceID().String(); id != callerTrace {
		t.Errorf("the context is of trace %s", id)
	}
	for i, phase := range []phases.Phase{phases.Queue, phases.Mint, phases.Spawn, phases.Import} {
		execution.Phase(phase, at(i), at(i+1), nil)
	}
	stepParent, stepState := execution.StepContext()
	call := execution.StartCall("GET", "", "")
	execution.EndCall(call, CallEnd{Method: "GET", Path: "/custom-objects", Status: 200})
	execution.Phase(phases.Step, at(4), at(9), nil)
	execution.Phase(phases.Revoke, at(9), at(10), nil)
	execution.End(Ending{Outcome: outcomes.OK})

	all := spans()
	root, step, get := named(t, all, "execution"), named(t, all, phases.Step), named(t, all, "GET")
	if len(all) != 8 {
		t.Errorf("%d spans", len(all))
	}
	for _, span := range all {
		if span.SpanContext.TraceID().String() != callerTrace {
			t.Errorf("%s is of trace %s", span.Name, span.SpanContext.TraceID())
		}
		if span.Status.Code == codes.Error || len(span.Events) > 0 {
			t.Errorf("%s failed: %v", span.Name, span.Status)
		}
	}
	if root.Parent.SpanID().String() != callerSpan || !root.Parent.IsRemote() || root.SpanKind != trace.SpanKindServer {
		t.Errorf("the root's parent is %v, its kind %v", root.Parent, root.SpanKind)
	}
	for i, name := range []phases.Phase{phases.Queue, phases.Mint, phases.Spawn, phases.Import} {
		phase := named(t, all, name)
		if phase.Parent.SpanID() != root.SpanContext.SpanID() || !phase.StartTime.Equal(at(i)) ||
			!phase.EndTime.Equal(at(i+1)) {
			t.Errorf("%s is from %v to %v below %v", name, phase.StartTime, phase.EndTime, phase.Parent.SpanID())
		}
	}
	if want := "00-" + callerTrace + "-" + step.SpanContext.SpanID().String() + "-01"; stepParent != want ||
		stepState != "vendor=1" {
		t.Errorf("the step was given %q, %q, want %q", stepParent, stepState, want)
	}
	if step.Parent.SpanID() != root.SpanContext.SpanID() || !step.StartTime.Equal(at(4)) || !step.EndTime.Equal(at(9)) {
		t.Errorf("step = %+v", step)
	}
	if get.Parent.SpanID() != step.SpanContext.SpanID() || get.SpanKind != trace.SpanKindClient {
		t.Errorf("the call's parent is %v, its kind %v", get.Parent, get.SpanKind)
	}
	if want := "00-" + callerTrace + "-" + get.SpanContext.SpanID().String() + "-01"; call.Traceparent != want ||
		call.Tracestate != "vendor=1" {
		t.Errorf("the API was given %q, %q, want %q", call.Traceparent, call.Tracestate, want)
	}
	wantAttributes(t, root.Attributes, map[string]any{
		"kizen.execution.id": "ex-1", "kizen.business.id": "b-1", "kizen.account.type": "service_automation",
		"kizen.step.name": "notify", "kizen.step.runtime": "python-3-13", "kizen.execution.outcome": "ok",
	})
}

func TestAnExecutionWithoutACallerBeginsATrace(t *testing.T) {
	for _, traceparent := range []string{"", "garbage", "00-" + strings.Repeat("0", 32) + "-" + callerSpan + "-01",
		caller + "\nX: y"} {
		telemetry, spans := tracing(t)
		begin := info()
		begin.Traceparent, begin.Server = traceparent, false
		_, execution := telemetry.Execution(context.Background(), begin)
		execution.End(Ending{Outcome: outcomes.OK})
		root := named(t, spans(), "execution")
		if root.Parent.IsValid() || root.SpanContext.TraceID().String() == callerTrace ||
			root.SpanKind != trace.SpanKindInternal {
			t.Errorf("%q: root = %+v", traceparent, root)
		}
	}
}

func TestCallsAreBelowTheSpanThatTheStepMade(t *testing.T) {
	const inner = "1111111111111111"
	for name, sent := range map[string]string{
		inner: "00-" + callerTrace + "-" + inner + "-01",
		"":    "00-11111111111111111111111111111111-" + inner + "-01", // of another trace
		" ":   "nonsense",
	} {
		telemetry, spans := tracing(t)
		_, execution := telemetry.Execution(context.Background(), info())
		call := execution.StartCall("GET", sent, "step=2")
		execution.EndCall(call, CallEnd{Method: "GET", Status: 200})
		execution.Phase(phases.Step, at(1), at(2), nil)
		execution.End(Ending{Outcome: outcomes.OK})
		all := spans()
		want, state := named(t, all, phases.Step).SpanContext.SpanID().String(), "vendor=1"
		if name == inner {
			want, state = inner, "step=2"
		}
		if got := named(t, all, "GET").Parent.SpanID().String(); got != want {
			t.Errorf("%q: the call's parent is %s, want %s", sent, got, want)
		}
		if call.Tracestate != state {
			t.Errorf("%q: tracestate = %q, want %q", sent, call.Tracestate, state)
		}
	}
}

func TestSamplingFollowsTheCallerAndNotTheStep(t *testing.T) {
	telemetry, spans := tracing(t)
	begin := info()
	begin.Traceparent = "00-" + callerTrace + "-" + callerSpan + "-00"
	_, execution := telemetry.Execution(context.Background(), begin)
	traceparent, _ := execution.StepContext()
	call := execution.StartCall("GET", strings.TrimSuffix(traceparent, "00")+"01", "")
	execution.EndCall(call, CallEnd{Method: "GET", Status: 200})
	execution.Phase(phases.Step, at(1), at(2), nil)
	execution.End(Ending{Outcome: "timeout"})
	if all := spans(); len(all) != 0 {
		t.Errorf("%d spans were exported of a trace that is not sampled", len(all))
	}
	for _, header := range []string{traceparent, call.Traceparent} {
		if !strings.HasPrefix(header, "00-"+callerTrace) || !strings.HasSuffix(header, "-00") {
			t.Errorf("traceparent = %q", header)
		}
	}
}

func TestSamplerOfTheEnvironmentIsUsed(t *testing.T) {
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	telemetry, spans := tracing(t)
	_, execution := telemetry.Execution(context.Background(), info())
	execution.End(Ending{Outcome: outcomes.OK})
	if all := spans(); len(all) != 0 {
		t.Errorf("%d spans", len(all))
	}
}

func TestFailuresAreStatusesAndEvents(t *testing.T) {
	for _, c := range []struct {
		ending Ending
		event  string
		want   map[string]any
	}{
		{Ending{Outcome: "exception", Exception: "ValueError"}, "exception", map[string]any{"exception.type": "ValueError"}},
		{Ending{Outcome: "exception", Exception: "hunter2 at large"}, "exception", map[string]any{"exception.type": nil}},
		{Ending{Outcome: "timeout", CPU: 1500 * time.Millisecond, ExitCode: -1, Signal: "SIGKILL"}, "timeout",
			map[string]any{"kizen.execution.cpu.time": 1.5, "kizen.execution.signal": "SIGKILL", "process.exit.code": nil}},
		{Ending{Outcome: "memory_limit", PeakMemory: 1 << 30, ExitCode: 137}, "memory_limit",
			map[string]any{"kizen.execution.memory.peak": 1 << 30, "process.exit.code": 137}},
	} {
		t.Run(string(c.ending.Outcome), func(t *testing.T) {
			telemetry, spans := tracing(t)
			_, execution := telemetry.Execution(context.Background(), info())
			execution.Phase(phases.Step, at(1), at(2), nil)
			execution.End(c.ending)
			all := spans()
			for _, name := range []phases.Phase{"execution", phases.Step} {
				span := named(t, all, name)
				if span.Status.Code != codes.Error || span.Status.Description != string(c.ending.Outcome) {
					t.Errorf("%s has status %+v", name, span.Status)
				}
				wantAttributes(t, span.Attributes, map[string]any{"error.type": string(c.ending.Outcome)})
			}
			step := named(t, all, phases.Step)
			if len(step.Events) != 1 || step.Events[0].Name != c.event {
				t.Fatalf("events = %+v", step.Events)
			}
			wantAttributes(t, step.Events[0].Attributes, c.want)
			wantAttributes(t, named(t, all, "execution").Attributes, c.want)
		})
	}
}

func TestAnExecutionWhoseStepNeverRanFailsWithoutAStepSpan(t *testing.T) {
	telemetry, spans := tracing(t)
	_, execution := telemetry.Execution(context.Background(), info())
	execution.Phase(phases.Mint, at(0), at(1), fmt.Errorf("dial redis://app:%s@h: %w", plain, context.DeadlineExceeded))
	execution.StepContext()
	execution.End(Ending{Outcome: "internal", ExitCode: -1})
	all := spans()
	if len(all) != 2 {
		t.Errorf("%d spans", len(all))
	}
	mint, root := named(t, all, phases.Mint), named(t, all, "execution")
	if mint.Status.Code != codes.Error || strings.Contains(mint.Status.Description, plain) ||
		!strings.Contains(mint.Status.Description, "redis") {
		t.Errorf("status = %+v", mint.Status)
	}
	wantAttributes(t, mint.Attributes, map[string]any{"error.type": "timeout"})
	if len(root.Events) != 1 || root.Events[0].Name != "internal" {
		t.Errorf("events = %+v", root.Events)
	}
}

func TestCallsHaveAParentEvenWithoutAStepPhase(t *testing.T) {
	telemetry, spans := tracing(t)
	_, execution := telemetry.Execution(context.Background(), info())
	execution.EndCall(execution.StartCall("GET", "", ""), CallEnd{Method: "GET", Status: 200})
	execution.End(Ending{Outcome: "cancelled"})
	all := spans()
	if named(t, all, "GET").Parent.SpanID() != named(t, all, phases.Step).SpanContext.SpanID() {
		t.Error("the call's parent was never exported")
	}
}

func TestCallsFollowTheSemanticConventionsOfHTTP(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    CallEnd
		status codes.Code
		want   map[string]any
	}{
		{"answered", CallEnd{Method: "POST", Path: "/a%2Fb", Query: "page=2&hunter2;x=y=z", Status: 201, Sent: 5, Received: 7,
			Policy: "default.calls"}, codes.Unset,
			map[string]any{
				"http.request.method": "POST", "http.response.status_code": 201, "server.address": "app.go.kizen.com",
				"server.port":            443,
				"url.full":               "https://app.go.kizen.com/api/a%2Fb?page=REDACTED&REDACTED&x=REDACTED",
				"http.request.body.size": 5, "http.response.body.size": 7, "network.protocol.version": "1.1", "error.type": nil,
				"kizen.policy.decision": "allow", "kizen.policy.id": "default.calls", "http.request.resend_count": nil,
			}},
		{"not found", CallEnd{Method: "GET", Path: "/x", Status: 404, Retried: true, Protocol: "2"}, codes.Error,
			map[string]any{"error.type": "404", "http.request.resend_count": 1, "kizen.policy.decision": nil,
				"network.protocol.version": "2"}},
		{"denied", CallEnd{Method: "DELETE", Path: "/x", Status: 403, Error: "guardrail", Policy: "guardrail.own_token",
			Denied: true}, codes.Error,
			map[string]any{"error.type": "guardrail", "kizen.policy.decision": "deny",
				"kizen.policy.id": "guardrail.own_token"}},
		{"no answer", CallEnd{Method: "GET", Path: "/x", Error: "client_disconnected"}, codes.Error,
			map[string]any{"error.type": "client_disconnected", "http.response.status_code": nil}},
		{"made-up method", CallEnd{Method: "BREW", Path: "/x", Status: 200}, codes.Unset,
			map[string]any{"http.request.method": "_OTHER", "http.request.method_original": "BREW"}},
		{"secrets everywhere", CallEnd{Method: stored, Path: "/x/" + stored, Query: stored + "&" + stored + "=1&a=" + stored,
			Status: 200}, codes.Unset,
			map[string]any{"http.request.method_original": redacted.Mark}},
	} {
		t.Run(c.name, func(t *testing.T) {
			telemetry, spans := tracing(t)
			_, execution := telemetry.Execution(context.Background(), info())
			execution.EndCall(execution.StartCall(c.end.Method, "", ""), c.end)
			index := slices.IndexFunc(spans(), func(s tracetest.SpanStub) bool { return s.SpanKind == trace.SpanKindClient })
			span := spans()[index]
			execution.End(Ending{Outcome: outcomes.OK})
			if span.Status.Code != c.status {
				t.Errorf("status = %+v", span.Status)
			}
			wantAttributes(t, span.Attributes, c.want)
			if all := fmt.Sprint(span); strings.Contains(all, stored) || strings.Contains(all, "hunter2") {
				t.Errorf("the span shows a secret: %s", all)
			}
		})
	}
}

func TestLongValuesDoNotFillTheQueue(t *testing.T) {
	telemetry, spans := tracing(t)
	_, execution := telemetry.Execution(context.Background(), info())
	long := strings.Repeat("x", 1<<20)
	execution.EndCall(execution.StartCall("GET", "", ""),
		CallEnd{Method: "GET", Path: "/" + long, Query: long + "=" + long, Error: "answer_cut", Policy: long})
	execution.Phase("mint", at(0), at(1), errors.New(long))
	execution.End(Ending{Outcome: outcomes.OK, Exception: long})
	for _, span := range spans() {
		size := len(span.Status.Description)
		for _, kv := range span.Attributes {
			size += len(kv.Value.String())
		}
		if size > 8<<10 {
			t.Errorf("%s holds %d bytes", span.Name, size)
		}
	}
}
