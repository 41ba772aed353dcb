package observed

import (
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// TestTheTraceOfAQueuedExecutionBeginsWhereItWasEnqueued: the task's headers contain the time of enqueuing and the
// trace.
func TestTheTraceOfAQueuedExecutionBeginsWhereItWasEnqueued(t *testing.T) {
	store, c, upstream := redistest.Start(t), startCollector(t), startAPI(t)
	payload, err := json.Marshal(map[string]any{
		"runtime": "python-3-13", "user_script": "kizen.api.get('/custom-objects')", "execution_id": "e-1",
		"business_id": "b-1", "user_id": "u-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	enqueued := time.Now().Add(-time.Minute)
	client := redis.NewClient(&redis.Options{Addr: store.Addr})
	defer func() { _ = client.Close() }()
	task := asynq.NewTaskWithHeaders(wire.ExecutionTask, payload, map[string]string{
		"traceparent": "00-" + callerTrace + "-" + callerSpan + "-01", "tracestate": "vendor=1",
		wire.EnqueuedAt: enqueued.Format(time.RFC3339Nano),
	})
	if _, err := asynq.NewClientFromRedisClient(client).EnqueueContext(t.Context(), task, asynq.Queue("kizen")); err != nil {
		t.Fatal(err)
	}
	w := sidecartest.StartService(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.http}, "worker", "--warm", "0",
		"--redis-url", store.URL(), "--api-root", upstream.URL+"/api")
	sidecartest.WaitFor(t, func() bool {
		return client.HGet(t.Context(), "kizen:{b-1}:run:e-1", "outcome").Val() == "ok"
	})
	if code := w.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	want := map[string]int{
		callerSpan + " > execution (Consumer, Unset)": 1,
		"execution > queue (Internal, Unset)":         1,
		"execution > mint (Internal, Unset)":          1,
		"execution > spawn (Internal, Unset)":         1,
		"execution > import (Internal, Unset)":        1,
		"execution > step (Internal, Unset)":          1,
		"execution > teardown (Internal, Unset)":      1,
		"execution > revoke (Internal, Unset)":        1,
		"step > GET (Client, Unset)":                  1,
	}
	spans := c.of(callerTrace)
	if got := tree(spans); !maps.Equal(got, want) {
		t.Errorf("spans = %v\nwant    %v", got, want)
	}
	began := map[string]time.Time{}
	for _, span := range spans {
		began[span.Name()] = span.StartTimestamp().AsTime()
		if span.Name() == "queue" && span.EndTimestamp().AsTime().Sub(enqueued) < time.Minute {
			t.Errorf("the wait ended at %v, before a worker took it", span.EndTimestamp().AsTime())
		}
		if span.TraceState().AsRaw() != "vendor=1" {
			t.Errorf("%s has tracestate %q", span.Name(), span.TraceState().AsRaw())
		}
	}
	if !began["queue"].Equal(enqueued) || !began["execution"].Equal(enqueued) {
		t.Errorf("enqueued at %v, and the spans begin at %v", enqueued, began)
	}
	if counts := c.counts(t, "kizen.execution.phase.duration", "kizen.execution.phase"); counts["queue"] != 1 ||
		counts["mint"] != 1 {
		t.Errorf("phases %v", counts)
	}
}
