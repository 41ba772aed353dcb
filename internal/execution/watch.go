package execution

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/phases"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/proxy"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// watch reports one execution to telemetry and to the log.
type watch struct {
	*telemetry.Execution
	ctx     context.Context
	log     *slog.Logger // names the execution and its trace
	metrics *telemetry.Metrics
	tracing bool
	mask    *telemetry.Mask // of the granted secrets
}

// watch begins the trace and the log of an execution, as a child of the request for it.
func (h *Host) watch(ctx context.Context, r Request) *watch {
	t := h.config.Telemetry
	w := &watch{metrics: t.Metrics(), tracing: t.Tracing(), mask: maskOf(r.Job.Secrets)}
	w.ctx, w.Execution = t.Execution(ctx, telemetry.ExecutionInfo{
		ID: r.Identity.ExecutionID, Business: r.Identity.BusinessID, AccountType: r.Identity.AccountType, Step: r.Name,
		Runtime: string(r.Job.Runtime), API: h.config.Proxy.APIRoot, Traceparent: r.Job.Traceparent, Tracestate: r.Tracestate,
		Server: !r.Asked.IsZero() && !r.Delivered, Consumer: r.Delivered, Began: r.Asked,
	})
	w.log = telemetry.LoggerFor(w.ctx, h.config.Log).With("business_id", r.Identity.BusinessID)
	return w
}

// maskOf returns a mask of the secrets that a step was granted.
func maskOf(granted map[string]runner.Secret) *telemetry.Mask {
	var values []string
	for _, secret := range granted {
		values = append(values, secret.Reveal())
	}
	return telemetry.NewMask(values...)
}

// hook makes the proxy report each call, and trace it if tracing is on.
func (w *watch) hook(config *proxy.Config) {
	config.Logger = w.log
	config.Mask = func(call proxy.Call) proxy.Call {
		call.Path, call.Query = w.mask.Target(call.Path, call.Query)
		if config.Audit != nil { // telemetry and the log redact their output themselves
			call.Path, call.Query = telemetry.Redact(call.Path), telemetry.Redact(call.Query)
		}
		call.Method, call.Detail = w.mask.Name(call.Method), w.mask.Text(call.Detail)
		return call
	}
	config.OnCall = func(call proxy.Call) {
		span, _ := call.Span.(*telemetry.Call)
		w.EndCall(span, callEnd(call))
		if w.log.Enabled(w.ctx, slog.LevelDebug) {
			w.log.DebugContext(w.ctx, "call", "method", call.Method, "path", call.Path, "status", call.Status, "outcome",
				call.Outcome,
				"detail", call.Detail, "policy", call.Policy, "duration_ms", milliseconds(call.Duration))
		}
	}
	if !w.tracing {
		return
	}
	config.Trace = func(method, _, traceparent, tracestate string) proxy.Span {
		if w.mask.Text(traceparent) != traceparent || w.mask.Text(tracestate) != tracestate {
			traceparent, tracestate = "", "" // a link would reveal the secret
		}
		call := w.StartCall(w.mask.Name(method), traceparent, tracestate)
		return proxy.Span{Traceparent: call.Traceparent, Tracestate: call.Tracestate, Data: call}
	}
}

func callEnd(call proxy.Call) telemetry.CallEnd {
	end := telemetry.CallEnd{
		Method: call.Method, Path: call.Path, Query: call.Query, Duration: call.Duration, Status: call.Status,
		Sent:     call.Sent,
		Received: call.Received, Policy: call.Policy, Denied: call.Outcome == proxy.Denied, Retried: call.Retried,
		Protocol: call.Protocol,
	}
	if call.Outcome != proxy.Answered {
		end.Error = string(call.Outcome)
	}
	return end
}

