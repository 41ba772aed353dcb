package telemetry

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// urlPartLimit is the maximal length of a recorded path or query.
const urlPartLimit = 1024

// Call is a step's call to the API in progress.
type Call struct {
	// Traceparent and Tracestate are the headers that the API gets instead of the step's.
	Traceparent, Tracestate string

	span trace.Span
}

// CallEnd is the result of a call.
type CallEnd struct {
	Method   string
	Path     string // relative to the API root
	Query    string // its values are not recorded
	Duration time.Duration
	Status   int   // of the response to the step; zero if it got none
	Sent     int64 // bytes of the request's body
	Received int64 // bytes of the response's body
	// Error says why the API's response did not arrive whole, as one word of a closed set. It is empty if the whole
	// response arrived, whatever its status.
	Error    string
	Policy   string // the deciding policy; empty if none was evaluated
	Denied   bool   // the policy denied the call
	Retried  bool   // the request was sent again
	Protocol string // version of HTTP spoken with the API; empty means 1.1
}

// StartCall begins the client span of a call. Its parent is the span in the step's headers. If those belong to another
// trace, the parent is the step's own span, and the call's span has a link to the other trace. StartCall returns nil if
// traces are off; the step's headers may then pass unchanged. [Execution.EndCall] ends the span.
func (e *Execution) StartCall(method, traceparent, tracestate string) *Call {
	if e.root == nil {
		return nil
	}
	parent := e.step
	sent := headers{traceparent, tracestate}.parse()
	if sent.IsValid() && sent.TraceID() == e.step.TraceID() {
		// The step must not decide whether the trace is sampled.
		parent = e.step.WithSpanID(sent.SpanID())
		if sent.TraceState().Len() > 0 {
			parent = parent.WithTraceState(sent.TraceState())
		}
	}
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient)}
	if parent.SpanID() == e.step.SpanID() {
		e.called.Store(true)
		if sent.IsValid() && sent.TraceID() != e.step.TraceID() {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: sent}))
		}
	}
	ctx := trace.ContextWithSpanContext(context.Background(), parent)
	_, span := e.telemetry.tracer.Start(ctx, knownMethod(method), options...)
	h := headersOf(span.SpanContext())
	return &Call{Traceparent: h.traceparent, Tracestate: h.tracestate, span: span}
}

// EndCall ends a call and counts it. call is the result of StartCall, or nil for a call that was refused before it.
func (e *Execution) EndCall(call *Call, end CallEnd) {
	e.telemetry.metrics.call(e.ctx, e.server, &end)
	if call == nil {
		return
	}
	defer call.span.End()
	if !call.span.IsRecording() {
		return
	}
	attributes := make([]attribute.KeyValue, 0, 14)
	add := func(kv attribute.KeyValue) { attributes = append(attributes, kv) }
	method := knownMethod(end.Method)
	add(semconv.HTTPRequestMethodKey.String(method))
	if method != end.Method {
		add(semconv.HTTPRequestMethodOriginal(truncate(Redact(end.Method), 64)))
	}
	add(semconv.URLFull(e.server.url(end.Path, end.Query)))
	add(semconv.ServerAddress(e.server.host))
	add(semconv.ServerPort(e.server.port))
	add(semconv.HTTPRequestBodySize(int(end.Sent)))
	add(semconv.HTTPResponseBodySize(int(end.Received)))
	if end.Protocol == "" {
		end.Protocol = "1.1"
	}
	add(semconv.NetworkProtocolVersion(end.Protocol))
	if end.Status != 0 {
		add(semconv.HTTPResponseStatusCode(end.Status))
	}
	if end.Retried {
		add(semconv.HTTPRequestResendCount(1))
	}
	if end.Policy != "" {
		add(attribute.String("kizen.policy.decision", end.decision()))
		add(attribute.String("kizen.policy.id", end.Policy))
	}
	if failure := end.errorType(); failure != "" {
		add(semconv.ErrorTypeKey.String(failure))
		call.span.SetStatus(codes.Error, end.Error)
	}
	call.span.SetAttributes(attributes...)
}

func (end *CallEnd) decision() string {
	if end.Denied {
		return "deny"
	}
	return "allow"
}

// errorType returns why a call failed, or "" if it succeeded. A status of 400 or more is a failure of the client span.
func (end *CallEnd) errorType() string {
	switch {
	case end.Error != "":
		return end.Error
	case end.Status >= 400:
		return strconv.Itoa(end.Status)
	}
	return ""
}

// knownMethod returns method, or the placeholder of the semantic conventions for an unknown method.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete, http.MethodHead,
		http.MethodOptions, http.MethodTrace, http.MethodConnect:
		return method
	}
	return "_OTHER"
}

// url returns url.full without query values.
func (s server) url(path, query string) string {
	full := s.root + Redact(truncate(path, urlPartLimit))
	if query == "" {
		return full
	}
	return full + "?" + maskQuery(query)
}

// maskQuery keeps the names of a query's parameters and masks their values. A parameter without "=" counts as a value.
func maskQuery(query string) string {
	var masked strings.Builder
	for parameter := range strings.FieldsFuncSeq(truncate(query, urlPartLimit),
		func(r rune) bool { return r == '&' || r == ';' }) {
		if masked.Len() > 0 {
			masked.WriteByte('&')
		}
		if name, _, found := strings.Cut(parameter, "="); found {
			masked.WriteString(Redact(name) + "=")
		}
		masked.WriteString("REDACTED")
	}
	return masked.String()
}
