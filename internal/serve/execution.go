package serve

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/runner"
)

// State is the state of an execution.
type State string

// The states, in their order.
const (
	Queued   State = "queued"
	Running  State = "running"
	Finished State = "finished"
)

// The causes of an execution's end before its step has run.
var (
	// ErrQueueTimeout reports that no slot became free in time.
	ErrQueueTimeout = errors.New("no slot became free in time")
)

// Event is a change of an execution, or a log message or call of its step.
type Event struct {
	// Number counts the events of an execution from 1.
	Number int
	// Type is "queued", "started", "log", "http" or "finished".
	Type string
	Time time.Time
	// Data is a JSON document.
	Data json.RawMessage
}

// Execution is one execution that a [Registry] follows. It is safe for concurrent use.
type Execution struct {
	// request is the request; its job is dropped when it has run.
	request   execution.Request
	asked     Asked
	callback  string
	digest    [32]byte
	cancelled context.CancelCauseFunc
	done      chan struct{}

	// readers are the callers that currently read the execution. forgotten reports that the registry no longer keeps
	// it. The registry's lock guards both.
	readers   map[*reader]struct{}
	forgotten bool

	mu       sync.Mutex
	state    State
	queued   time.Time
	started  time.Time
	finished time.Time
	events   []event
	changed  chan struct{} // closed and replaced with every event
	ended    execution.Ended
	document json.RawMessage
	err      error
	size     int64 // kept bytes
}

// event is the stored form of an [Event]. It is compact, because a step may log a hundred thousand messages.
type event struct {
	at   int64 // nanoseconds since the epoch
	kind string
	text string // the message of a "log", otherwise the JSON document
}

// Snapshot is the current state of an execution, as callers see it.
type Snapshot struct {
	ID          string           `json:"execution_id"`
	BusinessID  string           `json:"business_id"`
	AccountType string           `json:"account_type"`
	Name        string           `json:"name,omitempty"`
	Runtime     string           `json:"runtime"`
	State       State            `json:"state"`
	Outcome     outcomes.Outcome `json:"outcome,omitempty"`
	QueuedAt    time.Time        `json:"queued_at"`
	StartedAt   time.Time        `json:"started_at,omitzero"`
	FinishedAt  time.Time        `json:"finished_at,omitzero"`
	// Phases has the duration of each of [phases.All] in milliseconds; the names end in "_ms".
	Phases map[string]float64 `json:"phases,omitempty"`
	Result json.RawMessage    `json:"result,omitempty"`
	// Failure says why the execution has no result.
	Failure string `json:"failure,omitempty"`
}

// ID returns the execution's ID.
func (e *Execution) ID() string { return e.request.Identity.ExecutionID }

// AccountID returns the account that its step acts for.
func (e *Execution) AccountID() string { return e.request.Identity.AccountID }

// Traceparent returns its W3C trace context; it may be empty.
func (e *Execution) Traceparent() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.request.Job.Traceparent
}

// Shown returns its step's source and the JSON object of its inputs, without its secrets.
func (e *Execution) Shown() (source string, inputs json.RawMessage) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state == Finished {
		return e.ended.Result.Source, e.ended.Result.Inputs
	}
	return e.request.Job.Shown()
}

// Asked holds the parts of a request that [Execution.Shown] does not return.
type Asked struct {
	Outputs runner.Outputs
	Secrets []string // the names of the granted secrets
	Limit   time.Duration
}

// Asked returns further parts of the request. They stay available after the step's end.
func (e *Execution) Asked() Asked { return e.asked }

// BusinessID returns the business it runs in.
func (e *Execution) BusinessID() string { return e.request.Identity.BusinessID }

// Size returns the memory of the execution in bytes. It does not change after the execution has finished.
func (e *Execution) Size() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.size
}

// Callback returns its callback URL; it may be empty.
func (e *Execution) Callback() string { return e.callback }

// Done returns a channel that is closed when the execution has finished.
func (e *Execution) Done() <-chan struct{} { return e.done }

// Ended returns the end of the execution, without the parts that the document of its snapshot contains. Call it only
// after Done. The error is the sidecar's own failure, or why the execution never ran.
func (e *Execution) Ended() (execution.Ended, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ended := e.ended
	for _, event := range e.events {
		if event.kind == "log" {
			ended.Result.LogTimes = append(ended.Result.LogTimes, time.Unix(0, event.at))
		}
	}
	return ended, e.err
}

// Outcome returns how the execution ended, and the error that Ended returns. Call it only after Done.
func (e *Execution) Outcome() (outcomes.Outcome, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ended.Outcome(e.err), e.err
}

// Cancel revokes the key, kills the step, and returns at once. It has no effect on a finished execution.
func (e *Execution) Cancel() { e.cancelled(execution.ErrCancelled) }

