package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kizen/kizen-sidecar/runner/egress"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// Execution is one run of one step.
type Execution struct {
	// ID names the execution; it comes back as the result's request_id.
	ID      string
	Script  []byte
	Runtime Runtime
	Inputs  Inputs
	Outputs Outputs
	// Secrets holds the granted secrets, under the names by which the step reads them.
	Secrets map[string]Secret
	// Keys returns the keys that the execution's calls have used so far, the newest last. If Keys is nil, none are
	// known. The step must never read one: they are removed from all recorded text, and an output that contains one
	// fails the step.
	Keys func() []string
	// APIURL is the base URL of the execution's local proxy, including the capability. APIRoot replaces it in the
	// result.
	APIURL, APIRoot string
	// Traceparent is the W3C trace context the step's calls belong to, if any.
	Traceparent string
	// Policy decides on the step's connections, with [sandbox.NetworkPolicy]. If nil, all are refused.
	Policy egress.Policy
	// Connected, if not nil, is called for each connection that was made or refused.
	Connected func(egress.Connection)
	// Observer, if not nil, receives the step's logs and calls as they occur.
	Observer Observer
	// Timeout and Memory, in bytes, override the runner's limits unless they are zero.
	Timeout time.Duration
	Memory  int64
}

// Observer receives the logs and calls of a running step, redacted and truncated as in its result. The goroutine that
// reads the step's messages calls its methods one after the other. If a method blocks, the step may have to wait, and
// its time limit keeps running.
type Observer interface {
	// Log is called for each kept message.
	Log(message string)
	// HTTP is called once for each kept call, when its response headers have arrived or it has failed.
	HTTP(call HTTPEntry)
}

// Config configures a Runner. Its zero value is usable.
type Config struct {
	// Python is the path of the interpreter for every runtime. If empty, it is found for each runtime.
	Python string
	// StrictRuntime makes a step fail if the Python version that it requests is missing.
	StrictRuntime bool
	// Sandbox says what to do if the kernel lacks a layer of isolation; default auto.
	Sandbox sandbox.Mode
	// Network is the network of steps; default the host's. With kizen-only the proxy must serve on
	// Prepared.Listener.
	Network sandbox.Network
	// MaxConnections limits the connections of an execution, MaxQuestions its DNS queries per second, both with
	// [sandbox.NetworkPolicy]. 0 means no limit.
	MaxConnections, MaxQuestions int
	// Limits are the limits of every execution.
	Limits Limits
	// Logger logs problems for the operator. If nil, logging is disabled.
	Logger *slog.Logger
}

// Errors of the sidecar's own work, for errors.Is.
var (
	// ErrNoPython reports that no interpreter for the runtime is installed.
	ErrNoPython = errors.New("no usable python")
	// ErrHarness reports that the interpreter or the harness in it did not start.
	ErrHarness = errors.New("the python harness did not start")
	// ErrNotBegun reports, beside ErrHarness, that no code of the step has run, so that it can run again.
	ErrNotBegun = errors.New("the step's code has not begun")
)

// Runner runs steps. It is safe for concurrent use.
type Runner struct {
	config  Config
	sandbox *sandbox.Sandbox
	bundles bundles

	mu           sync.Mutex
	interpreters map[Runtime]choice
}

// choice is the interpreter chosen for a runtime.
type choice struct {
	interpreter Interpreter
	warning     string
}

// New validates config. If the sandbox is required and a layer is missing, it returns a *sandbox.MissingError.
func New(config Config) (*Runner, error) {
	if err := config.Limits.Validate(); err != nil {
		return nil, err
	}
	config.Limits = config.Limits.WithDefaults()
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	box, err := sandbox.New(sandbox.Config{Mode: config.Sandbox, Logger: config.Logger})
	if err != nil {
		return nil, err
	}
	return &Runner{config: config, sandbox: box, bundles: bundles{dir: bundleDir()},
		interpreters: map[Runtime]choice{}}, nil
}

// Run executes one step and returns when all its processes are gone. A failed step is a Result; an error is the
// sidecar's own failure, or *FieldErrors for an invalid execution. If ctx ends first, the step is stopped and the
// outcome is Cancelled.
func (r *Runner) Run(ctx context.Context, execution Execution) (Result, error) {
	limits := r.limits(execution)
	if err := checkExecution(execution, limits); err != nil {
		return Result{}, err
	}
	// Prepared.Run kills the process and reports the cancellation.
	prepared, err := r.Prepare(context.WithoutCancel(ctx), execution.Runtime, limits)
	if err != nil {
		return Result{}, fmt.Errorf("execution %s: %w", execution.ID, err)
	}
	return prepared.Run(ctx, execution)
}

// Sandbox reports which layers of isolation this machine supports.
func (r *Runner) Sandbox() sandbox.Report { return r.sandbox.Report() }

// HoldsSocket reports whether a step holds a socket of this machine, given by its user and inode.
func (r *Runner) HoldsSocket(user, inode uint32) bool { return r.sandbox.HoldsSocket(user, inode) }

// checkExecution rejects an execution that cannot run or cannot be encoded as a job.
func checkExecution(execution Execution, limits Limits) error {
	var errs FieldErrors
	errs.Merge(limits.Validate())
	_, err := NormaliseScript(execution.Script)
	errs.Merge(err, "user_script")
	return errs.Err()
}

// limits returns the runner's limits with the execution's overrides.
func (r *Runner) limits(execution Execution) Limits {
	limits := r.config.Limits
	if execution.Timeout != 0 {
		limits.Wall = execution.Timeout
	}
	if execution.Memory != 0 {
		limits.Memory = execution.Memory
	}
	return limits
}

// interpreter finds the Python for runtime once; a replacement is logged when it is chosen.
func (r *Runner) interpreter(runtime Runtime) (choice, error) {
	if runtime == "" {
		runtime = DefaultRuntime
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if chosen, ok := r.interpreters[runtime]; ok {
		return chosen, nil
	}
	found, warning, err := FindInterpreter(runtime, r.config.Python, r.config.StrictRuntime)
	if err != nil {
		return choice{}, err
	}
	if warning != "" {
		r.config.Logger.Warn(warning)
	}
	chosen := choice{interpreter: found, warning: warning}
	r.interpreters[runtime] = chosen
	return chosen, nil
}
