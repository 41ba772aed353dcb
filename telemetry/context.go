package telemetry

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// headers holds the two headers of the W3C Trace Context recommendation.
type headers struct{ traceparent, tracestate string }

// Get, Set and Keys implement propagation.TextMapCarrier.
func (h *headers) Get(key string) string {
	switch key {
	case "traceparent":
		return h.traceparent
	case "tracestate":
		return h.tracestate
	}
	return ""
}

func (h *headers) Set(key, value string) {
	switch key {
	case "traceparent":
		h.traceparent = value
	case "tracestate":
		h.tracestate = value
	}
}

func (*headers) Keys() []string { return []string{"traceparent", "tracestate"} }

// parse returns the span context in the headers; it is invalid if they do not follow the recommendation.
func (h headers) parse() trace.SpanContext {
	if h.traceparent == "" {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), &h))
}

// headersOf returns the headers for span; they are empty if span is invalid.
func headersOf(span trace.SpanContext) (h headers) {
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), span), &h)
	return h
}

// reservedID is the context key of a span ID that was handed out before its span begins.
type reservedID struct{}

// spanIDs generates random IDs, except for a span whose ID is in its context.
type spanIDs struct{}

// NewIDs implements sdktrace.IDGenerator.
func (spanIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	var id trace.TraceID
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id, spanIDs{}.NewSpanID(ctx, id)
}

// NewSpanID implements sdktrace.IDGenerator.
func (spanIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	if id, ok := ctx.Value(reservedID{}).(trace.SpanID); ok {
		return id
	}
	return newSpanID()
}

func newSpanID() (id trace.SpanID) {
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}

var _ sdktrace.IDGenerator = spanIDs{}

// executionID is the context key of an execution's ID.
type executionID struct{}

// WithTrace adds the trace of a W3C traceparent to a context. Records logged with it have trace_id, unless the
// traceparent is invalid.
func WithTrace(ctx context.Context, traceparent string) context.Context {
	return trace.ContextWithRemoteSpanContext(ctx, headers{traceparent: traceparent}.parse())
}

// WithExecution adds an execution's ID to a context. Records logged with it have execution_id.
func WithExecution(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, executionID{}, id)
}
