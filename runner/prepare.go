package runner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/kizen/kizen-sidecar/runner/egress"
	"github.com/kizen/kizen-sidecar/runner/sandbox"
)

// Prepared is a sandboxed interpreter that waits for one job. All preparation that needs neither the job nor a secret
// or key is done. Run uses it once; Discard discards it unused.
type Prepared struct {
	interpreter Interpreter
	notes       []string
	layers      Layers
	limits      Limits
	process     process
	sockets     sockets
	places      *places
	stdout      *drain
	stderr      *drain
	begun       time.Time
	spawned     time.Time
	warm        bool // the harness has reported that it is loaded
	config      *Config
}

// process is a running process tree. Kill kills all of it and does not wait; Done is closed when all processes are
// gone, after which Wait returns at once.
type process interface {
	Kill()
	Done() <-chan struct{}
	Wait() sandbox.Exit
	Listener() net.Listener
	LimitCPU(limit time.Duration)
	ChargeCPU(used time.Duration)
	SourceDir() string
	Connections() *egress.Supervisor
}

// Prepare starts an interpreter for runtime. It fixes the limits of the whole process: only Wall and Result can still
// change. When ctx ends, the start is aborted or the interpreter is killed.
func (r *Runner) Prepare(ctx context.Context, runtime Runtime, limits Limits) (*Prepared, error) {
	return r.prepare(ctx, runtime, limits, false)
}

