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

// Result is what one execution gave back. It marshals to the body of POST /api/coderunner/run: request_id,
// duration_ms, values, logs, http_requests and error, which its clients know, and layers, which they ignore; a failure's
// outcome, evidence and what it printed stand inside error.
type Result struct {
	// RequestID is the execution's id.
	RequestID string
	// Duration is the time from the step's first line to its end; zero when it never started.
	Duration time.Duration
	// Values are the outputs in declared order; nil unless the step succeeded.
	Values []NamedValue
	Logs   []string
	// HTTP is the record of the step's HTTP calls; nil when the step never started.
	HTTP *HTTPRecord
	// Error is nil when the step succeeded.
	Error *StepError

	Outcome  Outcome
	Evidence Evidence
	Phases   Phases
	Layers   Layers
	// Dropped counts what was cut from the logs, in messages and bytes.
	Dropped Dropped
	// Stdout and Stderr are the ends of what the step printed, at most 8 KiB each; of a success they are not marshalled.
	Stdout, Stderr string
	// Notes are what an operator should hear about this execution, such as a runtime that was replaced by another.
	Notes []string

	// What follows is for people, and not part of the marshalled result either.

	// Source is the step's script and Inputs what it was given, both redacted as the rest is.
	Source string
	Inputs Inputs
	// LogTimes says when each of Logs came.
	LogTimes []time.Time
	// Begun is when the interpreter was started, Started when the step's first line was; zero when it never came to it.
	Begun, Started time.Time
}

// NamedValue is one output.
type NamedValue struct {
	Name  string
	Value Value
}

// StepError says why a step failed.
type StepError struct {
	// Message is one line: the exception's class and text, or the limit and its value.
	Message string
	// Detail is the traceback, from the step's own frames on, or where the step's threads were at its limit; empty when there is
	// none.
	Detail string
}

// Evidence is what was measured of the step's process tree.
type Evidence struct {
	Wall time.Duration
	CPU  time.Duration
	// PeakMemory is in bytes; zero when it could not be measured.
	PeakMemory int64
	// PeakProcesses is the most processes and threads at one time; Survivors how many were left when the main process
	// ended, and were killed.
	PeakProcesses, Survivors int
	// ExitCode is -1 when the process did not exit by itself.
	ExitCode int
	// Signal is what killed the process; zero when none did.
	Signal syscall.Signal
	// OutOfMemory is true when the kernel or the runner killed it for its memory.
	OutOfMemory bool
}

// Layers of the sandbox, by the names that doctor lists them under.
type Layers struct {
	// Held are those that were in force around the step, Missing those that this machine withholds.
	Held, Missing []string
}

// Phases say where an execution's time went.
type Phases struct {
	// Spawn is from the request to a sandboxed Python that runs, Import until the step's first line, Step the step's own
	// code, Teardown until nothing of it was left.
	Spawn, Import, Step, Teardown time.Duration
}

// Dropped counts what did not fit into the logs.
type Dropped struct {
	Messages int64
	Bytes    int64
}

// HTTPRecord is what the step sent over HTTP.
type HTTPRecord struct {
	// Count is the number of calls; NotLogged how many of them are not in Requests.
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

// answered reports whether it is known what came of the call.
func (e HTTPEntry) answered() bool { return e.ResponseStatusCode != nil || e.RequestErrorType != nil }

// Succeeded reports whether the step did what it was asked.
func (r Result) Succeeded() bool { return r.Outcome == outcomes.OK }

// MarshalJSON writes the body described at Result.
func (r Result) MarshalJSON() ([]byte, error) {
	body := struct {
		RequestID  string      `json:"request_id"`
		DurationMS float64     `json:"duration_ms"`
		Values     *valuesJSON `json:"values"`
		Logs       []string    `json:"logs"`
		HTTP       *HTTPRecord `json:"http_requests"`
		Error      *errorJSON  `json:"error"`
		Layers     layersJSON  `json:"layers"`
	}{RequestID: r.RequestID, DurationMS: milliseconds(r.Duration), Logs: r.Logs, HTTP: r.HTTP, Layers: newLayersJSON(r.Layers)}
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
	// MissingLayers is empty, never null.
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

// layersJSON has lists that are empty, never null.
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
		value, err := marshal(named.Value)
		if err != nil {
			return nil, err
		}
		out.Write(name)
		out.WriteByte(':')
		out.Write(value)
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

// milliseconds rounds to the microsecond: 9.4 stays 9.4.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
