package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/exhaustion"
	"github.com/kizen/kizen-sidecar/runner/egress"
	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// A layerError is a stage's failure to set up a layer, with the layer's name if known.
type layerError struct {
	layer string
	err   error
}

func (e *layerError) Error() string {
	if e.layer == "" {
		return "start the sandbox: " + e.err.Error()
	}
	return fmt.Sprintf("set up the sandbox's %s: %v", e.layer, e.err)
}

func (e *layerError) Unwrap() error { return e.err }

// stageError is the error of another process, with its errno.
type stageError struct{ event stage.Event }

func (e stageError) Error() string { return e.event.Error }

func (e stageError) Unwrap() error {
	if e.event.Errno == 0 {
		return nil
	}
	return syscall.Errno(e.event.Errno)
}

// isExhaustion reports whether the machine lacked descriptors, memory or processes at that moment. That says nothing
// about its layers.
func isExhaustion(err error) bool {
	return exhaustion.Is(err) || errors.Is(err, syscall.EAGAIN)
}

// prepare makes all decisions about a program's sandbox. It starts nothing.
func (s *Sandbox) prepare(spec Spec) (*Process, error) {
	number := s.started.Add(1)
	limits := spec.Limits.withDefaults()
	network, err := s.network(spec.Network)
	if err != nil {
		return nil, err
	}
	ownNetwork := network == NetworkKizenOnly
	if ownNetwork && !s.holds(stage.LayerNetwork) {
		if len(spec.Argv) > 0 {
			return nil, errors.New("this machine has no network namespaces for --network=kizen-only; use --network=host")
		}
		ownNetwork, network = false, NetworkHost
	}
	p := &Process{
		user: s.takeUser(), handedOver: make(chan struct{}), done: make(chan struct{}), group: &group{},
		supervised: network == NetworkPolicy,
		upstream:   s.config.upstream,
	}
	p.ns = s.namespaces(p.user.id, ownNetwork)
	if spec.forkServer {
		p.ns.serveForks()
	}
	group, err := s.groups.create(number, limits, stage.Threads)
	if err != nil {
		p.clean()
		return nil, err
	}
	p.group = group
	p.monitor = newMonitor(spec, limits, group)
	if err := s.describe(p, spec, limits, network); err != nil {
		p.clean()
		return nil, err
	}
	if err := p.open(spec); err != nil {
		p.clean()
		return nil, err
	}
	return p, nil
}

// describe fills in the stage's job.
func (s *Sandbox) describe(p *Process, spec Spec, limits Limits, network Network) error {
	job := &stage.Job{
		Argv: spec.Argv, Env: spec.Env, Dir: home, Files: len(spec.Files),
		OwnPIDs: p.ns.ownPIDs(), MapSelf: p.ns.mapSelf, Step: p.ns.step, Listen: network == NetworkKizenOnly,
		HideCgroups: s.config.Mode != ModeOff, ForkServer: spec.forkServer,
		Limits: limits.rlimits(p.group.memory != "", p.group.pids != "", otherProcesses(p.ns)),
	}
	if spec.forkServer {
		// The limit of a user namespace's creator applies to the whole namespace, so the server's limit would apply to
		// all forks together. Each fork sets its own limit instead.
		job.Limits = slices.DeleteFunc(job.Limits, countsProcesses)
	}
	p.job = job
	real, links, err := s.tree.resolve(spec.Readable)
	if err != nil {
		return err
	}
	own := s.holds(stage.LayerFileSystem) && p.ns.isolated
	if own {
		p.sourceDir = sourceDir
		job.Mounts = append(s.tree.build(real, p.ns.stepID(), limits.Tmp, job.OwnPIDs && s.holds(stage.LayerProc),
			spec.forkServer), links...)
		p.writable = []string{home, shm, sourceDir}
		if network == NetworkPolicy || spec.policy {
			askOverTCP(job.Mounts)
		}
	} else if err := s.giveScratch(p); err != nil {
		return err
	} else {
		p.writable = []string{job.Dir, p.sourceDir}
	}
	if s.holds(stage.LayerUTS) {
		job.Hostname = hostName
		if !own {
			job.Hostname = "localhost" // the only name for the step in the host's /etc/hosts
		}
	}
	if s.holds(stage.LayerLandlock) {
		job.Landlock = s.tree.landlockRules(real, []string{job.Dir, p.sourceDir}, own)
	}
	if s.holds(stage.LayerSeccomp) {
		job.Filter = s.filter
	}
	if network == NetworkPolicy {
		job.Connections, p.nameServers = s.connections, egress.NameServers()
	}
	return nil
}

// open collects the stage's descriptors: the standard ones, the stage's end of the control socket, and the program's.
func (p *Process) open(spec Spec) error {
	control, theirs, err := controlPair()
	if err != nil {
		return err
	}
	p.control = control
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return errors.Join(err, theirs.Close())
	}
	// Duplicate the caller's descriptors, so that the caller may close its own at any time.
	p.inherits = []*os.File{null, nil, nil, theirs}
	for i, file := range append([]*os.File{spec.Stdout, spec.Stderr}, spec.Files...) {
		if file == nil {
			file = null
		}
		copied, err := duplicate(file)
		if err != nil {
			return err
		}
		if i < 2 {
			p.inherits[1+i] = copied
		} else {
			p.inherits = append(p.inherits, copied)
		}
	}
	return nil
}

