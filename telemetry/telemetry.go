package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/resource"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// instrumentation is the scope of every span and metric.
const instrumentation = "github.com/kizen/kizen-sidecar/telemetry"

// shutdownTimeout limits Shutdown if its context has no deadline.
const shutdownTimeout = 5 * time.Second

// Config describes this process, and enables features in addition to the environment's settings.
type Config struct {
	// Service is service.name, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES override it; Version is
	// service.version.
	Service, Version string
	// Logger logs invalid settings, and failing collectors at most once a minute. If nil, logging is disabled.
	Logger *slog.Logger
	// Prometheus keeps metrics for [Telemetry.Handler], whatever exporters the environment sets.
	Prometheus bool
	// OneShot is for a process that ends with its one execution: it tries each export only once, because the process
	// does not wait for retries.
	OneShot bool
}

// Telemetry is the tracing and the metrics of this process.
type Telemetry struct {
	tracer     trace.Tracer // nil if traces are off
	metrics    *Metrics     // nil when metrics are off
	complaints *complaints
	handler    http.Handler
	queue      *spanQueue // nil if traces are off
	closers    []func(context.Context) error
	once       sync.Once
	closed     error
}

// Start starts telemetry as configured by the OpenTelemetry specification's OTEL_* variables: OTEL_SDK_DISABLED,
// OTEL_TRACES_EXPORTER (otlp, none), OTEL_METRICS_EXPORTER (otlp, prometheus, none), OTEL_EXPORTER_OTLP_* (grpc,
// http/protobuf, and http/json of traces), OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
// OTEL_BSP_*, OTEL_METRIC_EXPORT_*, OTEL_SPAN_*. It differs from the specification in one default: if no exporter is
// named, it is otlp if an endpoint is set, and none otherwise. Start logs the name of a variable with an invalid value
// and ignores it, as the specification requires. An error means that this machine cannot export. The caller must call
// [Telemetry.Shutdown]. The libraries' own messages are process-wide and go to the Logger of the last Start.
func Start(ctx context.Context, config Config) (*Telemetry, error) {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	settings := readSettings(os.Getenv, config.Logger)
	t := &Telemetry{complaints: newComplaints(config.Logger, settings.secrets), handler: metricsOff(settings.disabled)}
	prometheus := settings.prometheus || config.Prometheus && !settings.disabled
	if settings.traces == "" && settings.metrics == "" && !prometheus {
		return t, nil
	}
	t.complaints.quiet.Store(settings.invalid)
	defer t.complaints.quiet.Store(false)
	otel.SetErrorHandler(t.complaints)
	otel.SetLogger(logr.FromSlogHandler(sdkLog{t.complaints}))
	res := describe(ctx, config)
	var errs []error
	if settings.traces != "" {
		exporter, err := newSpanExporter(ctx, settings.traces, config.OneShot)
		if err == nil {
			t.trace(exporter, res)
		}
		errs = append(errs, err)
	}
	if settings.metrics != "" || prometheus {
		errs = append(errs, t.measure(ctx, settings.metrics, prometheus, config.OneShot, res))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(fmt.Errorf("start telemetry: %w", err), t.Shutdown(ctx))
	}
	return t, nil
}

// describe returns this process as a resource. The environment overrides config.
func describe(ctx context.Context, config Config) *resource.Resource {
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			semconv.ServiceName(config.Service), semconv.ServiceVersion(config.Version),
			semconv.ServiceInstanceID(uuid.NewString()),
		),
		resource.WithFromEnv(),
	)
	if err != nil {
		// The error quotes the value, which must not be logged.
		config.Logger.Warn("OTEL_RESOURCE_ATTRIBUTES is partly invalid; write key=value,key=value")
	}
	return res
}

// Metrics returns the metrics that belong to no execution. It may be used whether or not metrics are on.
func (t *Telemetry) Metrics() *Metrics { return t.metrics }

// Handler serves the metrics to Prometheus, or 404 if they are not kept.
func (t *Telemetry) Handler() http.Handler { return t.handler }

// Tracing reports whether traces are on.
func (t *Telemetry) Tracing() bool { return t.tracer != nil }

// Shutdown exports queued data and ends every goroutine. When ctx ends, or after five seconds if ctx has no deadline,
// it drops the rest and returns an error, which is only for the log. Data recorded afterwards is lost.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	t.once.Do(func() {
		if _, bounded := ctx.Deadline(); !bounded {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, shutdownTimeout)
			defer cancel()
		}
		errs := make([]error, len(t.closers))
		var wait routine.Group
		for i, close := range t.closers {
			wait.Go(func() { errs[i] = close(ctx) })
		}
		wait.Wait()
		if err := errors.Join(errs...); err != nil {
			t.closed = fmt.Errorf("send the last telemetry: %w", err)
		}
	})
	return t.closed
}

func metricsOff(disabled bool) http.Handler {
	why := "metrics for Prometheus are not enabled"
	if disabled {
		why += ": OTEL_SDK_DISABLED is true"
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, why, http.StatusNotFound) })
}
