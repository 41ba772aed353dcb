package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner/egress"
	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// ErrCannotFork reports that this machine cannot isolate the forks of a fork server: they need user, mount and PID
// namespaces.
var ErrCannotFork = errors.New("the sandbox cannot fork here")

// forkLayers are the layers without which forks would share files or processes.
var forkLayers = []string{stage.LayerFileSystem, layerPID, stage.LayerProc, layerIPC}

// A ForkServer forks programs. Each gets its own sandbox, equivalent to one made by Start, in the time of a fork. The
// server itself is trusted: it sets up the sandboxes and never runs a program's code. It is safe for concurrent use.
//
// The embedded Process is the server's own; when it ends, all forks end.
type ForkServer struct {
	*Process
	sandbox *Sandbox
	spec    Spec

	mu       sync.Mutex // one request at a time
	requests *net.UnixConn
}

// StartForkServer starts a program that serves fork requests on its descriptor 3; spec.Files follow. The limits of spec
// apply to the server and to each fork. If the forks cannot be isolated, the error is ErrCannotFork.
func (s *Sandbox) StartForkServer(ctx context.Context, spec Spec) (*ForkServer, error) {
	s.probe()
	if err := s.canFork(spec); err != nil {
		return nil, err
	}
	f, err := s.launchForkServer(ctx, spec)
	if err != nil {
		return nil, err
	}
	plan, err := f.plan()
	if err == nil {
		err = f.sendPlan(plan)
	}
	if err != nil {
		f.Kill()
		f.Wait()
		return nil, err
	}
	return f, nil
}

// canFork returns an ErrCannotFork if this machine, or the forks' readable paths, do not allow isolation.
func (s *Sandbox) canFork(spec Spec) error {
	needed := forkLayers
	if spec.Network == NetworkKizenOnly {
		needed = append(slices.Clone(needed), stage.LayerNetwork)
	}
	for _, layer := range needed {
		if !s.holds(layer) {
			return fmt.Errorf("%w: it lacks the layer %s", ErrCannotFork, layer)
		}
	}
	for _, path := range spec.Readable {
		if hidden(path) {
			return fmt.Errorf("%w: the forks' own directories would hide %s", ErrCannotFork, path)
		}
	}
	return nil
}

// launchForkServer starts a server, which then waits for its plan.
func (s *Sandbox) launchForkServer(ctx context.Context, spec Spec) (*ForkServer, error) {
	requests, theirs, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	own := spec
	own.Files = append([]*os.File{theirs}, spec.Files...)
	network, err := s.network(spec.Network)
	if err != nil {
		return nil, errors.Join(err, requests.Close())
	}
	spec.Network = network
	own.Network = NetworkHost
	own.forkServer, own.policy, own.Idle = true, network == NetworkPolicy, true
	process, err := s.Start(ctx, own)
	if err != nil {
		return nil, errors.Join(err, requests.Close())
	}
	f := &ForkServer{Process: process, sandbox: s, spec: spec, requests: requests}
	if own.policy {
		f.nameServers = egress.NameServers()
	}
	return f, nil
}

// hidden reports whether a path lies in a directory that is new in each fork.
func hidden(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && slices.ContainsFunc([]string{home, shm, sourceDir}, func(fresh string) bool {
		return strings.HasPrefix(real+"/", fresh+"/") || strings.HasPrefix(path+"/", fresh+"/")
	})
}

// Kill ends the server and all its forks immediately. It does not wait.
func (f *ForkServer) Kill() {
	_ = f.requests.Close()
	f.Process.Kill()
}

// plan returns the plan for the forks' sandboxes.
func (f *ForkServer) plan() (stage.ForkPlan, error) {
	plan := stage.ForkPlan{
		Calls:      stage.ForkCalls,
		Namespaces: uint64(f.ns.attr.Cloneflags),
		Dir:        f.job.Dir, HideCgroups: f.job.HideCgroups,
		Listen:       f.spec.Network == NetworkKizenOnly,
		Limits:       forkLimits(f.spec.Limits.withDefaults(), f.Process),
		Capabilities: f.job.Step == nil,
		Filter:       f.job.Filter,
	}
	if f.spec.Network == NetworkPolicy {
		plan.Connections = f.sandbox.connections
	}
	if plan.Listen {
		plan.Namespaces |= unix.CLONE_NEWNET
	}
	for _, mount := range f.job.Mounts {
		if fresh, ok := stage.PlanFork(mount); ok {
			plan.Mounts = append(plan.Mounts, fresh)
		}
	}
	if f.job.Landlock == nil {
		return plan, nil
	}
	var err error
	plan.Landlock, err = f.job.Landlock.Plan()
	return plan, err
}

