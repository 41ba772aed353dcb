package telemetry

import (
	"context"
	"io"
	"log/slog"
	"net/http/httptest"
	"testing"
)

// call does what the proxy's hooks do for one call of a step.
func call(execution *Execution) {
	execution.EndCall(execution.StartCall("GET", "", ""), CallEnd{
		Method: "GET", Path: "/custom-objects", Query: "page=2", Status: 200, Received: 512, Policy: "default.calls",
	})
}

// BenchmarkCall compares a call without telemetry, with telemetry off, and with each signal on.
func BenchmarkCall(b *testing.B) {
	b.Run("none", func(b *testing.B) {
		for b.Loop() {
		}
	})
	for name, c := range map[string]struct {
		config Config
		traces bool
		parent string
	}{
		"off":       {},
		"metrics":   {config: Config{Prometheus: true}},
		"unsampled": {traces: true, parent: "00-" + callerTrace + "-" + callerSpan + "-00"},
		"traces":    {traces: true, parent: caller},
		"both":      {config: Config{Prometheus: true}, traces: true, parent: caller},
	} {
		b.Run(name, func(b *testing.B) {
			if c.traces {
				server := httptest.NewServer(&receiver{})
				defer server.Close()
				b.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", server.URL+"/v1/traces")
			}
			telemetry, err := Start(context.Background(), c.config)
			if err != nil {
				b.Fatal(err)
			}
			defer telemetry.Shutdown(context.Background())
			begin := info()
			begin.Traceparent = c.parent
			_, execution := telemetry.Execution(context.Background(), begin)
			b.ReportAllocs()
			for b.Loop() {
				call(execution)
			}
		})
	}
}

// BenchmarkExecution is one whole execution of six phases and one call.
func BenchmarkExecution(b *testing.B) {
	telemetry, err := Start(context.Background(), Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("off", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			execute(telemetry)
		}
	})
}

// BenchmarkLog compares the log line of an execution with and without redaction.
func BenchmarkLog(b *testing.B) {
	redacting, err := NewLogger(io.Discard, LogConfig{Format: "json"})
	if err != nil {
		b.Fatal(err)
	}
	for name, logger := range map[string]*slog.Logger{"plain": slog.New(slog.NewJSONHandler(io.Discard, nil)),
		"redacting": redacting} {
		b.Run(name, func(b *testing.B) {
			ctx := WithExecution(context.Background(), "7d444840-9dc0-11d1-b245-5ffdce74fad2")
			b.ReportAllocs()
			for b.Loop() {
				logger.InfoContext(ctx, "execution ended", "outcome", "ok", "step", "notify", "runtime", "python-3-13",
					"business_id", "1d444840-9dc0-11d1-b245-5ffdce74fad2", "duration_ms", 9.4, "calls", 3)
			}
		})
	}
}