// PrepareWarm is like Prepare, but returns when the interpreter has imported the harness, requests and the most used
// modules. This time does not count for the execution that gets it.
func (r *Runner) PrepareWarm(ctx context.Context, runtime Runtime, limits Limits) (*Prepared, error) {
	p, err := r.prepare(ctx, runtime, limits, true)
	if err != nil {
		return nil, err
	}
	if err := p.awaitReady(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// awaitReady returns when the harness is loaded. If loading fails, the interpreter has been discarded.
func (p *Prepared) awaitReady(ctx context.Context) error {
	_ = p.sockets.stream.SetReadDeadline(time.Now().Add(startupLimit))
	reader := &frameReader{from: p.sockets.stream}
	message, reading := reader.next()
	if reading == nil && message.Kind == kindReady {
		return nil
	}
	p.process.Kill()
	exit := p.process.Wait()
	_, stderr := p.Discard()
	return errors.Join(ctx.Err(), fmt.Errorf("%w: %s", ErrHarness, startFailure(reading, exit, stderr)))
}

func (r *Runner) prepare(ctx context.Context, runtime Runtime, limits Limits, warm bool) (*Prepared, error) {
	p, err := r.choose(runtime, limits)
	if err != nil {
		return nil, err
	}
	p.warm = warm
	bundle := r.bundles.get(ctx, p.interpreter)
	err = p.start(func(spec sandbox.Spec) (process, error) {
		spec.Argv = loader(p.interpreter, "3")
		if warm {
			spec.Argv = append(spec.Argv, "warm")
		}
		spec.Env, spec.Readable, spec.Network = r.environment(), p.interpreter.readable(), r.config.Network
		return startProcess(ctx, r.sandbox, spec)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: start %s: %w", ErrHarness, p.interpreter.Path, err)
	}
	p.layers = r.layers()
	p.load(bundle)
	return p, nil
}

// choose returns an interpreter for runtime that has not been started.
func (r *Runner) choose(runtime Runtime, limits Limits) (*Prepared, error) {
	chosen, err := r.interpreter(runtime)
	if err != nil {
		return nil, err
	}
	p := &Prepared{interpreter: chosen.interpreter, limits: limits, begun: time.Now(), config: &r.config}
	if chosen.warning != "" {
		p.notes = append(p.notes, chosen.warning)
	}
	return p, nil
}

// layers returns the sandbox layers of started programs.
func (r *Runner) layers() Layers {
	report := r.sandbox.Report()
	return Layers{Held: report.InForce(r.sandbox.Network(r.config.Network)), Missing: report.Withheld()}
}

// start opens the sockets and the output pipes, and calls launch to start a process with their other ends.
func (p *Prepared) start(launch func(spec sandbox.Spec) (process, error)) error {
	ours, theirs, err := newSockets()
	if err != nil {
		return err
	}
	defer theirs.close()
	p.sockets, p.places = ours, &places{socket: ours.stacks}
	if p.stdout, err = newDrain(); err == nil {
		p.stderr, err = newDrain()
	}
	if err == nil {
		p.process, err = launch(sandbox.Spec{
			Files:  theirs.files(),
			Stdout: p.stdout.write, Stderr: p.stderr.write,
			OverLimit: p.places.ask, NearMemory: p.places.askNearMemory, Idle: p.warm,
			Limits: sandbox.Limits{
				Memory: p.limits.Memory, Tmp: p.limits.TmpSize, FileSize: p.limits.FileSize,
				Processes: int(p.limits.Processes), OpenFiles: int(p.limits.OpenFiles), CPU: p.limits.CPU,
			},
		})
	}
	if err != nil {
		p.release()
		return err
	}
	_, _ = p.stdout.write.Close(), p.stderr.write.Close()
	p.spawned = time.Now()
	return nil
}

// load sends the harness. If the interpreter has exited and does not read it, waiting for the interpreter returns the
// reason.
func (p *Prepared) load(bundle []byte) {
	// The harness usually fits into the socket's buffer; otherwise the interpreter reads while this writes.
	_ = p.sockets.stream.SetWriteDeadline(p.begun.Add(startupLimit))
	if writeFrame(p.sockets.stream, bundle) == nil {
		_ = p.sockets.stream.SetWriteDeadline(time.Time{})
	}
}

// loader returns the command line of an interpreter that reads the harness from a descriptor, the first of its sockets.
func loader(interpreter Interpreter, descriptor string) []string {
	return []string{interpreter.Path, "-I", "-S", "-c", loaderSource, descriptor}
}

// startProcess keeps a nil *sandbox.Process out of the interface.
func startProcess(ctx context.Context, box *sandbox.Sandbox, spec sandbox.Spec) (process, error) {
	started, err := box.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return started, nil
}

// environment is the environment of an interpreter. The harness adds the job's KIZEN_API_URL and TRACEPARENT.
var environment = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8", "TZ=UTC"}

// environment returns the environment of interpreters. If a policy decides on connections, it makes programs query
// name servers over TCP, because the supervisor answers in their place.
func (r *Runner) environment() []string {
	if r.config.Network == sandbox.NetworkPolicy {
		return append(slices.Clone(environment), "RES_OPTIONS=use-vc")
	}
	return environment
}

// beginConnections allows the connections that the execution's policy permits.
func (p *Prepared) beginConnections(execution Execution) {
	supervisor := p.process.Connections()
	if supervisor == nil {
		return
	}
	job := egress.Job{
		Policy: execution.Policy, Observe: execution.Connected,
		MaxConnections: p.config.MaxConnections, MaxQuestions: p.config.MaxQuestions,
	}
	if local, err := url.Parse(execution.APIURL); err == nil {
		if address, err := netip.ParseAddrPort(local.Host); err == nil {
			job.Proxy = address
		}
	}
	supervisor.Begin(job)
}

// Relimit sets the limits of a warm interpreter to those of its execution; see [Limits.ShareProcess].
func (p *Prepared) Relimit(limits Limits) { p.limits = limits }

// Listener returns the listener on the loopback address of the step's own network, or nil on the host's network. The
// execution's proxy must serve on it; the caller closes it.
func (p *Prepared) Listener() net.Listener { return p.process.Listener() }

// Done returns a channel that is closed when the interpreter has ended. While it waits for its job, it ends only if it
// is killed.
func (p *Prepared) Done() <-chan struct{} { return p.process.Done() }

// Discard kills an unused interpreter, waits until all its processes are gone, and returns its output.
func (p *Prepared) Discard() (stdout, stderr string) {
	p.process.Kill()
	p.process.Wait()
	if listener := p.process.Listener(); listener != nil {
		_ = listener.Close()
	}
	return p.release()
}

// release closes the runner's resources for an interpreter that has ended, and returns the tail of its output.
func (p *Prepared) release() (stdout, stderr string) {
	p.sockets.close()
	if p.stdout != nil {
		stdout = p.stdout.finish()
	}
	if p.stderr != nil {
		stderr = p.stderr.finish()
	}
	return stdout, stderr
}

// Run runs the execution, as [Runner.Run] does, with the runtime and the process limits with which the interpreter was
// prepared.
func (p *Prepared) Run(ctx context.Context, execution Execution) (Result, error) {
	limits := p.limits
	if execution.Timeout != 0 {
		limits.Wall = execution.Timeout
	}
	if err := checkExecution(execution, limits); err != nil {
		p.Discard()
		return Result{}, err
	}
	a := &attempt{Prepared: p, execution: execution, limits: limits, collector: newCollector(execution), taken: time.Now()}
	if p.warm {
		// The time that the interpreter waited in the pool does not count for the execution.
		p.begun, p.spawned = a.taken, a.taken
		p.process.LimitCPU(limits.CPU)
	}
	p.beginConnections(execution)
	result, err := a.run(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("execution %s: %w", execution.ID, err)
	}
	result.Notes = append(p.notes, result.Notes...)
	return result, nil
}
