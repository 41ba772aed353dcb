// Package stage is the process between the sidecar and the step: PID 1 of the step's namespaces. The sidecar starts its
// own binary again, inside new namespaces and with Environ set; this package's init function then takes over the
// process before main. It sets up the file system, drops every privilege, starts the step, reaps orphans, and exits
// when the step does, which ends all remaining processes. It holds no secrets, because it is a fresh program, not a
// fork of the sidecar's memory. It is an init function rather than a call in main so that every program that uses the
// sandbox (the sidecar, a test binary) can also be the stage, and so that packages of a large binary that sort later
// are not initialised: 3 ms rather than 4 ms for a binary of 20 MB.
package stage

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func init() {
	if os.Getenv(Environ) != Magic {
		return
	}
	if err := run(); err != nil {
		errno, _ := errors.AsType[syscall.Errno](err)
		report(Event{Kind: Failed, Layer: layerOf(err), Error: err.Error(), Errno: int(errno)}, -1)
		syscall.Exit(1)
	}
	// os.Exit is unnecessary: no exit functions are registered. With the race detector, it sleeps for a second.
	syscall.Exit(0)
}

// layerError names the layer that could not be set up.
type layerError struct {
	layer string
	err   error
}

func (e *layerError) Error() string { return e.err.Error() }
func (e *layerError) Unwrap() error { return e.err }

func layerOf(err error) string {
	if layer, ok := errors.AsType[*layerError](err); ok {
		return layer.layer
	}
	return ""
}

// run executes the stage. The order matters: it first does everything that needs privileges, then drops them.
func run() error {
	// The step must inherit only the descriptors that are passed explicitly.
	if err := unix.CloseRange(ControlFD, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	startThreads()
	job, err := receive()
	if err != nil {
		return err
	}
	step := &step{job: job}
	for _, layer := range []struct {
		name string
		set  func(*Job) error
		// fork reports that a fork server applies it to its forks.
		fork bool
	}{
		{LayerUser, mapIdentity, false},
		{LayerUTS, setSurroundings, false},
		{LayerFileSystem, buildRoot, false},
		{LayerNetwork, step.listen, false},
		{LayerLimits, setLimits, false},
		{LayerIdentity, dropCapabilities, true},
		{LayerNoNewPrivs, forbidNewPrivileges, false},
		{LayerLandlock, restrictPaths, true},
		{LayerSeccomp, installFilters, true},
		{LayerPolicy, superviseConnections, true},
	} {
		if layer.fork && job.ForkServer {
			continue
		}
		if err := layer.set(job); err != nil {
			if _, ok := errors.AsType[*layerError](err); ok {
				return err
			}
			return &layerError{layer.name, err}
		}
	}
	report(Event{Kind: Ready}, step.listener)
	if len(job.Argv) == 0 {
		return nil
	}
	if err := step.start(); err != nil {
		return &layerError{LayerExec, err}
	}
	report(Event{Kind: Started}, -1)
	report(step.wait(), -1)
	return nil
}

// receive reads the job. The sidecar sends it once the stage's cgroup and identity are set up.
func receive() (*Job, error) {
	packet := make([]byte, MaxPacket)
	n, err := ignoreEINTR(func() (int, error) { return unix.Read(ControlFD, packet) })
	if err != nil {
		return nil, fmt.Errorf("read the job: %w", err)
	}
	var job Job
	if err := json.Unmarshal(packet[:n], &job); err != nil {
		return nil, fmt.Errorf("decode the job: %w", err)
	}
	return &job, nil
}

// report sends an event, with a descriptor unless fd is negative. It ignores errors, because if the sidecar is dead,
// the stage will end too. Without a descriptor, it uses a call that Job.Connections never stops.
func report(event Event, fd int) {
	packet, err := json.Marshal(event)
	if err != nil {
		return
	}
	if fd < 0 {
		_, _ = ignoreEINTR(func() (int, error) { return 0, unix.Send(ControlFD, packet, unix.MSG_NOSIGNAL) })
		return
	}
	_, _ = ignoreEINTR(func() (int, error) {
		return 0, unix.Sendmsg(ControlFD, packet, unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
	})
}

func ignoreEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
