package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

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
	// Secrets are those the step was granted, under the names it reads them by.
	Secrets map[string]Secret
	// Keys are the keys that the execution's calls have been sent with so far, the newest last; nil: none are known. The step
	// must never read one: they are taken out of everything that is recorded of it, and an output that holds one fails it.
	Keys func() []string
	// APIURL is the base of the execution's local proxy, capability included. APIRoot is what the result shows in its
	// place.
	APIURL, APIRoot string
	// Traceparent is the W3C trace context the step's calls belong to, if any.
	Traceparent string
	// Observer, if any, hears of the step's logs and calls as they come.
	Observer Observer
	// Timeout and Memory, in bytes, replace the runner's own limits where they are not zero.
	Timeout time.Duration
	Memory  int64
}

// Observer hears of a running step what its result will tell, redacted and cut alike. Its methods are called one after the
// other on the goroutine that reads what the step sends: while one blocks, the step may have to wait and its time runs.
type Observer interface {
	// Log is told each message that is kept.
	Log(message string)
	// HTTP is told each call that is kept, once: when the head of its answer is there, or it has failed.
	HTTP(call HTTPEntry)
}

// Config is how a Runner works. Its zero value works.
type Config struct {
	// Python is the path of the interpreter for every runtime; empty: found by runtime.
	Python string
	// StrictRuntime refuses another Python than the one a step asks for.
	StrictRuntime bool
	// Sandbox says what happens where the kernel lacks a layer of isolation; empty: auto.
	Sandbox sandbox.Mode
	// Network is what steps reach; empty: the host's. With kizen-only the proxy serves on Prepared.Listener.
	Network sandbox.Network
	// Limits bound every execution.
	Limits Limits
	// Logger receives what an operator should know. If it is nil, nothing is logged.
	Logger *slog.Logger
}

// Errors of the sidecar's own work, for errors.Is.
var (
	// ErrNoPython: no interpreter for the runtime is installed.
	ErrNoPython = errors.New("no usable python")
	// ErrHarness: the interpreter did not start, or the harness did not come up in it.
	ErrHarness = errors.New("the python harness did not start")
)

// Runner runs steps. It is safe for concurrent use.
type Runner struct {
	config  Config
	sandbox *sandbox.Sandbox
	bundles bundles

	mu           sync.Mutex
	interpreters map[Runtime]choice
}

// choice is the interpreter found for a runtime.
type choice struct {
	interpreter Interpreter
	warning     string
}

// New checks config and, where the sandbox is required, that it holds: *sandbox.MissingError otherwise.
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
	return &Runner{config: config, sandbox: box, bundles: bundles{dir: bundleDir()}, interpreters: map[Runtime]choice{}}, nil
}

// Run executes one step and returns when nothing of it is left. A step that fails is a Result; an error is the
// sidecar's own failure, or *FieldErrors for an execution that cannot be run as it is. When ctx ends first the step is
// stopped and the outcome is Cancelled.
func (r *Runner) Run(ctx context.Context, execution Execution) (Result, error) {
	limits := r.limits(execution)
	if err := checkExecution(execution, limits); err != nil {
		return Result{}, err
	}
	// The process is ended by Prepared.Run, which also says that it was cancelled.
	prepared, err := r.Prepare(context.WithoutCancel(ctx), execution.Runtime, limits)
	if err != nil {
		return Result{}, fmt.Errorf("execution %s: %w", execution.ID, err)
	}
	return prepared.Run(ctx, execution)
}

// Sandbox says which layers of isolation hold on this machine.
func (r *Runner) Sandbox() sandbox.Report { return r.sandbox.Report() }

// HoldsSocket reports whether a socket of this machine, by the user who made it and its inode, belongs to a step.
func (r *Runner) HoldsSocket(user, inode uint32) bool { return r.sandbox.HoldsSocket(user, inode) }

// checkExecution refuses what cannot be run, or not be written into a job.
func checkExecution(execution Execution, limits Limits) error {
	var errs FieldErrors
	errs.Merge(limits.Validate())
	_, err := NormaliseScript(execution.Script)
	errs.Merge(err, "user_script")
	return errs.Err()
}

// limits are the runner's own, but for what the execution asks for.
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
