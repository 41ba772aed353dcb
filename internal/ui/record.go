package ui

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/phases"
	"github.com/kizen/kizen-sidecar/runner"
)

// About describes an execution, except its outcome.
type About struct {
	ID, Name, Runtime                  string
	BusinessID, AccountID, AccountType string
	// APIRoot is removed from the URLs of the step's calls; if empty, they are shown whole.
	APIRoot string
	// Traceparent is the W3C trace context of the request, if any.
	Traceparent string
	// State is queued, running or finished.
	State string
	// Queued is when it was requested, Dequeued when it got its slot; both are equal without a queue.
	Queued, Dequeued time.Time
	// Failure says why the execution has no result.
	Failure string
}

// Record is the data of an execution for the page. Times are in milliseconds after Origin.
type Record struct {
	ID          string    `json:"execution_id"`
	Name        string    `json:"name"`
	Runtime     string    `json:"runtime"`
	BusinessID  string    `json:"business_id"`
	AccountID   string    `json:"account_id"`
	AccountType string    `json:"account_type"`
	APIRoot     string    `json:"api_root"`
	TraceID     string    `json:"trace_id"`
	State       string    `json:"state"`
	Outcome     string    `json:"outcome"`
	Failure     string    `json:"failure"`
	Origin      time.Time `json:"origin"`
	Phases      []Phase   `json:"phases"`
	// Result is the document of the contract; null until it exists.
	Result json.RawMessage `json:"result"`
	// LogTimes has one entry for each log of the result.
	LogTimes        []float64       `json:"log_times"`
	DroppedMessages int64           `json:"dropped_messages"`
	DroppedBytes    int64           `json:"dropped_bytes"`
	Source          string          `json:"source"`
	Inputs          json.RawMessage `json:"inputs"`
	// The scratch pad needs these fields to repeat the request; a report has none of them.
	OutputTypes map[string]runner.Type `json:"output_types,omitempty"`
	Secrets     []string               `json:"secrets,omitempty"`    // only names
	TimeoutMS   int64                  `json:"timeout_ms,omitempty"` // zero means the server's limit
	Stdout      string                 `json:"stdout"`
	Stderr      string                 `json:"stderr"`
	Notes       []string               `json:"notes"`
}

// Phase is a part of the execution's time.
type Phase struct {
	Name  phases.Phase `json:"name"`
	Start float64      `json:"start_ms"`
	Spent float64      `json:"spent_ms"`
}

// NewRecord returns the record of an execution. document is the marshalled done.Result, or nil.
func NewRecord(about About, done execution.Ended, document json.RawMessage) Record {
	result, traceparent := done.Result, about.Traceparent
	if done.Traceparent != "" {
		traceparent = done.Traceparent
	}
	r := Record{
		ID: about.ID, Name: about.Name, Runtime: about.Runtime, BusinessID: about.BusinessID, AccountID: about.AccountID,
		AccountType: about.AccountType, APIRoot: about.APIRoot, TraceID: traceID(traceparent), State: about.State,
		Outcome: string(result.Outcome), Failure: about.Failure, Origin: about.Queued, Result: document,
		Phases: []Phase{}, LogTimes: []float64{}, Source: result.Source, Inputs: result.Inputs,
		DroppedMessages: result.Dropped.Messages, DroppedBytes: result.Dropped.Bytes,
		Stdout: result.Stdout, Stderr: result.Stderr, Notes: result.Notes,
	}
	for _, at := range result.LogTimes {
		r.LogTimes = append(r.LogTimes, r.offset(at))
	}
	r.add(phases.Queue, about.Queued, about.Dequeued.Sub(about.Queued))
	spent := result.Phases
	r.add(phases.Spawn, result.Begun, spent.Spawn)
	r.add(phases.Mint, done.MintBegan, done.Mint)
	if !result.Begun.IsZero() {
		r.add(phases.Import, result.Begun.Add(spent.Spawn), spent.Import)
	}
	if !result.Started.IsZero() {
		r.add(phases.Step, result.Started, spent.Step)
	}
	if !done.RevokeBegan.IsZero() {
		r.add(phases.Teardown, done.RevokeBegan.Add(-spent.Teardown), spent.Teardown)
		r.add(phases.Revoke, done.RevokeBegan, done.Revoke)
	}
	return r
}

// OutputTypes returns the types of declared outputs, by name.
func OutputTypes(declared runner.Outputs) map[string]runner.Type {
	types := make(map[string]runner.Type, len(declared))
	for _, output := range declared {
		types[output.Name] = output.Type
	}
	return types
}

// add appends a phase, unless it did not occur. Time that a warm interpreter spent before the request does not count.
func (r *Record) add(name phases.Phase, began time.Time, spent time.Duration) {
	if began.IsZero() || spent <= 0 {
		return
	}
	start, ends := r.offset(began), r.offset(began.Add(spent))
	start, ends = max(start, 0), max(ends, 0)
	r.Phases = append(r.Phases, Phase{Name: name, Start: start, Spent: ends - start})
}

func (r *Record) offset(at time.Time) float64 { return float64(at.Sub(r.Origin).Microseconds()) / 1000 }

// traceID returns the trace ID of a W3C traceparent: version-trace-span-flags.
func traceID(traceparent string) string {
	parts := strings.Split(traceparent, "-")
	if len(parts) < 4 || len(parts[1]) != 32 {
		return ""
	}
	return parts[1]
}
