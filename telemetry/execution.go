package telemetry

import (
	"context"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/phases"
)

// valueLimit is the maximal length of a span attribute, in bytes, unless OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT is set.
// It limits the memory of the queue.
const valueLimit = 2048

// ExecutionInfo describes an execution at its start. It contains no secrets.
type ExecutionInfo struct {
	ID, Business, AccountType string
	Step                      string // the step's name
	Runtime                   string
	API                       *url.URL // the API root that its calls go to
	// Traceparent and Tracestate are the headers of the request for it. Invalid values are ignored.
	Traceparent, Tracestate string
	Server                  bool      // requested over HTTP
	Consumer                bool      // taken from a queue
	Began                   time.Time // when it was requested; zero means now
}

// Execution records the telemetry of one execution. Only one goroutine may call Phase and End; the other methods are
// safe for concurrent use.
type Execution struct {
	telemetry *Telemetry
	ctx       context.Context // contains root, for metrics and children
	root      trace.Span      // nil if traces are off
	step      trace.SpanContext
	server    server
	began     time.Time
	ran       span        // the phase [phases.Step]
	called    atomic.Bool // a span has the step's span as its parent
}

// span is a period of time.
type span struct{ began, ended time.Time }

// Ending says how an execution ended. It contains no text from the step, because exceptions may contain anything.
type Ending struct {
	Outcome outcomes.Outcome
	// Exception is the class of the step's exception, such as ValueError. Text that is not a class name is dropped.
	Exception  string
	CPU        time.Duration
	PeakMemory int64  // bytes; zero if unknown
	ExitCode   int    // negative if unknown
	Signal     string // that killed the step's process, if any
}

// trace starts tracing with exporter.
func (t *Telemetry) trace(exporter sdktrace.SpanExporter, res *resource.Resource) {
	t.queue = newSpanQueue(exporter, t.complaints)
	limits := sdktrace.NewSpanLimits()
	if limits.AttributeValueLengthLimit < 0 {
		limits.AttributeValueLengthLimit = valueLimit
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithResource(res), sdktrace.WithIDGenerator(spanIDs{}),
		sdktrace.WithRawSpanLimits(limits), sdktrace.WithSpanProcessor(t.queue),
	)
	t.tracer = provider.Tracer(instrumentation)
	t.closers = append(t.closers, t.queue.Shutdown)
}

// Execution begins an execution. Its span continues the trace of its caller, or of ctx. Use the returned context for
// logs and further work: it contains the span and the execution's ID. The caller must call End.
func (t *Telemetry) Execution(ctx context.Context, info ExecutionInfo) (context.Context, *Execution) {
	if info.Began.IsZero() {
		info.Began = time.Now()
	}
	ctx = WithExecution(ctx, info.ID)
	if caller := (headers{info.Traceparent, info.Tracestate}).parse(); caller.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, caller)
	}
	e := &Execution{telemetry: t, server: newServer(info.API), began: info.Began}
	if t.tracer != nil {
		kind := trace.SpanKindInternal
		switch {
		case info.Server:
			kind = trace.SpanKindServer
		case info.Consumer:
			kind = trace.SpanKindConsumer
		}
		ctx, e.root = t.tracer.Start(ctx, "execution", trace.WithSpanKind(kind), trace.WithTimestamp(info.Began),
			trace.WithAttributes(
				attribute.String("kizen.execution.id", info.ID), attribute.String("kizen.business.id", info.Business),
				attribute.String("kizen.account.type", info.AccountType), attribute.String("kizen.step.name", info.Step),
				attribute.String("kizen.step.runtime", info.Runtime),
			))
		e.step = e.root.SpanContext().WithSpanID(newSpanID())
	} else {
		e.step = trace.SpanContextFromContext(ctx)
	}
	e.ctx = ctx
	return ctx, e
}

// StepContext returns the trace context for the step's environment: the span of the later phase [phases.Step], or the
// caller's if traces are off. Both are empty if there is none.
func (e *Execution) StepContext() (traceparent, tracestate string) {
	h := headersOf(e.step)
	return h.traceparent, h.tracestate
}

