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
	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// ErrCannotFork says that this machine withholds what the forks of a fork server need to be kept apart: namespaces of
// users, files and processes.
var ErrCannotFork = errors.New("the sandbox cannot fork here")

// forkLayers are those without which forks would share files or processes with each other.
var forkLayers = []string{stage.LayerFileSystem, layerPID, stage.LayerProc, layerIPC}

// A ForkServer is a program that forks programs, each into a sandbox of its own as good as the one that Start makes, in the
// time of a fork. The server itself is trusted: it builds those sandboxes, and never runs anything of a program's. It may be
// used by several goroutines at once.
//
// As a Process it is the server's own; when that ends, so do all forks.
type ForkServer struct {
	*Process
	sandbox *Sandbox
	spec    Spec

	mu       sync.Mutex // one request at a time
	requests *net.UnixConn
}

// StartForkServer starts a program that serves forks on its descriptor 3; spec.Files follow. The limits of spec are those of
// the server and of each fork. The error is ErrCannotFork where the forks could not be kept apart.
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
		err = f.tell(plan)
	}
	if err != nil {
		f.Kill()
		f.Wait()
		return nil, err
	}
	return f, nil
}

// canFork returns an ErrCannotFork if this machine, or what the forks are to see, does not let them be kept apart.
func (s *Sandbox) canFork(spec Spec) error {
	needed := forkLayers
	if spec.Network == NetworkKizenOnly {
		needed = append(slices.Clone(needed), stage.LayerNetwork)
	}
	for _, layer := range needed {
		if !s.holds(layer) {
			return fmt.Errorf("%w: there is no %s", ErrCannotFork, layer)
		}
	}
	for _, path := range spec.Readable {
		if hidden(path) {
			return fmt.Errorf("%w: the forks' own directories would hide %s", ErrCannotFork, path)
		}
	}
	return nil
}

// launchForkServer starts a server that waits for its plan.
func (s *Sandbox) launchForkServer(ctx context.Context, spec Spec) (*ForkServer, error) {
	requests, theirs, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	own := spec
	own.Files = append([]*os.File{theirs}, spec.Files...)
	own.Network = NetworkHost
	own.forkServer, own.Idle = true, true
	process, err := s.Start(ctx, own)
	if err != nil {
		return nil, errors.Join(err, requests.Close())
	}
	return &ForkServer{Process: process, sandbox: s, spec: spec, requests: requests}, nil
}

// hidden reports whether a path lies in a directory that each fork has anew.
func hidden(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && slices.ContainsFunc([]string{home, shm, sourceDir}, func(fresh string) bool {
		return strings.HasPrefix(real+"/", fresh+"/") || strings.HasPrefix(path+"/", fresh+"/")
	})
}

// Kill ends the server and all its forks, at once. It does not wait.
func (f *ForkServer) Kill() {
	_ = f.requests.Close()
	f.Process.Kill()
}

// plan says how a fork's sandbox is built.
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

// tell gives the server its plan.
func (f *ForkServer) tell(plan stage.ForkPlan) error {
	packet, err := json.Marshal(plan)
	if err != nil {
		return fmt.Errorf("encode the plan of forks: %w", err)
	}
	if _, err := f.requests.Write(packet); err != nil {
		return fmt.Errorf("tell the fork server: %w", err)
	}
	return nil
}

// forkLimits are the limits that a fork sets itself: those that count what belongs to one user, as all forks may.
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

// Fork makes a program. Of spec only Files, Stdout, Stderr, and of its limits Memory, Processes and CPU are heeded; all else
// is the server's. When it returns, the program runs; when ctx ends, it is killed.
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
		return nil, errors.Join(ctx.Err(), err)
	}
	return p, nil
}

// prepareFork makes what the sidecar holds of a fork.
func (f *ForkServer) prepareFork(spec Spec) (*Process, error) {
	s := f.sandbox
	number := s.started.Add(1)
	limits := spec.Limits.withDefaults()
	p := &Process{job: f.job, sourceDir: f.sourceDir, user: s.takeUser(), handedOver: make(chan struct{}), done: make(chan struct{}), group: &group{}}
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

// request has the server make the fork's first process, and returns its pidfd.
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