// end reports the end of an execution: its span, its metrics and its line in the log.
func (w *watch) end(r Request, done Ended, queued time.Duration, err error) {
	ending := endingOf(done, err)
	w.End(ending)
	attributes := []any{
		"outcome", ending.Outcome, "account_type", r.Identity.AccountType, "user_id", r.Identity.AccountID, "step", r.Name,
		"runtime", string(r.Job.Runtime), "duration_ms", milliseconds(done.Result.Duration),
		"cpu_ms", milliseconds(done.Result.Evidence.CPU), "peak_memory_bytes", done.Result.Evidence.PeakMemory,
	}
	for phase, spent := range done.Spent(queued) {
		attributes = append(attributes, string(phase)+"_ms", milliseconds(spent))
	}
	if record := done.Result.HTTP; record != nil {
		attributes = append(attributes, "http_requests", record.Count)
	}
	if ending.Exception != "" {
		attributes = append(attributes, "exception", ending.Exception)
	}
	if ending.Signal != "" {
		attributes = append(attributes, "signal", ending.Signal)
	}
	if err != nil {
		attributes = append(attributes, "error", err)
	}
	w.log.Info("execution ended", attributes...)
}

// endingOf returns the end of an execution for telemetry.
func endingOf(done Ended, err error) telemetry.Ending {
	outcome := done.Outcome(err)
	if err != nil {
		return telemetry.Ending{Outcome: outcome, ExitCode: -1}
	}
	result := done.Result
	evidence := result.Evidence
	ending := telemetry.Ending{
		Outcome: outcome, CPU: evidence.CPU, PeakMemory: evidence.PeakMemory, ExitCode: evidence.ExitCode,
	}
	if evidence.Signal != 0 {
		ending.Signal = unix.SignalName(evidence.Signal)
	}
	if outcome == outcomes.Exception && result.Error != nil {
		ending.Exception, _, _ = strings.Cut(result.Error.Message, ":")
	}
	return ending
}

// Abandon reports an execution that left the queue without a slot because of err.
func (h *Host) Abandon(r Request, err error) {
	w := h.watch(context.Background(), r)
	now := time.Now()
	w.Phase(phases.Queue, r.Asked, now, err)
	ending := endingOf(Ended{}, err)
	w.End(ending)
	w.log.Info("execution ended", "outcome", ending.Outcome, "account_type", r.Identity.AccountType, "user_id",
		r.Identity.AccountID,
		"step", r.Name, "runtime", string(r.Job.Runtime), "queue_ms", milliseconds(now.Sub(r.Asked)), "error", err)
}

// renewed counts a renewal of a key.
func renewed(metrics *telemetry.Metrics) func(context.Context, time.Duration, error) {
	return func(ctx context.Context, took time.Duration, err error) {
		metrics.Key(ctx, telemetry.KeyRenew, took, err)
	}
}

// redisHook measures Redis commands.
type redisHook struct{ metrics *telemetry.Metrics }

var _ redis.Hook = redisHook{}

// DialHook implements redis.Hook.
func (redisHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return next(ctx, network, address)
	}
}

// ProcessHook implements redis.Hook.
func (h redisHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		began := time.Now()
		err := next(ctx, cmd)
		h.metrics.Redis(ctx, cmd.Name(), time.Since(began), unlessNil(err))
		return err
	}
}

// ProcessPipelineHook implements redis.Hook. A pipeline is one measurement, named like a batch in the semantic
// conventions.
func (h redisHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		began := time.Now()
		err := next(ctx, cmds)
		h.metrics.Redis(ctx, "PIPELINE", time.Since(began), unlessNil(err))
		return err
	}
}

// unlessNil returns err, or nil for an empty reply and for NOSCRIPT, after which the client loads the script.
func unlessNil(err error) error {
	if errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "NOSCRIPT") {
		return nil
	}
	return err
}

// mint leases a key and reports the mint.
func (w *watch) mint(ctx context.Context, h *Host, id minter.Identity,
	lifetime time.Duration) (lease, time.Duration, error) {
	began := time.Now()
	leased, err := h.keys.lease(ctx, id, lifetime)
	ended := time.Now()
	w.Phase(phases.Mint, began, ended, err)
	w.metrics.Key(w.ctx, telemetry.KeyMint, ended.Sub(began), err)
	return leased, ended.Sub(began), err
}

// ran reports the phases that only the runner knows; prepared is when the interpreter was ready.
func (w *watch) ran(prepared time.Time, result runner.Result, err error) {
	if result.Started.IsZero() {
		w.Phase(phases.Import, prepared, time.Now(), err)
		return
	}
	w.Phase(phases.Import, prepared, result.Started, nil)
	ended := result.Started.Add(result.Duration)
	w.Phase(phases.Step, result.Started, ended, nil)
	w.Phase(phases.Teardown, ended, ended.Add(result.Phases.Teardown), nil)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