// Phase records a completed phase of the execution; err is its error. End records the span of [phases.Step], because
// only then is its outcome known.
func (e *Execution) Phase(name phases.Phase, began, ended time.Time, err error) {
	e.telemetry.metrics.phase(e.ctx, string(name), ended.Sub(began))
	if name == phases.Step {
		e.ran = span{began, ended}
		return
	}
	if e.root == nil {
		return
	}
	_, phase := e.telemetry.tracer.Start(e.ctx, string(name), trace.WithTimestamp(began))
	if err != nil {
		class := errorType(err)
		phase.SetStatus(codes.Error, brief(err.Error()))
		phase.SetAttributes(semconv.ErrorTypeKey.String(class))
	}
	phase.End(trace.WithTimestamp(ended))
}

// End ends the execution's span and counts the execution.
func (e *Execution) End(ending Ending) {
	now := time.Now()
	e.telemetry.metrics.execution(e.ctx, string(ending.Outcome), now.Sub(e.began))
	if e.root == nil {
		return
	}
	failed, attributes := ending.describe()
	if step, ended := e.stepSpan(now); step != nil {
		if failed {
			step.SetStatus(codes.Error, string(ending.Outcome))
			step.SetAttributes(semconv.ErrorTypeKey.String(string(ending.Outcome)))
			step.AddEvent(ending.event(), trace.WithTimestamp(ended), trace.WithAttributes(attributes...))
		}
		step.End(trace.WithTimestamp(ended))
	} else if failed {
		e.root.AddEvent(ending.event(), trace.WithTimestamp(now), trace.WithAttributes(attributes...))
	}
	e.root.SetAttributes(attributes...)
	if failed {
		e.root.SetStatus(codes.Error, string(ending.Outcome))
		e.root.SetAttributes(semconv.ErrorTypeKey.String(string(ending.Outcome)))
	}
	e.root.End(trace.WithTimestamp(now))
}

// stepSpan begins the span whose ID the step was given, and returns its end time. It returns nil if the step never ran.
func (e *Execution) stepSpan(now time.Time) (trace.Span, time.Time) {
	if e.ran.began.IsZero() {
		if !e.called.Load() {
			return nil, now
		}
		e.ran = span{e.began, now} // the spans of its calls need a parent
	}
	ctx := context.WithValue(e.ctx, reservedID{}, e.step.SpanID())
	_, step := e.telemetry.tracer.Start(ctx, string(phases.Step), trace.WithTimestamp(e.ran.began))
	return step, e.ran.ended
}

// event returns the event name of the semantic conventions for an exception, and the outcome for other failures.
func (e Ending) event() string {
	if e.Exception != "" {
		return semconv.ExceptionEventName
	}
	return string(e.Outcome)
}

// isClass reports whether name can be the name of a Python class, with or without its module.
func isClass(name string) bool {
	for i, r := range name {
		switch {
		case r == '_', 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z':
		case i > 0 && (r == '.' || '0' <= r && r <= '9'):
		default:
			return false
		}
	}
	return name != "" && len(name) <= 100
}

func (e *Ending) describe() (failed bool, attributes []attribute.KeyValue) {
	if !isClass(e.Exception) {
		e.Exception = ""
	}
	attributes = append(attributes, attribute.String("kizen.execution.outcome", string(e.Outcome)))
	if e.Exception != "" {
		attributes = append(attributes, semconv.ExceptionType(e.Exception))
	}
	if e.CPU > 0 {
		attributes = append(attributes, attribute.Float64("kizen.execution.cpu.time", e.CPU.Seconds()))
	}
	if e.PeakMemory > 0 {
		attributes = append(attributes, attribute.Int64("kizen.execution.memory.peak", e.PeakMemory))
	}
	if e.ExitCode >= 0 {
		attributes = append(attributes, semconv.ProcessExitCode(e.ExitCode))
	}
	if e.Signal != "" {
		attributes = append(attributes, attribute.String("kizen.execution.signal", e.Signal))
	}
	return e.Outcome.Failed(), attributes
}

// server is the API that an execution calls.
type server struct {
	root string // the API root, as a URL prefix
	host string
	port int
}

func newServer(root *url.URL) server {
	if root == nil {
		return server{}
	}
	s := server{root: root.Scheme + "://" + root.Host + root.EscapedPath(), host: root.Hostname()}
	if s.port, _ = strconv.Atoi(root.Port()); s.port == 0 {
		s.port = map[string]int{"https": 443, "http": 80}[root.Scheme]
	}
	return s
}
