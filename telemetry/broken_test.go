package telemetry

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
)

// silent returns an address that accepts connections and never answers.
func silent(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return "http://" + listener.Addr().String()
}

// refusing returns an address on which no process listens.
func refusing(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return "http://" + listener.Addr().String()
}

// failing answers every export with a status, and echoes the request.
func failing(t *testing.T, status int) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		io.WriteString(w, "your key is "+r.Header.Get("X-Team")+strings.Repeat("x", 1<<20))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestABrokenCollectorIsGivenUpAndMentionedOnce(t *testing.T) {
	for name, c := range map[string]struct {
		endpoint func(*testing.T) string
		protocol string
		oneShot  bool
		inTime   bool // Shutdown ends before its deadline
	}{
		"refusing":                {refusing, "http/protobuf", true, true},
		"refusing, served":        {refusing, "http/protobuf", false, true},
		"refusing, gRPC":          {refusing, "grpc", true, true},
		"refusing, gRPC, served":  {refusing, "grpc", false, false},
		"hanging":                 {silent, "http/protobuf", true, false},
		"hanging, gRPC":           {silent, "grpc", true, false},
		"failing":                 {func(t *testing.T) string { return failing(t, 500) }, "http/protobuf", false, true},
		"unavailable":             {func(t *testing.T) string { return failing(t, 503) }, "http/protobuf", true, true},
		"unavailable, and served": {func(t *testing.T) string { return failing(t, 503) }, "http/protobuf", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": c.endpoint(t), "OTEL_EXPORTER_OTLP_PROTOCOL": c.protocol,
				"OTEL_EXPORTER_OTLP_HEADERS": "x-team=" + plain,
			})
			telemetry, log := started(t, Config{OneShot: c.oneShot})
			for range 10 {
				execute(telemetry)
			}
			limit := time.Minute
			if !c.inTime {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			err := telemetry.Shutdown(ctx)
			if c.inTime && err != nil || !c.inTime && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Shutdown error = %v", err)
			}
			if sent, failed := telemetry.queue.exported.Load(), telemetry.queue.failed.Load(); sent != 0 ||
				failed != 10*spansEach {
				t.Errorf("%d spans exported, %d failed", sent, failed)
			}
			if n := strings.Count(log.String(), "not exported"); n != 1 {
				t.Errorf("the collector is mentioned %d times: %s", n, log)
			}
			if strings.Contains(log.String(), plain) || len(log.String()) > 2048 {
				t.Errorf("the log repeats the collector's response: %.3000s", log)
			}
		})
	}
}

func TestAHangingCollectorNeitherBlocksNorFillsMemory(t *testing.T) {
	for name, milliseconds := range map[string]string{"forever": "", "until each export is given up": "1"} {
		t.Run(name, func(t *testing.T) { hangingCollector(t, milliseconds) })
	}
}

// hangingCollector exports to a collector that never answers, and limits each batch to that many milliseconds.
func hangingCollector(t *testing.T, milliseconds string) {
	environment(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": silent(t), "OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
		"OTEL_BSP_EXPORT_TIMEOUT": milliseconds,
	})
	telemetry, _ := started(t, Config{})
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	for range 100 {
		execute(telemetry)
	}
	before, executions := heap(), int64(3000)
	for range executions {
		execute(telemetry) // this would not end if exporting blocked
	}
	if grown := int64(heap()) - int64(before); grown > 2<<20 {
		t.Errorf("the heap grew by %d bytes over %d executions", grown, executions)
	}
	q := telemetry.queue
	if waiting := q.waiting.Load(); waiting > 100 {
		t.Errorf("%d spans wait", waiting)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := telemetry.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown error = %v", err)
	}
	// The exporter has stopped, so no batch is in progress.
	waiting, dropped, failed, exported := q.waiting.Load(), q.dropped.Load(), q.failed.Load(), q.exported.Load()
	if waiting+dropped+failed != spansEach*(executions+100) || dropped == 0 || exported != 0 {
		t.Errorf("of %d spans %d wait, %d were dropped, %d failed, %d were exported",
			spansEach*(executions+100), waiting, dropped, failed, exported)
	}
}

func TestDataRecordedAfterShutdownIsDroppedSilently(t *testing.T) {
	server := httptest.NewServer(&receiver{})
	defer server.Close()
	environment(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL})
	telemetry, log := started(t, Config{Prometheus: true})
	for range 2 {
		if err := telemetry.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	execute(telemetry)
	telemetry.Metrics().Watch(func() State { return State{} })()
	if log.String() != "" {
		t.Errorf("log = %s", log)
	}
}

func TestComplaintsAreLoggedOnceAMinute(t *testing.T) {
	var log lines
	logger, err := NewLogger(&log, LogConfig{Format: "json"})
	if err != nil {
		t.Fatal(err)
	}
	c, now := newComplaints(logger, nil), noon
	c.now = func() time.Time { return now }
	for range 5 {
		c.Handle(errors.New("down"))
		now = now.Add(59 * time.Second / 4)
	}
	now = noon.Add(time.Minute)
	c.Handle(errors.New("still down"))
	if strings.Count(log.String(), "\n") != 2 || !strings.Contains(log.String(), `"suppressed":4`) {
		t.Errorf("log = %s", &log)
	}
}
