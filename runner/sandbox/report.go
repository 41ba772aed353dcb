package sandbox

import (
	"context"
	"errors"
	"slices"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// The layers that the stage does not set up.
const (
	layerPID          = "PID namespace"
	layerIPC          = "IPC namespace"
	layerMemoryCgroup = "memory cgroup"
	layerPidsCgroup   = "process cgroup"
)

// isolation lists the layers that ModeRequired requires, in the order in which they are reported.
var isolation = []string{
	stage.LayerUser, stage.LayerFileSystem, layerPID, stage.LayerProc, layerIPC, stage.LayerUTS, stage.LayerNetwork,
	stage.LayerIdentity, stage.LayerNoNewPrivs, stage.LayerLandlock, stage.LayerSeccomp, stage.LayerPolicy,
}

// namespaceLayers need a privilege to set up, or a user namespace.
var namespaceLayers = []string{
	stage.LayerFileSystem, layerPID, stage.LayerProc, layerIPC, stage.LayerUTS, stage.LayerNetwork,
}

// accounting lists the layers that have a substitute.
var accounting = []string{layerMemoryCgroup, layerPidsCgroup}

// meanings explains each layer that is in force.
var meanings = map[string]string{
	stage.LayerUser:       "the step's capabilities would not reach beyond its own namespaces",
	stage.LayerFileSystem: "read-only, only what Python needs, with a private /tmp of limited size",
	layerPID:              "the step sees and signals only its own processes, and none of them survives it",
	stage.LayerProc:       "/proc shows the step's own processes",
	layerIPC:              "no shared memory, semaphores or message queues of other processes",
	stage.LayerUTS:        "its own host name",
	stage.LayerNetwork:    "--network=kizen-only: nothing but the proxy is reachable",
	stage.LayerIdentity:   "an unprivileged user without capabilities",
	stage.LayerNoNewPrivs: "set-user-ID programs and file capabilities have no effect",
	stage.LayerLandlock:   "paths, signals and abstract sockets are restricted a second time",
	stage.LayerSeccomp:    "system calls that only exploits need are refused",
	stage.LayerPolicy:     "--network=policy: rules decide on every connection",
	layerMemoryCgroup:     "the kernel counts and limits the memory of all the step's processes together",
	layerPidsCgroup:       "the kernel counts and limits the step's processes and threads",
}

// consequences explains each missing layer.
var consequences = map[string]string{
	stage.LayerUser:       "an exploit that gains capabilities gains the host's",
	stage.LayerFileSystem: "the step sees the host's files, as far as Landlock and permissions allow",
	layerPID:              "the step sees other processes, and a fork bomb may outlive it for moments",
	stage.LayerProc:       "/proc is empty: programs that read it may fail",
	layerIPC:              "shared memory of other processes with the same user ID is accessible",
	stage.LayerUTS:        "the step sees the host's name",
	stage.LayerNetwork:    "--network=kizen-only is refused",
	stage.LayerIdentity:   "the step runs as the sidecar's user",
	stage.LayerNoNewPrivs: "set-user-ID programs work",
	stage.LayerLandlock:   "one layer fewer between the step and the files it should not see",
	stage.LayerSeccomp:    "the whole kernel interface is exposed",
	stage.LayerPolicy:     "--network=policy falls back to kizen-only, or is refused",
	layerMemoryCgroup:     "the sidecar adds up resident memory every 25 ms, and RLIMIT_DATA limits growth in between; memory that no process maps is not counted",
	layerPidsCgroup:       "RLIMIT_NPROC counts the processes of the step's user instead",
}

// A Layer is the state of a sandbox layer on this machine.
type Layer struct {
	Name string `json:"name"`
	Held bool   `json:"held"`
	// Why is the reason for which the layer is missing.
	Why string `json:"why,omitempty"`
	// Means explains what its presence, or absence, means for a step.
	Means string `json:"means"`
	// Required reports that ModeRequired needs the layer; the others have a substitute.
	Required bool `json:"required"`
}

// A Report lists all layers.
type Report []Layer

// Missing names the missing layers that ModeRequired needs.
func (r Report) Missing() []string {
	var names []string
	for _, layer := range r {
		if layer.Required && !layer.Held {
			names = append(names, layer.Name)
		}
	}
	return names
}

// InForce names the layers around a program: all that this machine supports, without the network namespace and the
// connection policy if the program does not use them.
func (r Report) InForce(network Network) []string {
	var names []string
	for _, layer := range r {
		if layer.Held && (layer.Name != stage.LayerNetwork || network == NetworkKizenOnly) &&
			(layer.Name != stage.LayerPolicy || network == NetworkPolicy) {
			names = append(names, layer.Name)
		}
	}
	return names
}

// Withheld names every missing layer, including those with a substitute.
func (r Report) Withheld() []string {
	var names []string
	for _, layer := range r {
		if !layer.Held {
			names = append(names, layer.Name)
		}
	}
	return names
}

// Report returns the state of all layers. Unless a program was started earlier, the first call sets up an empty
// sandbox to find out.
func (s *Sandbox) Report() Report {
	s.probe()
	var report Report
	for i, name := range append(append([]string(nil), isolation...), accounting...) {
		layer := Layer{Name: name, Held: true, Means: meanings[name], Required: i < len(isolation)}
		s.mu.Lock()
		why, missing := s.missing[name]
		s.mu.Unlock()
		if missing {
			layer.Held, layer.Why, layer.Means = false, why, consequences[name]
		}
		report = append(report, layer)
	}
	return report
}

// probe sets up an empty sandbox with its own network, and one with a policy. It records failing layers and retries
// without them. It reports whether it succeeded.
func (s *Sandbox) probe() (learned bool) {
	s.probing.Lock()
	defer s.probing.Unlock()
	for !s.probed.Load() && s.config.Mode != ModeOff {
		err := s.tryNetwork(NetworkKizenOnly)
		if err == nil && s.holds(stage.LayerPolicy) {
			err = s.tryNetwork(NetworkPolicy)
		}
		switch {
		case err == nil:
			s.probed.Store(true)
		case s.blame(err):
			learned = true
		default: // not the fault of a layer; the next program tries again
			s.config.Logger.Warn("the sandbox cannot be tried", "error", err)
			return learned
		}
	}
	return learned
}

// tryNetwork sets up an empty sandbox with the given network.
func (s *Sandbox) tryNetwork(network Network) error {
	process, err := s.attempt(context.Background(), Spec{Network: network})
	if err != nil {
		return err
	}
	if listener := process.Listener(); listener != nil {
		_ = listener.Close()
	}
	process.Wait()
	return nil
}

// blame chooses the layer to omit after a failure. It returns false if no remaining layer could be the cause, or if the
// machine lacked files, memory or processes: the next program tries every layer again.
func (s *Sandbox) blame(err error) bool {
	failed, ok := errors.AsType[*layerError](err)
	if !ok || isExhaustion(err) {
		return false
	}
	layers := []string{failed.layer}
	switch {
	case failed.layer == stage.LayerFileSystem:
		layers = append(layers, stage.LayerProc)
	case failed.layer == "" && s.holds(stage.LayerUser):
		// If an ordinary user cannot create this namespace, it may not be able to create the others either; the
		// next attempt shows it.
		layers = []string{stage.LayerUser}
	case failed.layer == "":
		layers = namespaceLayers
	}
	blamed := false
	for _, layer := range layers {
		if s.holds(layer) && slices.Contains(isolation, layer) {
			s.miss(layer, failed.err.Error())
			blamed = true
		}
	}
	return blamed
}
