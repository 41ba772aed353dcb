package telemetry

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/otel/attribute"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// seriesLimit is the maximal number of series of one metric; the SDK combines the rest.
const seriesLimit = 1000

// Operations on signed keys, for [Metrics.Key].
const (
	KeyMint   = "mint"
	KeyRenew  = "renew"
	KeyRevoke = "revoke"
)

// Metrics records metrics. If nil, because metrics are off, it does nothing and costs nothing.
type Metrics struct {
	meter metric.Meter

	executions, phases, keys, redis, calls, connections metric.Float64Histogram // seconds
	sent, received                                      metric.Int64Histogram   // bytes
	denials                                             metric.Int64Counter

	queueLength, slotUsage, slotLimit, poolReady metric.Int64ObservableUpDownCounter
	fleetEnded                                   metric.Int64Counter
	fleetQueue, fleetCallbacks                   backlogGauges

	// The values of open labels. All other labels have a closed set of values.
	policies, guardrails, words *labels
}

// State is the load of a server of executions.
type State struct {
	Queue                 int // executions waiting for a slot
	SlotsUsed, SlotsTotal int
	Ready                 int // warm interpreters waiting for an execution
}

// Backlog describes a queue that many machines share, of executions or of callbacks. Every machine reports the same
// values, so they must not be added up.
type Backlog struct {
	Depth       int           // how many are waiting
	Oldest      time.Duration // how long the oldest of them has waited
	DeadLetters int           // how many were given up
}

// backlogGauges are the metrics of one Backlog.
type backlogGauges struct {
	depth, dead metric.Int64ObservableGauge
	oldest      metric.Float64ObservableGauge
}

// newBacklogGauges defines the gauges of a queue of things: two whose names begin with queue, and dead.
func newBacklogGauges(meter metric.Meter, queue, dead, thing string) (g backlogGauges, err error) {
	var errs [3]error
	unit := metric.WithUnit("{" + thing + "}")
	g.depth, errs[0] = meter.Int64ObservableGauge(queue+".depth", unit,
		metric.WithDescription("How many "+thing+"s wait in the queue for any worker."))
	g.oldest, errs[1] = meter.Float64ObservableGauge(queue+".wait", metric.WithUnit("s"),
		metric.WithDescription("How long the oldest "+thing+" in the queue has waited."))
	g.dead, errs[2] = meter.Int64ObservableGauge(dead, unit,
		metric.WithDescription("How many "+thing+"s were given up and kept."))
	return g, errors.Join(errs[:]...)
}

func (g backlogGauges) observe(o metric.Observer, b Backlog, labels metric.MeasurementOption) {
	o.ObserveInt64(g.depth, int64(b.Depth), labels)
	o.ObserveFloat64(g.oldest, b.Oldest.Seconds(), labels)
	o.ObserveInt64(g.dead, int64(b.DeadLetters), labels)
}

// measure starts metrics. An empty protocol means no OTLP.
func (t *Telemetry) measure(ctx context.Context, protocol string, scraped, oneShot bool, res *resource.Resource) error {
	options := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithCardinalityLimit(seriesLimit)}
	if protocol != "" {
		exporter, err := newMetricExporter(ctx, protocol, oneShot)
		if err != nil {
			return err
		}
		options = append(options, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(quietExporter{exporter, t.complaints})))
	}
	if scraped {
		registry := prometheus.NewRegistry()
		registry.MustRegister(collectors.NewGoCollector(collectors.WithGoCollectorMemStatsMetricsDisabled()),
			collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		exporter, err := promexporter.New(promexporter.WithRegisterer(registry), promexporter.WithoutScopeInfo(),
			promexporter.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes))
		if err != nil {
			return err
		}
		options = append(options, sdkmetric.WithReader(exporter))
		t.handler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
	}
	provider := sdkmetric.NewMeterProvider(options...)
	t.closers = append(t.closers, provider.Shutdown)
	metrics, err := newMetrics(provider.Meter(instrumentation))
	if err != nil {
		return err
	}
	t.metrics = metrics
	return t.watchQueue()
}

// Boundaries of histograms, in seconds and in bytes. Those of requests come from the semantic conventions.
var (
	executionSeconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	requestSeconds   = []float64{.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10}
	redisSeconds     = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .05, .1, .5, 1, 5}
	bodyBytes        = []float64{0, 1 << 10, 8 << 10, 64 << 10, 512 << 10, 4 << 20, 32 << 20, 256 << 20}
)

