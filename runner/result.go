package runner

import (
	"bytes"
	"encoding/json"
	"syscall"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
)

// Outcome says how an execution ended.
type Outcome = outcomes.Outcome

// Result is the result of one execution. It marshals to the body of POST /api/coderunner/run: request_id, duration_ms,
// values, logs, http_requests and error, which existing clients know, and layers, which they ignore. The outcome,
// evidence and output of a failure are inside error.
type Result struct {
	// RequestID is the execution's id.
	RequestID string
	// Duration is the time from the step's first line to its end; zero if it never started.
	Duration time.Duration
	// Values are the outputs in declared order; nil unless the step succeeded.
	Values []NamedValue
	Logs   []string
	// HTTP is the record of the step's HTTP calls; nil if the step never started.
	HTTP *HTTPRecord
	// Connections is the record of the step's own connections; nil unless a policy decides on them.
	Connections *ConnectionRecord
	// Error is nil if the step succeeded.
	Error *StepError

	Outcome  Outcome
	Evidence Evidence
	Phases   Phases
	Layers   Layers
	// Dropped counts the dropped log messages and bytes.
	Dropped Dropped
	// Stdout and Stderr are the ends of the step's output, at most 8 KiB each; they are marshalled only for a
	// failure.
	Stdout, Stderr string
	// Notes are messages for the operator, such as the replacement of a runtime by another.
	Notes []string

	// The following fields are for display and not marshalled.

	// Source is the step's script and Inputs the JSON object of its inputs, both redacted.
	Source string
	Inputs json.RawMessage
	// LogTimes has the time of each message in Logs.
	LogTimes []time.Time
	// Begun is when the interpreter was started, Started when the step's first line ran, zero if it never did.
	Begun, Started time.Time
}

// NamedValue is one output.
type NamedValue struct {
	Name string
	// JSON is the value in its wire form. It stays encoded, because a decoded list takes many times as much memory.
	JSON json.RawMessage
}

// Value decodes the output.
func (n NamedValue) Value() Value {
	value, _ := readValue(n.JSON) // it was encoded from a valid one
	return value
}

// StepError says why a step failed.
type StepError struct {
	// Message is one line: the exception's class and text, or the limit and its value.
	Message string
	// Detail is the traceback, from the step's own frames on, or the stacks of the step's threads at its limit; it
	// may be empty.
	Detail string
}

// Evidence holds measurements of the step's process tree.
type Evidence struct {
	Wall time.Duration
	CPU  time.Duration
	// PeakMemory is in bytes; zero if it could not be measured.
	PeakMemory int64
	// PeakProcesses is the peak number of processes and threads; Survivors is how many outlived the main process
	// and were killed.
	PeakProcesses, Survivors int
	// ExitCode is -1 if a signal killed the process.
	ExitCode int
	// Signal is the signal that killed the process, or zero.
	Signal syscall.Signal
	// OutOfMemory reports that the kernel or the runner killed it because of its memory.
	OutOfMemory bool
}

// Layers are the layers of the sandbox, by their names in the output of doctor.
type Layers struct {
	// Held lists the layers that were in force around the step, Missing those that this machine does not support.
	Held, Missing []string
}

// Phases are the durations of an execution's phases.
type Phases struct {
	// Spawn lasts from the request until a sandboxed Python runs, Import until the step's first line, Step until
	// the end of its code, Teardown until all its processes are gone.
	Spawn, Import, Step, Teardown time.Duration
}

// Dropped counts log messages and bytes beyond the limits.
type Dropped struct {
	Messages int64
	Bytes    int64
}

// HTTPRecord is the record of the step's HTTP calls.
type HTTPRecord struct {
	// Count is the number of calls; NotLogged is how many of them are not in Requests.
	Count     int64       `json:"count"`
	NotLogged int64       `json:"not_logged"`
	Requests  []HTTPEntry `json:"requests"`
}

