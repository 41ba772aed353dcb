package telemetry

import (
	"context"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// An export with a transient failure is retried for a while, with a bounded queue.
const (
	retryFirst = time.Second
	retryLast  = 10 * time.Second
	retryTotal = 30 * time.Second
)

func newSpanExporter(ctx context.Context, protocol string, oneShot bool) (sdktrace.SpanExporter, error) {
	if protocol == protocolGRPC {
		return otlptracegrpc.New(ctx, otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
			Enabled: !oneShot, InitialInterval: retryFirst, MaxInterval: retryLast, MaxElapsedTime: retryTotal,
		}))
	}
	return otlptracehttp.New(ctx, otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
		Enabled: !oneShot, InitialInterval: retryFirst, MaxInterval: retryLast, MaxElapsedTime: retryTotal,
	}))
}

func newMetricExporter(ctx context.Context, protocol string, oneShot bool) (sdkmetric.Exporter, error) {
	if protocol == protocolGRPC {
		return otlpmetricgrpc.New(ctx, otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{
			Enabled: !oneShot, InitialInterval: retryFirst, MaxInterval: retryLast, MaxElapsedTime: retryTotal,
		}))
	}
	return otlpmetrichttp.New(ctx, otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{
		Enabled: !oneShot, InitialInterval: retryFirst, MaxInterval: retryLast, MaxElapsedTime: retryTotal,
	}))
}

// spanQueue exports spans with the SDK's batch processor. It also counts dropped spans, passes errors to complaints,
// and on shutdown waits for the processor's goroutine, whatever the collector does.
type spanQueue struct {
	sdktrace.SpanProcessor // the batch processor
	exporter               sdktrace.SpanExporter
	complaints             *complaints

	limit                     int64
	waiting                   atomic.Int64 // ended, but neither dropped nor exported yet
	exported, failed, dropped atomic.Int64
	running                   context.Context // ends when exports must stop
	giveUp                    context.CancelFunc
	done                      chan struct{} // closed when the batch processor's goroutine has returned
}

func newSpanQueue(exporter sdktrace.SpanExporter, complaints *complaints) *spanQueue {
	q := &spanQueue{exporter: exporter, complaints: complaints, limit: queueLimit(), done: make(chan struct{})}
	q.running, q.giveUp = context.WithCancel(context.Background())
	q.SpanProcessor = sdktrace.NewBatchSpanProcessor(countingExporter{q}, sdktrace.WithMaxQueueSize(int(q.limit)))
	return q
}

// queueLimit returns OTEL_BSP_MAX_QUEUE_SIZE, which the batch processor does not expose.
func queueLimit() int64 {
	limit, err := strconv.Atoi(os.Getenv("OTEL_BSP_MAX_QUEUE_SIZE"))
	if err != nil || limit <= 0 {
		return sdktrace.DefaultMaxQueueSize
	}
	return int64(limit)
}

// OnEnd queues a span, or drops it if the queue is full.
func (q *spanQueue) OnEnd(span sdktrace.ReadOnlySpan) {
	if !span.SpanContext().IsSampled() {
		return
	}
	if q.waiting.Add(1) > q.limit {
		q.waiting.Add(-1)
		q.dropped.Add(1)
		return
	}
	q.SpanProcessor.OnEnd(span)
}

// Shutdown exports queued spans until ctx ends, drops the rest, and returns when the queue's goroutine has ended.
func (q *spanQueue) Shutdown(ctx context.Context) error {
	err := q.SpanProcessor.Shutdown(ctx)
	q.giveUp()
	<-q.done
	return err
}

// countingExporter is the exporter for the batch processor.
type countingExporter struct{ *spanQueue }

// ExportSpans never returns an error, because no caller would handle it.
func (e countingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.running, routine.Safe(cancel))()
	err := e.exporter.ExportSpans(ctx, spans)
	e.waiting.Add(-int64(len(spans)))
	if err != nil {
		e.failed.Add(int64(len(spans)))
		e.complaints.report("spans were not exported; check the collector at OTEL_EXPORTER_OTLP_ENDPOINT", err)
		return nil
	}
	e.exported.Add(int64(len(spans)))
	return nil
}

// Shutdown is called by the batch processor's goroutine as its last action.
func (e countingExporter) Shutdown(ctx context.Context) error {
	defer close(e.done)
	return e.exporter.Shutdown(ctx)
}

// quietExporter passes errors to complaints, which the SDK would pass to its global handler.
type quietExporter struct {
	sdkmetric.Exporter
	complaints *complaints
}

func (e quietExporter) Export(ctx context.Context, metrics *metricdata.ResourceMetrics) error {
	if err := e.Exporter.Export(ctx, metrics); err != nil {
		e.complaints.report("metrics were not exported; check the collector at OTEL_EXPORTER_OTLP_ENDPOINT", err)
	}
	return nil
}
