package observed

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// collector is the OTLP receiver of a real OpenTelemetry Collector, and the data that it received.
type collector struct {
	grpc, http string // its listening addresses

	mu      sync.Mutex
	spans   []spanOf
	metrics map[string]pmetric.Metric // the latest of each name
	raw     []byte                    // everything, as JSON
}

// spanOf is a span and the resource that sent it.
type spanOf struct {
	ptrace.Span
	resource map[string]any
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{grpc: sidecartest.FreeAddress(t), http: sidecartest.FreeAddress(t),
		metrics: map[string]pmetric.Metric{}}
	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig().(*otlpreceiver.Config)
	config.Protocols.GRPC.GetOrInsertDefault().NetAddr.Endpoint = c.grpc
	config.Protocols.HTTP.GetOrInsertDefault().ServerConfig.NetAddr.Endpoint = c.http
	settings := receivertest.NewNopSettings(factory.Type())
	traceSink, err := consumer.NewTraces(c.takeTraces)
	if err != nil {
		t.Fatal(err)
	}
	metricSink, err := consumer.NewMetrics(c.takeMetrics)
	if err != nil {
		t.Fatal(err)
	}
	traces, err := factory.CreateTraces(t.Context(), settings, config, traceSink)
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := factory.CreateMetrics(t.Context(), settings, config, metricSink)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []interface {
		Shutdown(context.Context) error
	}{traces, metrics} {
		t.Cleanup(func() {
			if err := part.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	host := componenttest.NewNopHost()
	if err := traces.Start(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if err := metrics.Start(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *collector) takeTraces(_ context.Context, traces ptrace.Traces) error {
	raw, err := (&ptrace.JSONMarshaler{}).MarshalTraces(traces)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, raw...)
	kept := ptrace.NewTraces() // the receiver may reuse its own
	traces.CopyTo(kept)
	for _, resource := range kept.ResourceSpans().All() {
		for _, scope := range resource.ScopeSpans().All() {
			for _, span := range scope.Spans().All() {
				c.spans = append(c.spans, spanOf{span, resource.Resource().Attributes().AsRaw()})
			}
		}
	}
	return nil
}

func (c *collector) takeMetrics(_ context.Context, metrics pmetric.Metrics) error {
	raw, err := (&pmetric.JSONMarshaler{}).MarshalMetrics(metrics)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, raw...)
	kept := pmetric.NewMetrics()
	metrics.CopyTo(kept)
	for _, resource := range kept.ResourceMetrics().All() {
		for _, scope := range resource.ScopeMetrics().All() {
			for _, metric := range scope.Metrics().All() {
				c.metrics[metric.Name()] = metric
			}
		}
	}
	return nil
}

// of returns the spans of one execution.
func (c *collector) of(trace string) (spans []spanOf) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, span := range c.spans {
		if span.TraceID().String() == trace {
			spans = append(spans, span)
		}
	}
	return spans
}

// tree writes each span as "parent > name (kind, status)".
func tree(spans []spanOf) map[string]int {
	names := map[pcommon.SpanID]string{}
	for _, span := range spans {
		names[span.SpanID()] = span.Name()
	}
	lines := map[string]int{}
	for _, span := range spans {
		parent, ok := names[span.ParentSpanID()]
		if !ok {
			parent = span.ParentSpanID().String()
		}
		lines[fmt.Sprintf("%s > %s (%s, %s)", parent, span.Name(), span.Kind(), span.Status().Code())]++
	}
	return lines
}

// counts returns how many values a histogram or a counter recorded, by the value of one attribute.
func (c *collector) counts(t *testing.T, name, by string) map[string]uint64 {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	metric, ok := c.metrics[name]
	if !ok {
		t.Errorf("metric %q did not arrive", name)
		return nil
	}
	counts := map[string]uint64{}
	label := func(attributes pcommon.Map) string {
		value, ok := attributes.Get(by)
		if !ok {
			return ""
		}
		return value.AsString()
	}
	switch metric.Type() {
	case pmetric.MetricTypeHistogram:
		for _, point := range metric.Histogram().DataPoints().All() {
			counts[label(point.Attributes())] += point.Count()
		}
	case pmetric.MetricTypeSum:
		for _, point := range metric.Sum().DataPoints().All() {
			counts[label(point.Attributes())] += uint64(point.IntValue())
		}
	}
	return counts
}