func newMetrics(meter metric.Meter) (*Metrics, error) {
	m := &Metrics{meter: meter, policies: newLabels(64), guardrails: newLabels(64), words: newLabels(128)}
	var errs []error
	seconds := func(name, description string, boundaries []float64) metric.Float64Histogram {
		histogram, err := meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(description),
			metric.WithExplicitBucketBoundaries(boundaries...))
		errs = append(errs, err)
		return histogram
	}
	bytes := func(name, description string) metric.Int64Histogram {
		histogram, err := meter.Int64Histogram(name, metric.WithUnit("By"), metric.WithDescription(description),
			metric.WithExplicitBucketBoundaries(bodyBytes...))
		errs = append(errs, err)
		return histogram
	}
	level := func(name, unit, description string) metric.Int64ObservableUpDownCounter {
		counter, err := meter.Int64ObservableUpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		return counter
	}
	m.executions = seconds("kizen.execution.duration", "Executions, from the request to their end, by outcome.",
		executionSeconds)
	m.phases = seconds("kizen.execution.phase.duration", "Phases of executions; queue is the wait for a slot.",
		executionSeconds)
	m.keys = seconds("kizen.key.operation.duration", "Mints, renewals and revocations of signed keys.", requestSeconds)
	m.redis = seconds("db.client.operation.duration", "Commands to Redis.", redisSeconds)
	m.calls = seconds("http.client.request.duration", "Calls of steps to the API.", requestSeconds)
	m.connections = seconds("kizen.connection.duration",
		"Connections of steps until they are made or refused, by decision.", requestSeconds)
	m.sent = bytes("http.client.request.body.size", "Request bodies sent to the API.")
	m.received = bytes("http.client.response.body.size", "Response bodies received from the API.")
	var err error
	m.denials, err = meter.Int64Counter("kizen.policy.denials", metric.WithUnit("{denial}"),
		metric.WithDescription("Calls that a policy refused."))
	errs = append(errs, err)
	m.queueLength = level("kizen.execution.queue.length", "{execution}", "Executions waiting for a slot.")
	m.slotUsage = level("kizen.execution.slot.usage", "{slot}", "Slots in use.")
	m.slotLimit = level("kizen.execution.slot.limit", "{slot}", "Executions that may run at once.")
	m.poolReady = level("kizen.pool.ready", "{interpreter}", "Warm interpreters that wait for an execution.")
	m.fleetEnded, err = meter.Int64Counter("kizen.fleet.executions", metric.WithUnit("{execution}"),
		metric.WithDescription("Executions whose end this worker recorded, by outcome, including those that it refused or ended for a dead worker."))
	errs = append(errs, err)
	m.fleetQueue, err = newBacklogGauges(meter, "kizen.fleet.queue", "kizen.fleet.dead_letters", "execution")
	errs = append(errs, err)
	m.fleetCallbacks, err = newBacklogGauges(meter, "kizen.fleet.callback.queue", "kizen.fleet.callback.dead_letters",
		"callback")
	errs = append(errs, err)
	return m, errors.Join(errs...)
}

// Watch calls state whenever metrics are collected, until stop is called.
func (m *Metrics) Watch(state func() State) (stop func()) {
	if m == nil {
		return func() {}
	}
	registration, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := state()
		o.ObserveInt64(m.queueLength, int64(s.Queue))
		o.ObserveInt64(m.slotUsage, int64(s.SlotsUsed))
		o.ObserveInt64(m.slotLimit, int64(s.SlotsTotal))
		o.ObserveInt64(m.poolReady, int64(s.Ready))
		return nil
	}, m.queueLength, m.slotUsage, m.slotLimit, m.poolReady)
	if err != nil {
		return func() {}
	}
	return func() { _ = registration.Unregister() } // fails only without a registration
}

// WatchFleet reads the backlogs of a queue, of executions and of callbacks, whenever metrics are collected, until stop
// is called. If look fails, it reports nothing, so that a failure does not look like an empty queue.
func (m *Metrics) WatchFleet(queue string,
	look func(context.Context) (executions, callbacks Backlog, err error)) (stop func()) {
	if m == nil {
		return func() {}
	}
	labels := metric.WithAttributeSet(attribute.NewSet(attribute.String("queue", queue)))
	executions, callbacks := m.fleetQueue, m.fleetCallbacks
	registration, err := m.meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		waiting, undelivered, err := look(ctx)
		if err != nil {
			return err
		}
		executions.observe(o, waiting, labels)
		callbacks.observe(o, undelivered, labels)
		return nil
	}, executions.depth, executions.oldest, executions.dead, callbacks.depth, callbacks.oldest, callbacks.dead)
	if err != nil {
		return func() {}
	}
	return func() { _ = registration.Unregister() } // fails only without a registration
}

// FleetEnded counts an execution whose end a worker has recorded.
func (m *Metrics) FleetEnded(ctx context.Context, outcome string) {
	if m == nil {
		return
	}
	m.fleetEnded.Add(ctx, 1, withError(nil, attribute.String("kizen.execution.outcome", m.words.of(outcome))))
}

// Key counts one operation on a signed key: KeyMint, KeyRenew or KeyRevoke.
func (m *Metrics) Key(ctx context.Context, operation string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.keys.Record(ctx, took.Seconds(), withError(err, attribute.String("kizen.key.operation", m.words.of(operation))))
}

