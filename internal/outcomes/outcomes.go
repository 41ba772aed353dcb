// Package outcomes lists how an execution can end, and for each outcome the HTTP status, the exit code of the command,
// and whether the execution may be retried.
package outcomes

import (
	"net/http"
	"slices"
)

// Outcome says how an execution ended. It is also the value of metric labels and of attributes of spans. The set is
// closed.
type Outcome string

// The outcomes. The step ran for all but the last three.
const (
	OK                    Outcome = "ok"
	SyntaxError           Outcome = "syntax_error"
	Exception             Outcome = "exception"
	Timeout               Outcome = "timeout"
	CPULimit              Outcome = "cpu_limit"
	MemoryLimit           Outcome = "memory_limit"
	ProcessLimit          Outcome = "process_limit"
	OutputLimit           Outcome = "output_limit"
	KilledBySignal        Outcome = "killed_by_signal"
	Exited                Outcome = "exited"
	ResultMissing         Outcome = "result_missing"
	ResultNotSerialisable Outcome = "result_not_serialisable"
	Cancelled             Outcome = "cancelled"
	Internal              Outcome = "internal"
	Refused               Outcome = "refused"
	NotStarted            Outcome = "not_started"
	WorkerDied            Outcome = "worker_died"
)

// Exit codes of a command that runs one execution.
const (
	exitOK      = 0
	exitStep    = 1
	exitUsage   = 2
	exitSidecar = 3
)

// row holds the properties of an outcome.
type row struct {
	outcome   Outcome
	status    int // HTTP status
	exitCode  int
	retryable bool
	sentence  string
}

// table has the outcomes in display order.
var table = []row{
	{OK, http.StatusOK, exitOK, false, "The step succeeded."},
	{SyntaxError, http.StatusBadRequest, exitStep, false, "The script is not valid Python."},
	{Exception, http.StatusBadRequest, exitStep, false, "The step raised an exception."},
	{Timeout, http.StatusBadRequest, exitStep, false, "The step ran longer than allowed."},
	{CPULimit, http.StatusBadRequest, exitStep, false, "The step used more processor time than allowed."},
	{MemoryLimit, http.StatusBadRequest, exitStep, false, "The step used more memory than allowed."},
	{ProcessLimit, http.StatusBadRequest, exitStep, false, "The step started more processes and threads than allowed."},
	{OutputLimit, http.StatusBadRequest, exitStep, false, "The step wrote more than allowed."},
	{KilledBySignal, http.StatusBadRequest, exitStep, false, "A signal killed the step's process."},
	{Exited, http.StatusBadRequest, exitStep, false, "The step ended its own process."},
	{ResultMissing, http.StatusBadRequest, exitStep, false, "The step ended without a result."},
	{ResultNotSerialisable, http.StatusBadRequest, exitStep, false, "An output does not fit its type."},
	{Cancelled, http.StatusBadRequest, exitStep, false, "The execution was cancelled."},
	{Internal, http.StatusInternalServerError, exitSidecar, false, "The sidecar failed while the step ran."},
	{Refused, http.StatusBadRequest, exitUsage, false, "The request cannot run as submitted."},
	{NotStarted, http.StatusServiceUnavailable, exitSidecar, true,
		"The step's code never started: it got no slot, no key or no Python."},
	{WorkerDied, http.StatusInternalServerError, exitSidecar, false,
		"The worker died after the step's code had started; its progress is unknown."},
}

// All returns every outcome in display order.
func All() []Outcome {
	all := make([]Outcome, len(table))
	for i, row := range table {
		all[i] = row.outcome
	}
	return all
}

// row returns the properties of o. Other versions may have further outcomes; this version treats them as failures.
func (o Outcome) row() row {
	if i := slices.IndexFunc(table, func(r row) bool { return r.outcome == o }); i >= 0 {
		return table[i]
	}
	return row{o, http.StatusInternalServerError, exitSidecar, false,
		"The execution ended with the unknown outcome " + string(o) + "."}
}

// Failed reports whether the execution failed; the status of its span says the same.
func (o Outcome) Failed() bool { return o != OK }

// Status returns the HTTP status of a response with the result (RFC 9110 section 15).
func (o Outcome) Status() int { return o.row().status }

// ExitCode returns the exit code of a command that ran the execution.
func (o Outcome) ExitCode() int { return o.row().exitCode }

// Retryable reports whether the execution can run again without repeating anything: its code never started, and the
// same request may succeed next time.
func (o Outcome) Retryable() bool { return o.row().retryable }

// Sentence returns a human-readable sentence about the outcome.
func (o Outcome) Sentence() string { return o.row().sentence }
