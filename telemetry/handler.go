package telemetry

import (
	"context"
	"log/slog"
	"slices"

	"go.opentelemetry.io/otel/trace"

	"github.com/kizen/kizen-sidecar/internal/redacted"
)

// The attributes with a record's execution and trace.
const (
	traceKey     = "trace_id"
	executionKey = "execution_id"
)

// redactingHandler redacts every record before the next handler sees it, so that a mistake elsewhere does not become a
// leak, and adds the trace and the execution of the record's context. The next handler gets everything at the top
// level, because the IDs belong there, whatever group the logger is in.
type redactingHandler struct {
	next   slog.Handler
	groups []group
	bound  []string // the IDs that the logger already has
}

// group is a group of a logger, with the attributes bound inside it.
type group struct {
	name  string
	attrs []slog.Attr
}

func (h redactingHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h redactingHandler) Handle(ctx context.Context, record slog.Record) error {
	attrs := make([]slog.Attr, 0, record.NumAttrs())
	record.Attrs(func(attr slog.Attr) bool {
		attrs = append(attrs, attr)
		return true
	})
	secret := slices.ContainsFunc(h.groups, func(g group) bool { return redacted.Field(g.name) })
	attrs = redactAttrs(attrs, secret)
	bound := h.bound
	if len(h.groups) == 0 {
		bound = append(slices.Clip(bound), idsAmong(attrs)...)
	}
	for _, g := range slices.Backward(h.groups) {
		attrs = []slog.Attr{{Key: g.name, Value: slog.GroupValue(append(slices.Clip(g.attrs), attrs...)...)}}
	}
	clean := slog.NewRecord(record.Time, record.Level, Redact(record.Message), record.PC)
	clean.AddAttrs(ids(ctx, bound)...)
	clean.AddAttrs(attrs...)
	return h.next.Handle(ctx, clean)
}

func (h redactingHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	last := len(h.groups) - 1
	if last < 0 {
		h.bound = append(slices.Clip(h.bound), idsAmong(attrs)...)
		h.next = h.next.WithAttrs(redactAttrs(attrs, false))
		return h
	}
	secret := slices.ContainsFunc(h.groups, func(g group) bool { return redacted.Field(g.name) })
	h.groups = slices.Clone(h.groups)
	h.groups[last].attrs = append(slices.Clip(h.groups[last].attrs), redactAttrs(attrs, secret)...)
	return h
}

func (h redactingHandler) WithGroup(name string) slog.Handler {
	if name != "" {
		h.groups = append(slices.Clip(h.groups), group{name: name})
	}
	return h
}

// ids returns the trace and the execution of ctx, except those in bound.
func ids(ctx context.Context, bound []string) (attrs []slog.Attr) {
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() && !slices.Contains(bound, traceKey) {
		attrs = append(attrs, slog.String(traceKey, span.TraceID().String()))
	}
	if id, ok := ctx.Value(executionID{}).(string); ok && !slices.Contains(bound, executionKey) {
		attrs = append(attrs, slog.String(executionKey, id))
	}
	return attrs
}

func idsAmong(attrs []slog.Attr) (keys []string) {
	for _, attr := range attrs {
		if attr.Key == traceKey || attr.Key == executionKey {
			keys = append(keys, attr.Key)
		}
	}
	return keys
}

// LoggerFor returns logger with the trace and the execution of ctx bound to
// it, for code that logs without a context.
func LoggerFor(ctx context.Context, logger *slog.Logger) *slog.Logger {
	return slog.New(logger.Handler().WithAttrs(ids(ctx, nil)))
}
