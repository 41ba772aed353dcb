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

// urlPartLimit is how much of a path or a query is kept.
const urlPartLimit = 1024

// Call is a call of the step to the API that is under way.
type Call struct {
	// Traceparent and Tracestate are the headers that the API gets in place of
	// the step's own.
	Traceparent, Tracestate string

	span trace.Span
}

// CallEnd is what became of a call.
type CallEnd struct {
	Method   string
	Path     string // relative to the API root
	Query    string // its values are not kept
	Duration time.Duration
	Status   int   // what the step was answered; zero when it got nothing
	Sent     int64 // bytes of the request's body
	Received int64 // bytes of the answer's body
	// Error says why the API's answer did not arrive whole, in one word of a
	// closed set; empty when it did, whatever its status.
	Error    string
	Policy   string // the policy that decided; empty when none was asked
	Denied   bool   // what it decided
	Retried  bool   // sent a second time
	Protocol string // version of HTTP spoken with the API; empty means 1.1
}

// StartCall begins the client span of a call, below the span whose context the
// step sent with it, or below the step's own, with a link, where that
// belongs to another trace. It is nil when traces are off: the step's headers may pass as they
// are. [Execution.EndCall] ends it.
func (e *Execution) StartCall(method, traceparent, tracestate string) *Call {
	if e.root == nil {
		return nil
	}
	parent := e.step
	sent := headers{traceparent, tracestate}.parse()
	if sent.IsValid() && sent.TraceID() == e.step.TraceID() {
		// Whether the trace is sampled is not the step's to say.
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

// EndCall ends a call and counts it. call is what StartCall returned, or nil
// for a call that was refused before it.
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

// errorType is why a call failed, empty when it did not: an answer of 400 or
// more is a failure of the client's span.
func (end *CallEnd) errorType() string {
	switch {
	case end.Error != "":
		return end.Error
	case end.Status >= 400:
		return strconv.Itoa(end.Status)
	}
	return ""
}

// knownMethod is method, or what the semantic conventions say in place of one
// that a step made up.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete, http.MethodHead,
		http.MethodOptions, http.MethodTrace, http.MethodConnect:
		return method
	}
	return "_OTHER"
}

// url is url.full, with no value of the query.
func (s server) url(path, query string) string {
	full := s.root + Redact(truncate(path, urlPartLimit))
	if query == "" {
		return full
	}
	return full + "?" + maskQuery(query)
}

// maskQuery keeps the names of a query's parameters, and nothing of their
// values. A parameter without a value is one.
func maskQuery(query string) string {
	var masked strings.Builder
	for parameter := range strings.FieldsFuncSeq(truncate(query, urlPartLimit), func(r rune) bool { return r == '&' || r == ';' }) {
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