// Redis counts one command by its name. A nil reply is not an error.
func (m *Metrics) Redis(ctx context.Context, command string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.redis.Record(ctx, took.Seconds(), withError(err,
		semconv.DBSystemNameRedis, semconv.DBOperationName(m.words.of(command))))
}

// Connection counts one connection of a step, or a name that was not resolved.
func (m *Metrics) Connection(ctx context.Context, transport string, allowed bool, took time.Duration) {
	if m == nil {
		return
	}
	decision := "deny"
	if allowed {
		decision = "allow"
	}
	m.connections.Record(ctx, took.Seconds(), withError(nil,
		attribute.String("network.transport", m.words.of(transport)), attribute.String("kizen.policy.decision", decision)))
}

// withError adds error.type if err is not nil.
func withError(err error, attributes ...attribute.KeyValue) metric.MeasurementOption {
	if err != nil {
		attributes = append(attributes, semconv.ErrorTypeKey.String(errorType(err)))
	}
	return metric.WithAttributeSet(attribute.NewSet(attributes...))
}

// errorType returns the kind of an error, from a closed set.
func errorType(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	}
	return "_OTHER"
}

func (m *Metrics) phase(ctx context.Context, name string, took time.Duration) {
	if m == nil {
		return
	}
	m.phases.Record(ctx, took.Seconds(), withError(nil, attribute.String("kizen.execution.phase", m.words.of(name))))
}

func (m *Metrics) execution(ctx context.Context, outcome string, took time.Duration) {
	if m == nil {
		return
	}
	m.executions.Record(ctx, took.Seconds(),
		withError(nil, attribute.String("kizen.execution.outcome", m.words.of(outcome))))
}

func (m *Metrics) call(ctx context.Context, to server, end *CallEnd) {
	if m == nil {
		return
	}
	attributes := make([]attribute.KeyValue, 0, 5)
	attributes = append(attributes, semconv.HTTPRequestMethodKey.String(knownMethod(end.Method)),
		semconv.ServerAddress(to.host), semconv.ServerPort(to.port))
	if http.StatusText(end.Status) != "" { // an API may invent statuses
		attributes = append(attributes, semconv.HTTPResponseStatusCode(end.Status))
	}
	if failure := end.errorType(); failure != "" {
		if end.Error == "" && http.StatusText(end.Status) == "" {
			failure = "_OTHER"
		}
		attributes = append(attributes, semconv.ErrorTypeKey.String(m.words.of(failure)))
	}
	labels := metric.WithAttributeSet(attribute.NewSet(attributes...))
	m.calls.Record(ctx, end.Duration.Seconds(), labels)
	m.sent.Record(ctx, end.Sent, labels)
	m.received.Record(ctx, end.Received, labels)
	if end.Denied {
		m.denials.Add(ctx, 1, withError(nil, attribute.String("kizen.policy.id", m.policy(end.Policy))))
	}
}

// policy returns the label of a policy. Operators' policies cannot displace the built-in ones.
func (m *Metrics) policy(id string) string {
	if strings.HasPrefix(id, "guardrail.") || strings.HasPrefix(id, "default.") {
		return m.guardrails.of(id)
	}
	return m.policies.of(id)
}

// labels is the set of values that a label has had, up to a limit.
type labels struct {
	limit int
	mu    sync.RWMutex
	known map[string]struct{}
}

func newLabels(limit int) *labels { return &labels{limit: limit, known: map[string]struct{}{}} }

// of returns value, or "_OTHER" if value would exceed the limit.
func (l *labels) of(value string) string {
	l.mu.RLock()
	_, known := l.known[value]
	l.mu.RUnlock()
	if known {
		return value
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.known[value]; !known && len(l.known) >= l.limit {
		return "_OTHER"
	}
	l.known[value] = struct{}{}
	return value
}

// watchQueue publishes the span queue's counts as metrics, named by the semantic conventions.
func (t *Telemetry) watchQueue() error {
	if t.queue == nil {
		return nil
	}
	spans := metric.WithUnit("{span}")
	processed, err := t.metrics.meter.Int64ObservableCounter("otel.sdk.processor.span.processed", spans,
		metric.WithDescription("Spans that left the queue; error.type marks dropped ones."))
	exported, err2 := t.metrics.meter.Int64ObservableCounter("otel.sdk.exporter.span.exported", spans,
		metric.WithDescription("Exported spans; error.type marks those that failed."))
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	full := metric.WithAttributes(semconv.ErrorTypeKey.String("queue_full"))
	lost := metric.WithAttributes(semconv.ErrorTypeKey.String("_OTHER"))
	_, err = t.metrics.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		sent, failed := t.queue.exported.Load(), t.queue.failed.Load()
		o.ObserveInt64(processed, sent+failed)
		o.ObserveInt64(processed, t.queue.dropped.Load(), full)
		o.ObserveInt64(exported, sent)
		o.ObserveInt64(exported, failed, lost)
		return nil
	}, processed, exported)
	return err
}
