package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"testing/slogtest"

	"go.opentelemetry.io/otel/trace"
)

func TestUnknownLogSettingsAreRefusedByName(t *testing.T) {
	for _, config := range []LogConfig{{Level: "loud"}, {Format: "xml"}} {
		_, err := NewLogger(&bytes.Buffer{}, config)
		if err == nil || !strings.Contains(err.Error(), config.Level+config.Format) {
			t.Errorf("NewLogger(%+v) error = %v", config, err)
		}
	}
}

func TestRecordsBelowTheLogLevelAreDropped(t *testing.T) {
	var out bytes.Buffer
	logger, err := NewLogger(&out, LogConfig{Level: "warn"})
	if err != nil {
		t.Fatal(err)
	}
	logger.Info("quiet")
	logger.Warn("heard")
	if strings.Contains(out.String(), "quiet") || !strings.Contains(out.String(), "heard") {
		t.Errorf("log = %s", out.String())
	}
}

// jsonLog returns a logger, and a function that returns its records as maps.
func jsonLog(t *testing.T) (*slog.Logger, func() []map[string]any) {
	t.Helper()
	var out bytes.Buffer
	logger, err := NewLogger(&out, LogConfig{Level: "debug", Format: "json"})
	if err != nil {
		t.Fatal(err)
	}
	return logger, func() (records []map[string]any) {
		for line := range strings.Lines(out.String()) {
			var record map[string]any
			if err := json.Unmarshal([]byte(line), &record); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			records = append(records, record)
		}
		return records
	}
}

func TestLogFollowsTheRulesOfSlog(t *testing.T) {
	var records func() []map[string]any
	slogtest.Run(t, func(t *testing.T) slog.Handler {
		logger, written := jsonLog(t)
		records = written
		return logger.Handler()
	}, func(*testing.T) map[string]any { return records()[0] })
}

func TestRecordsNameTheTraceAndTheExecutionOfTheirContext(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	span := headers{traceparent: "00-" + id + "-00f067aa0ba902b7-01"}.parse()
	ctx := WithExecution(trace.ContextWithSpanContext(context.Background(), span), "ex-1")
	for name, write := range map[string]func(*slog.Logger){
		"plain": func(l *slog.Logger) { l.InfoContext(ctx, "x") },
		"in a group": func(l *slog.Logger) {
			l.WithGroup("g").With("a", 1).WithGroup("h").InfoContext(ctx, "x", "b",
				2)
		},
		"bound":           func(l *slog.Logger) { LoggerFor(ctx, l).Info("x") },
		"bound and given": func(l *slog.Logger) { LoggerFor(ctx, l).InfoContext(ctx, "x") },
		"named by hand":   func(l *slog.Logger) { l.InfoContext(ctx, "x", "execution_id", "ex-1") },
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			logger, err := NewLogger(&out, LogConfig{Format: "json"})
			if err != nil {
				t.Fatal(err)
			}
			write(logger)
			var record map[string]any
			if err := json.Unmarshal(out.Bytes(), &record); err != nil {
				t.Fatal(err)
			}
			if record["trace_id"] != id || record["execution_id"] != "ex-1" {
				t.Errorf("record = %s", out.String())
			}
			if n := strings.Count(out.String(), "execution_id"); n != 1 {
				t.Errorf("execution_id occurs %d times in %s", n, out.String())
			}
		})
	}
}

func TestRecordsOutsideAnExecutionHaveNoIDs(t *testing.T) {
	logger, written := jsonLog(t)
	logger.InfoContext(context.Background(), "x")
	record := written()[0]
	if record["trace_id"] != nil || record["execution_id"] != nil {
		t.Errorf("record = %v", record)
	}
}

func TestGroupsKeepTheirShape(t *testing.T) {
	logger, written := jsonLog(t)
	base := logger.WithGroup("g").With("a", "1")
	base.With("b", "2").Info("x")
	base.With("c", "3").Info("x")
	one, _ := written()[0]["g"].(map[string]any)
	two, _ := written()[1]["g"].(map[string]any)
	if one["a"] != "1" || one["b"] != "2" || one["c"] != nil || two["b"] != nil || two["c"] != "3" {
		t.Errorf("groups = %v, %v", one, two)
	}
}