// sendPlan sends the server its plan.
func (f *ForkServer) sendPlan(plan stage.ForkPlan) error {
	packet, err := json.Marshal(plan)
	if err != nil {
		return fmt.Errorf("encode the plan of forks: %w", err)
	}
	if _, err := f.requests.Write(packet); err != nil {
		return fmt.Errorf("send the plan to the fork server: %w", err)
	}
	return nil
}

// forkLimits returns the limits that a fork sets itself: those that count per user, because all forks may have the
// same user.
func forkLimits(limits Limits, server *Process) []stage.Limit {
	var own []stage.Limit
	others := 0
	if server.ns.step == nil {
		others = 1 // the fork's first process is the same user
	}
	for _, limit := range limits.rlimits(server.group.memory != "", server.group.pids != "", others) {
		if countsProcesses(limit) {
			own = append(own, limit)
		}
	}
	return own
}

// countsProcesses reports whether a limit counts the processes of a user.
func countsProcesses(limit stage.Limit) bool { return limit.Resource == unix.RLIMIT_NPROC }

// Fork forks a program. It uses only Files, Stdout and Stderr of spec, and Memory, Processes and CPU of its limits;
// everything else comes from the server. When Fork returns, the program runs; when ctx ends, it is killed.
func (f *ForkServer) Fork(ctx context.Context, spec Spec) (*Process, error) {
	p, err := f.prepareFork(spec)
	if err != nil {
		return nil, err
	}
	pidfd, err := f.request(p)
	if err != nil {
		p.clean()
		return nil, err
	}
	p.leader, err = newForked(pidfd)
	if err != nil {
		p.clean()
		return nil, err
	}
	routine.Go(func() {
		defer close(p.done)
		p.supervise(ctx)
	})
	err = p.await(stage.Ready, stage.Started)
	close(p.handedOver)
	if err != nil {
		p.abandon()
		return nil, errors.Join(ctx.Err(), p.whyNotExecuted(err))
	}
	return p, nil
}

// prepareFork creates the sidecar's resources for a fork.
func (f *ForkServer) prepareFork(spec Spec) (*Process, error) {
	s := f.sandbox
	number := s.started.Add(1)
	limits := spec.Limits.withDefaults()
	p := &Process{job: f.job, sourceDir: f.sourceDir, supervised: f.spec.Network == NetworkPolicy, writable: f.writable,
		nameServers: f.nameServers, upstream: s.config.upstream, user: s.takeUser(), handedOver: make(chan struct{}),
		done: make(chan struct{}), group: &group{}}
	p.ns = s.namespaces(p.user.id, false)
	group, err := s.groups.create(number, limits, 1)
	if err != nil {
		p.clean()
		return nil, err
	}
	p.group = group
	p.monitor = newMonitor(spec, limits, p.group)
	if err := p.open(spec); err != nil {
		p.clean()
		return nil, err
	}
	return p, nil
}

// request asks the server for the fork's first process, and returns its pidfd.
func (f *ForkServer) request(p *Process) (int, error) {
	request := p.ns.forkRequest()
	request.Files = len(p.inherits) - stage.ControlFD - 1
	groups, into, err := p.group.members(f.group)
	for _, file := range groups {
		defer func() { _ = file.Close() }()
	}
	if err != nil {
		return -1, err
	}
	if request.Into = into; !into {
		request.Groups = len(groups) / 2
	}
	packet, err := json.Marshal(request)
	if err != nil {
		return -1, fmt.Errorf("encode the request of a fork: %w", err)
	}
	// Its control socket, standard output and error, and its files.
	passed := append([]*os.File{p.inherits[stage.ControlFD]}, p.inherits[1:stage.ControlFD]...)
	passed = append(append(passed, p.inherits[stage.ControlFD+1:]...), groups...)
	rights := make([]int, len(passed))
	for i, file := range passed {
		rights[i] = int(file.Fd())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	defer p.closeInherited()
	if _, _, err := f.requests.WriteMsgUnix(packet, unix.UnixRights(rights...), nil); err != nil {
		return -1, fmt.Errorf("ask the fork server: %w", err)
	}
	return f.reply()
}

func (f *ForkServer) reply() (int, error) {
	packet, descriptors, err := receivePacket(f.requests)
	if err != nil {
		return -1, fmt.Errorf("the fork server died: %w", err)
	}
	var reply stage.ForkReply
	if err := json.Unmarshal(packet, &reply); err != nil {
		return -1, fmt.Errorf("decode the fork server's reply: %w", err)
	}
	if reply.Error != "" || len(descriptors) != 1 {
		return -1, fmt.Errorf("the fork server could not fork: %s", reply.Error)
	}
	return descriptors[0], nil
}