// controlPair returns both ends of a control socket.
func controlPair() (ours *net.UnixConn, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the control socket: %w", err)
	}
	file, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer func() { _ = file.Close() }()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open the control socket: %w", err), theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil
}

func duplicate(file *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// thread is an OS thread that one goroutine has locked. tainted means that its state could not be restored.
type thread struct{ tainted bool }

func lockThread() *thread {
	runtime.LockOSThread()
	return &thread{}
}

// unlock unlocks the thread, unless its state could not be restored; then the thread ends with the goroutine.
func (t *thread) unlock() {
	if !t.tainted {
		runtime.UnlockOSThread()
	}
}

// spawn starts the stage: this binary again, in new namespaces and in the program's cgroups.
func (p *Process) spawn(t *thread) error {
	attr := &os.ProcAttr{
		Dir: "/", Sys: &p.ns.attr, Files: p.inherits,
		// The process only waits, so one processor is enough.
		Env: []string{stage.Environ + "=" + stage.Magic, "GOMAXPROCS=1"},
	}
	err := p.group.enter(attr.Sys)
	if err == nil {
		var process *os.Process
		if process, err = os.StartProcess("/proc/self/exe", []string{"kizen-sandbox"}, attr); err == nil {
			p.leader = spawned{process}
		} else {
			err = &layerError{err: fmt.Errorf("start its first process: %w", err)}
		}
	}
	if back := p.group.leave(); back != nil {
		t.tainted = true
	}
	p.closeInherited()
	return err
}

// closeInherited closes the sidecar's copies of the first process's descriptors.
func (p *Process) closeInherited() {
	for _, file := range p.inherits {
		_ = file.Close()
	}
	p.inherits = nil
}

// handOver sends the job and waits until the program runs.
func (p *Process) handOver() error {
	if err := p.guard(); err != nil {
		return err
	}
	packet, err := json.Marshal(p.job)
	if err != nil {
		return fmt.Errorf("encode the stage's job: %w", err)
	}
	if len(packet) > stage.MaxPacket {
		return fmt.Errorf("arguments and environment are too large: %d bytes of %d", len(packet), stage.MaxPacket)
	}
	if _, err := p.control.Write(packet); err != nil {
		return &layerError{err: fmt.Errorf("send the job: %w", err)}
	}
	if len(p.job.Argv) == 0 {
		return p.await(stage.Ready)
	}
	return p.await(stage.Ready, stage.Started)
}

// await waits until the first process reports one of the wanted events.
func (p *Process) await(wanted ...stage.EventKind) error {
	for _, want := range wanted {
		event, err := p.receive()
		if err == nil && event.Kind == stage.Supervised {
			event, err = p.receive()
		}
		switch {
		case err != nil:
			return &layerError{err: fmt.Errorf("the first process died: %w", err)}
		case event.Kind == stage.Failed && event.Layer == stage.LayerExec:
			return errors.New(event.Error)
		case event.Kind == stage.Failed:
			return &layerError{event.Layer, stageError{event}}
		case event.Kind != want:
			return fmt.Errorf("the first process is %q, not %q", event.Kind, want)
		}
	}
	if p.supervised && p.supervisor == nil {
		return &layerError{stage.LayerPolicy, errors.New("the first process passed no listener")}
	}
	return nil
}

// receive reads an event, and the listener's descriptor if the event carries one.
func (p *Process) receive() (stage.Event, error) {
	packet, descriptors, err := receivePacket(p.control)
	if err != nil {
		return stage.Event{}, err
	}
	var event stage.Event
	err = json.Unmarshal(packet, &event)
	for _, fd := range descriptors {
		if event.Kind == stage.Supervised && p.supervisor == nil {
			err = errors.Join(err, p.superviseConnections(fd))
			continue
		}
		file := os.NewFile(uintptr(fd), "listener")
		var opening error
		p.listener, opening = net.FileListener(file)
		if opening := errors.Join(opening, file.Close()); opening != nil {
			return stage.Event{}, fmt.Errorf("open the listener: %w", opening)
		}
	}
	if err != nil {
		return stage.Event{}, fmt.Errorf("decode the stage's event: %w", err)
	}
	return event, nil
}

// superviseConnections starts the supervisor of the program's connections.
func (p *Process) superviseConnections(fd int) (err error) {
	if err := unix.SetNonblock(fd, true); err != nil { // waiting then needs no thread
		return errors.Join(fmt.Errorf("watch the connections of a step: %w", err), unix.Close(fd))
	}
	p.supervisor, err = egress.Start(egress.Config{
		Listener: os.NewFile(uintptr(fd), "connections"), Writable: p.writable, NameServers: p.nameServers,
		Upstream: p.upstream, Charge: p.ChargeCPU,
	})
	return err
}

// receivePacket reads a packet and the descriptor in it, if any. It returns io.EOF if the other side has closed the
// socket.
func receivePacket(conn *net.UnixConn) (packet []byte, descriptors []int, err error) {
	packet, rights := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, rightsLen, _, _, err := conn.ReadMsgUnix(packet, rights)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, nil, err
	}
	if rightsLen == 0 {
		return packet[:n], nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rightsLen])
	if err != nil {
		return nil, nil, fmt.Errorf("take a descriptor: %w", err)
	}
	for _, message := range messages {
		if descriptors, err = unix.ParseUnixRights(&message); err != nil {
			return nil, nil, fmt.Errorf("take a descriptor: %w", err)
		}
	}
	for _, fd := range descriptors {
		unix.CloseOnExec(fd)
	}
	return packet[:n], descriptors, nil
}