// HTTPEntry is one recorded call.
type HTTPEntry struct {
	Method             string            `json:"method"`
	URL                string            `json:"url"`
	Headers            map[string]string `json:"headers"`
	Body               *string           `json:"body"`
	RequestSubmittedAt string            `json:"requestSubmittedAt"`
	// Session is true for calls of kizen.api.
	Session            bool              `json:"session"`
	ResponseStatusCode *int              `json:"responseStatusCode"`
	ResponseHeaders    map[string]string `json:"responseHeaders"`
	ResponseBody       *string           `json:"responseBody"`
	// RequestErrorType is the class name of the exception the call raised, if any.
	RequestErrorType *string `json:"requestErrorType"`
	// Duration is in milliseconds.
	Duration *float64 `json:"duration"`
}

// answered reports whether the result of the call is known.
func (e HTTPEntry) answered() bool { return e.ResponseStatusCode != nil || e.RequestErrorType != nil }

// Succeeded reports whether the step succeeded.
func (r Result) Succeeded() bool { return r.Outcome == outcomes.OK }

// MarshalJSON writes the body described at Result.
func (r Result) MarshalJSON() ([]byte, error) {
	body := struct {
		RequestID   string            `json:"request_id"`
		DurationMS  float64           `json:"duration_ms"`
		Values      *valuesJSON       `json:"values"`
		Logs        []string          `json:"logs"`
		HTTP        *HTTPRecord       `json:"http_requests"`
		Connections *ConnectionRecord `json:"connections,omitempty"`
		Error       *errorJSON        `json:"error"`
		Layers      layersJSON        `json:"layers"`
	}{RequestID: r.RequestID, DurationMS: milliseconds(r.Duration), Logs: r.Logs, HTTP: r.HTTP, Connections: r.Connections,
		Layers: newLayersJSON(r.Layers)}
	if r.Logs == nil {
		body.Logs = []string{}
	}
	if r.Succeeded() {
		values := valuesJSON(r.Values)
		body.Values = &values
	}
	if r.Error != nil {
		body.Error = &errorJSON{
			Error: r.Error.Message, Detail: r.Error.Detail, Stdout: r.Stdout, Stderr: r.Stderr,
			Kind: r.Outcome, Evidence: newEvidenceJSON(r.Evidence, body.Layers),
		}
	}
	return marshal(body)
}

type errorJSON struct {
	Error    string       `json:"error"`
	Detail   string       `json:"detail"`
	Stdout   string       `json:"stdout,omitempty"`
	Stderr   string       `json:"stderr,omitempty"`
	Kind     Outcome      `json:"kind"`
	Evidence evidenceJSON `json:"evidence"`
}

type evidenceJSON struct {
	WallMS      float64 `json:"wall_ms"`
	CPUMS       float64 `json:"cpu_ms"`
	PeakMemory  int64   `json:"peak_memory_bytes"`
	ExitCode    *int    `json:"exit_code"`
	Signal      *string `json:"signal"`
	OutOfMemory bool    `json:"out_of_memory"`
	// MissingLayers may be empty, but is never null.
	MissingLayers []string `json:"missing_layers"`
}

func newEvidenceJSON(e Evidence, layers layersJSON) evidenceJSON {
	body := evidenceJSON{
		WallMS: milliseconds(e.Wall), CPUMS: milliseconds(e.CPU), PeakMemory: e.PeakMemory, OutOfMemory: e.OutOfMemory,
		MissingLayers: layers.Missing,
	}
	if e.ExitCode >= 0 {
		body.ExitCode = &e.ExitCode
	}
	if e.Signal != 0 {
		name := signalName(e.Signal)
		body.Signal = &name
	}
	return body
}

// layersJSON has lists that may be empty, but are never null.
type layersJSON struct {
	Held    []string `json:"held"`
	Missing []string `json:"missing"`
}

func newLayersJSON(l Layers) layersJSON {
	return layersJSON{Held: append([]string{}, l.Held...), Missing: append([]string{}, l.Missing...)}
}

// valuesJSON is an object whose keys keep the order of the list.
type valuesJSON []NamedValue

func (values valuesJSON) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	for i, named := range values {
		if i > 0 {
			out.WriteByte(',')
		}
		name, err := marshal(named.Name)
		if err != nil {
			return nil, err
		}
		out.Write(name)
		out.WriteByte(':')
		out.Write(named.JSON)
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// marshal is json.Marshal without the escapes that only matter inside HTML.
func marshal(v any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// milliseconds rounds to microseconds: 9.4 stays 9.4.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
