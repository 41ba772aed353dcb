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

// shutdownTimeout bounds Shutdown where its context does not.
const shutdownTimeout = 5 * time.Second

// Config says what describes this process, and what is on beside what the
// environment asks for.
type Config struct {
	// Service is service.name unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES
	// name another; Version is service.version.
	Service, Version string
	// Logger hears of settings that cannot be used, and of collectors that do
	// not answer, the latter once a minute at most. Default: discarded.
	Logger *slog.Logger
	// Prometheus keeps metrics for [Telemetry.Handler], whatever the
	// environment says of exporters.
	Prometheus bool
	// OneShot is for a process that ends with its one execution: an export is
	// tried once, since a second attempt would go unseen.
	OneShot bool
}

// Telemetry is the tracing and the metrics of this process.
type Telemetry struct {
	tracer     trace.Tracer // nil when traces are off
	metrics    *Metrics     // nil when metrics are off
	complaints *complaints
	handler    http.Handler
	queue      *spanQueue // nil when traces are off
	closers    []func(context.Context) error
	once       sync.Once
	closed     error
}

// Start starts what the environment asks for, by the OpenTelemetry
// specification's OTEL_* variables: OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER
// (otlp, none), OTEL_METRICS_EXPORTER (otlp, prometheus, none),
// OTEL_EXPORTER_OTLP_* (grpc, http/protobuf, and http/json of traces),
// OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_*,
// OTEL_METRIC_EXPORT_*, OTEL_SPAN_*. It differs in one default: an exporter
// that is not named is otlp only where an endpoint is, and none otherwise.
//
// A variable whose value makes no sense is named in the log and ignored, as the
// specification wants; an error means that this machine cannot export what it
// should. What was started must be ended with [Telemetry.Shutdown]. The
// libraries' own complaints are process-wide and go to the Logger of the last
// Start.
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
	t.complaints.quiet.Store(settings.nonsense)
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

// describe is this process as a resource. The environment has the last word.
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
		// The error quotes the variable, which only its author may see.
		config.Logger.Warn("OTEL_RESOURCE_ATTRIBUTES is not all understood; write key=value,key=value")
	}
	return res
}

// Metrics takes what is measured outside of an execution. It may be used
// whether or not metrics are on.
func (t *Telemetry) Metrics() *Metrics { return t.metrics }

// Handler serves the metrics to Prometheus, or 404 where they are not kept for it.
func (t *Telemetry) Handler() http.Handler { return t.handler }

// Tracing reports whether traces are on.
func (t *Telemetry) Tracing() bool { return t.tracer != nil }

// Shutdown sends what waits to be sent and ends every goroutine. It returns
// when ctx ends, or five seconds have passed where ctx has no deadline, with
// what was not sent given up; the error then says so, and is for the log
// alone. What is recorded afterwards is lost.
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
	why := "no metrics are kept for Prometheus here"
	if disabled {
		why += ": OTEL_SDK_DISABLED is true"
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, why, http.StatusNotFound) })
}