// Snapshot returns the current state of the execution.
func (e *Execution) Snapshot() Snapshot {
	e.mu.Lock()
	defer e.mu.Unlock()
	id := e.request.Identity
	s := Snapshot{
		ID: id.ExecutionID, BusinessID: id.BusinessID, AccountType: id.AccountType, Name: e.request.Name,
		Runtime: string(e.request.Job.Runtime), State: e.state, QueuedAt: e.queued, StartedAt: e.started,
		FinishedAt: e.finished,
	}
	if e.state != Finished {
		return s
	}
	if e.err != nil {
		s.Outcome, s.Failure = e.ended.Outcome(e.err), e.err.Error()
		return s
	}
	result := e.ended.Result
	s.Outcome, s.Result = result.Outcome, e.document
	s.Phases = map[string]float64{}
	for phase, spent := range e.ended.Spent(e.started.Sub(e.queued)) {
		s.Phases[string(phase)+"_ms"] = milliseconds(spent)
	}
	return s
}

// A reader gets at most eventsAtOnce events at once, and none after eventBytesAtOnce, because each gets a copy.
const (
	eventsAtOnce     = 100
	eventBytesAtOnce = 16 << 10
)

// always is a closed channel.
var always = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Events returns the events after number, or only some if there are many, and a channel that is closed when more are
// available. No events follow "finished".
func (e *Execution) Events(after int) ([]Event, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if after < 0 || after > len(e.events) {
		after = len(e.events)
	}
	var events []Event
	size := 0
	for i, kept := range e.events[after:] {
		if i == eventsAtOnce || size > eventBytesAtOnce {
			return events, always
		}
		event := Event{Number: after + i + 1, Type: kept.kind, Time: time.Unix(0, kept.at), Data: json.RawMessage(kept.text)}
		if kept.kind == "log" {
			event.Data = encoded(map[string]string{"message": kept.text})
		}
		events, size = append(events, event), size+len(kept.text)
	}
	return events, e.changed
}

// Log implements [runner.Observer].
func (e *Execution) Log(message string) { e.add("log", message) }

// HTTP implements [runner.Observer].
func (e *Execution) HTTP(call runner.HTTPEntry) { e.add("http", string(encoded(call))) }

// encoded returns data as a JSON document, or null if it cannot be encoded.
func encoded(data any) json.RawMessage {
	body, err := json.Marshal(data)
	if err != nil {
		return json.RawMessage("null")
	}
	return body
}

// executionSize is the size of an execution without the texts that keptBytes adds up. nameSize is the size of a
// declared output or of the name of a secret. eventSize is the size of an event: its fields, the spare capacity of
// their slice, and the allocation of its text.
const (
	executionSize = 8 << 10
	nameSize      = 48
	eventSize     = 80
)

// add records an event.
func (e *Execution) add(kind, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.append(kind, text)
}

func (e *Execution) append(kind, text string) {
	e.events = append(e.events, event{time.Now().UnixNano(), kind, text})
	e.size += int64(len(text)+len(text)/8) + eventSize // the allocator rounds up
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *Execution) start() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state, e.started = Running, time.Now()
	e.append("started", `{}`)
}

// finish stores the end as encoded documents, and drops everything else: the script, its inputs, its secrets, and the
// decoded result.
func (e *Execution) finish(ended execution.Ended, err error) {
	var document []byte
	if err == nil {
		document, err = ended.Result.MarshalJSON() // directly, because json.Marshal would escape HTML
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state, e.finished, e.ended, e.err, e.document = Finished, time.Now(), ended, err, document
	// The result has redacted copies of the script and the inputs for the page.
	e.request.Job = runner.Execution{Runtime: e.request.Job.Runtime, Traceparent: e.request.Job.Traceparent}
	e.request.Tracestate = ""
	// The document contains these, and the events contain the times of the logs.
	kept := &e.ended.Result
	kept.Values, kept.Logs, kept.HTTP, kept.Error, kept.LogTimes = nil, nil, nil, nil, nil
	e.size += e.keptBytes()
	summary := map[string]any{"outcome": ended.Result.Outcome, "duration_ms": milliseconds(ended.Result.Duration)}
	if err != nil {
		summary = map[string]any{"outcome": ended.Outcome(err), "failure": err.Error()}
	}
	e.append("finished", string(encoded(summary)))
	close(e.done)
}

// keptBytes returns the size of a finished execution without its events, in bytes.
func (e *Execution) keptBytes() int64 {
	result := e.ended.Result
	size := executionSize + len(e.document) + len(result.Stdout) + len(result.Stderr) + len(result.Source) +
		len(result.Inputs) +
		len(e.request.Name) + len(e.callback)
	for _, output := range e.asked.Outputs {
		size += nameSize + len(output.Name) + len(output.Type)
	}
	for _, name := range e.asked.Secrets {
		size += nameSize + len(name)
	}
	return int64(size)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
