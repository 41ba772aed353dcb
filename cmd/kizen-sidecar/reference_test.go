package main

import (
	"io"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/kizen/kizen-sidecar/internal/testkit/reference"
)

// withoutFlag are the environment variables without a flag.
var withoutFlag = []reference.Variable{
	{Name: "KIZEN_SIGNING_KEYS", Help: "The signing keys themselves, PEM or JWK, if --keys is not given."},
	{Name: "KIZEN_API_URL",
		Help: "The proxy that health checks, if --env-file is not given. proxy writes it, the kizen module reads it."},
	{Name: "TRACEPARENT TRACESTATE", Help: "The trace that run and proxy continue (W3C Trace Context)."},
	{Name: "OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_TRACES_ENDPOINT OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
		Help: "The collector for traces and metrics; setting one of them enables OTLP."},
	{Name: "OTEL_TRACES_EXPORTER OTEL_METRICS_EXPORTER",
		Help: "otlp or none, for metrics also prometheus; they override the endpoints."},
	{Name: "OTEL_EXPORTER_OTLP_PROTOCOL OTEL_EXPORTER_OTLP_TRACES_PROTOCOL OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
		Help: "http/protobuf (the default), http/json (only traces) or grpc."},
	{Name: "OTEL_SDK_DISABLED", Help: "true: no traces and no metrics, including /metrics."},
	{Name: "OTEL_BSP_MAX_QUEUE_SIZE",
		Help: "Maximum number of spans that wait to be sent; others are dropped and counted."},
	{Name: "OTEL_*",
		Help: "All other variables that the OpenTelemetry SDK for Go reads: service name, resource attributes, sampler, headers, certificates, time-outs, limits."},
	{Name: "HTTP_PROXY HTTPS_PROXY NO_PROXY", Help: "The operator's proxy on the way to the API."},
	{Name: "XDG_RUNTIME_DIR", Help: "The user's directory for the default of --token-file."},
	{Name: "VIRTUAL_ENV PATH",
		Help: "Where the sidecar searches for Pythons: first the virtual environment, then .venv in the current folder, then PATH, /usr/local/bin, /usr/bin and /opt."},
	{Name: "GOMEMLIMIT",
		Help: "Memory limit of the Go runtime in bytes. If unset, serve and worker use half of the memory limit of their cgroup."},
	{Name: "NO_COLOR", Help: "Any value: no colours on a terminal."},
}

// grammar returns the parser of the command line.
func grammar(t *testing.T) *kong.Kong {
	t.Helper()
	parser, err := newParser(new(commandLine), streams{stdout: io.Discard, stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	return parser
}

// TestReferenceIsUpToDate: the reference page of kizen-sidecar lists the commands and flags that its parser has.
func TestReferenceIsUpToDate(t *testing.T) {
	reference.Check(t, "../../docs/reference/kizen-sidecar.md", grammar(t).Model, withoutFlag)
}

// TestEveryCommandsHelpHasExamples: the help of each command shows the command itself in an example.
func TestEveryCommandsHelpHasExamples(t *testing.T) {
	for _, command := range grammar(t).Model.Leaves(true) {
		if !strings.Contains(command.Detail, "Examples:\n  "+command.FullPath()) {
			t.Errorf("the help of %s has no example", command.FullPath())
		}
	}
}

// TestReferenceListsEveryVariableThatIsLookedUp: the reference page lists the environment variables that any package of
// ours reads without a flag.
func TestReferenceListsEveryVariableThatIsLookedUp(t *testing.T) {
	ours := reference.Variable{Name: "KIZEN_SANDBOX_STAGE"} // passed between the sandbox's own processes
	undocumented, err := reference.Undocumented(append(withoutFlag, ours), ".", "../../internal", "../../minter",
		"../../proxy", "../../policy", "../../runner", "../../telemetry")
	if err != nil || len(undocumented) > 0 {
		t.Errorf("the reference does not list %q (%v); add them to withoutFlag, and run make docs", undocumented, err)
	}
}
