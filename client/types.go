package client

import (
	"encoding/json"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
)

// Outcome says how an execution ended. Its methods report whether it failed, and whether it is safe to run again.
type Outcome = outcomes.Outcome

// The outcomes.
const (
	OK                    = outcomes.OK
	SyntaxError           = outcomes.SyntaxError
	Exception             = outcomes.Exception
	Timeout               = outcomes.Timeout
	CPULimit              = outcomes.CPULimit
	MemoryLimit           = outcomes.MemoryLimit
	ProcessLimit          = outcomes.ProcessLimit
	OutputLimit           = outcomes.OutputLimit
	KilledBySignal        = outcomes.KilledBySignal
	Exited                = outcomes.Exited
	ResultMissing         = outcomes.ResultMissing
	ResultNotSerialisable = outcomes.ResultNotSerialisable
	Cancelled             = outcomes.Cancelled
	Internal              = outcomes.Internal
	Refused               = outcomes.Refused
	NotStarted            = outcomes.NotStarted
	WorkerDied            = outcomes.WorkerDied
)

// Value is one typed value in its wire form: {"t": "n", "v": "21"}.
type Value struct {
	// Type is the one-letter code of a data type, such as s for text, n for number, b for boolean.
	Type string `json:"t"`
	// V is nil, or the value in the wire form of its type: a number is the string of its digits.
	V any `json:"v"`
}

// Request is one execution to run: the body of POST /executions. Runtime and UserScript are required.
type Request struct {
	Runtime     string            `json:"runtime,omitempty"` // such as "python-3-13"
	UserScript  string            `json:"user_script"`
	Inputs      map[string]Value  `json:"inputs,omitempty"`
	OutputTypes map[string]string `json:"output_types,omitempty"`
	// Secrets lists the names of the secrets to grant to the step.
	Secrets []string `json:"secrets,omitempty"`

	// ExecutionID makes a request idempotent: an ID runs once. If it is empty, [Client.Start] and [Queue.Enqueue]
	// choose one; [Client.Run] does not accept it.
	ExecutionID string `json:"execution_id,omitempty"`
	// BusinessID and UserID are the business and the account that the step acts for. Over HTTP they default to those of
	// the caller; over a queue they are required.
	BusinessID  string `json:"business_id,omitempty"`
	UserID      string `json:"user_id,omitempty"`
	AccountType string `json:"account_type,omitempty"`
	// Name is a human-readable name of the step.
	Name string `json:"name,omitempty"`
	// TimeoutMS overrides the default time limit of the step, in milliseconds.
	TimeoutMS int64 `json:"timeout_ms,omitempty"`
	// CallbackURL receives the result; see [VerifyCallback]. [Client.Run] does not accept it.
	CallbackURL string `json:"callback_url,omitempty"`
	// Traceparent is the W3C trace context that the execution belongs to.
	Traceparent string `json:"traceparent,omitempty"`
}

// Result is the result of an execution.
type Result struct {
	RequestID  string  `json:"request_id"`
	DurationMS float64 `json:"duration_ms"`
	// Values are the outputs; nil unless the step succeeded.
	Values map[string]Value `json:"values"`
	// Logs are the messages of outputs.log.
	Logs []string `json:"logs"`
	// HTTPRequests is the record of the step's HTTP calls; nil if the step never started.
	HTTPRequests *HTTPRequests `json:"http_requests"`
	// Error is nil if the step succeeded.
	Error *StepError `json:"error"`
	// Layers lists the sandbox layers around the step.
	Layers Layers `json:"layers"`
}

// Outcome returns how the execution ended.
func (r Result) Outcome() Outcome {
	if r.Error == nil {
		return OK
	}
	return r.Error.Kind
}

// StepError says why a step failed.
type StepError struct {
	Message string `json:"error"`
	// Detail is the traceback, if there is one.
	Detail string  `json:"detail"`
	Kind   Outcome `json:"kind"`
	// Stdout and Stderr are the last bytes that the step printed.
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
	// Evidence holds measurements of the step's processes.
	Evidence json.RawMessage `json:"evidence,omitempty"`
}

// HTTPRequests is the record of a step's HTTP calls.
type HTTPRequests struct {
	Count     int `json:"count"`
	NotLogged int `json:"not_logged"`
	// Requests holds the first calls, each a JSON object with method, url, responseStatusCode and so on.
	Requests []json.RawMessage `json:"requests"`
}

// Layers lists the sandbox layers in force, and those that the machine does not support.
type Layers struct {
	Held    []string `json:"held"`
	Missing []string `json:"missing"`
}

// Execution is the state of one execution of kizen-sidecar serve.
type Execution struct {
	ID         string    `json:"execution_id"`
	BusinessID string    `json:"business_id"`
	Name       string    `json:"name,omitempty"`
	Runtime    string    `json:"runtime"`
	State      string    `json:"state"` // "queued", "running" or "finished"
	Outcome    Outcome   `json:"outcome,omitempty"`
	QueuedAt   time.Time `json:"queued_at"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	// Result is nil until the execution has finished, and if its step did not run; Failure then says why.
	Result  *Result `json:"result,omitempty"`
	Failure string  `json:"failure,omitempty"`
}

// Event is something that happened to an execution.
type Event struct {
	// Number counts the events of an execution from 1.
	Number int `json:"-"`
	// Type is "queued", "started", "log", "http" or "finished".
	Type string    `json:"-"`
	Time time.Time `json:"time"`
	// Data is a JSON document: {"message": "..."} for a log, the call for http, outcome and duration_ms for
	// finished.
	Data json.RawMessage `json:"data"`
}
