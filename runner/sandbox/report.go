package sandbox

import (
	"context"
	"errors"
	"slices"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// The layers that are not the stage's to set up.
const (
	layerPID          = "PID namespace"
	layerIPC          = "IPC namespace"
	layerMemoryCgroup = "memory cgroup"
	layerPidsCgroup   = "process cgroup"
)

// isolation lists the layers that ModeRequired requires, in the order in which they are reported.
var isolation = []string{
	stage.LayerUser, stage.LayerFileSystem, layerPID, stage.LayerProc, layerIPC, stage.LayerUTS, stage.LayerNetwork,
	stage.LayerIdentity, stage.LayerNoNewPrivs, stage.LayerLandlock, stage.LayerSeccomp,
}

// namespaceLayers need a privilege to set up, or a user namespace.
var namespaceLayers = []string{
	stage.LayerFileSystem, layerPID, stage.LayerProc, layerIPC, stage.LayerUTS, stage.LayerNetwork,
}

// accounting lists the layers that have a substitute.
var accounting = []string{layerMemoryCgroup, layerPidsCgroup}

// meanings says what a layer does where it holds.
var meanings = map[string]string{
	stage.LayerUser:       "the step's capabilities would not reach beyond its own namespaces",
	stage.LayerFileSystem: "read-only, only what Python needs, with a private /tmp of limited size",
	layerPID:              "the step sees and signals only its own processes, and none of them survives it",
	stage.LayerProc:       "/proc shows the step's own processes",
	layerIPC:              "no shared memory, semaphores or message queues of others",
	stage.LayerUTS:        "a host name of its own",
	stage.LayerNetwork:    "--network=kizen-only: nothing but the proxy is reachable",
	stage.LayerIdentity:   "an unprivileged user without capabilities",
	stage.LayerNoNewPrivs: "set-user-ID programs and file capabilities have no effect",
	stage.LayerLandlock:   "paths, signals and abstract sockets are restricted a second time",
	stage.LayerSeccomp:    "system calls that steps do not need and exploits do are refused",
	layerMemoryCgroup:     "the kernel counts the memory of all the step's processes together, and caps it",
	layerPidsCgroup:       "the kernel counts the step's processes and threads together, and caps them",
}

// consequences says what it means where it does not.
var consequences = map[string]string{
	stage.LayerUser:       "an exploit that gains capabilities gains the host's",
	stage.LayerFileSystem: "the step sees the host's files, as far as Landlock and permissions let it",
	layerPID:              "the step sees other processes, and a fork bomb may outlive it for moments",
	stage.LayerProc:       "/proc is empty: programs that read it may fail",
	layerIPC:              "shared memory of others with the same user id is reachable",
	stage.LayerUTS:        "the step sees the host's name",
	stage.LayerNetwork:    "--network=kizen-only is refused",
	stage.LayerIdentity:   "the step runs as the sidecar's user",
	stage.LayerNoNewPrivs: "set-user-ID programs work",
	stage.LayerLandlock:   "one layer fewer between the step and the files it should not see",
	stage.LayerSeccomp:    "the whole of the kernel's interface is exposed",
	layerMemoryCgroup:     "resident memory is added up every 25 ms instead, and RLIMIT_DATA bounds what happens in between; what no process maps is not counted",
	layerPidsCgroup:       "RLIMIT_NPROC counts the processes of the step's user instead",
}

// A Layer of the sandbox, as it is on this machine.
type Layer struct {
	Name string `json:"name"`
	Held bool   `json:"held"`
	// Why is the reason when the layer does not hold.
	Why string `json:"why,omitempty"`
	// Means is what holding it, or not holding it, means for a step.
	Means string `json:"means"`
	// Required says that ModeRequired insists on it; the others have a substitute.
	Required bool `json:"required"`
}

// A Report lists all layers.
type Report []Layer

// Missing names the layers that ModeRequired insists on and that do not hold.
func (r Report) Missing() []string {
	var names []string
	for _, layer := range r {
		if layer.Required && !layer.Held {
			names = append(names, layer.Name)
		}
	}
	return names
}

// InForce names the layers that hold around a program: all that hold here, but for a network of its own where it was not
// given one.
func (r Report) InForce(network Network) []string {
	var names []string
	for _, layer := range r {
		if layer.Held && (layer.Name != stage.LayerNetwork || network == NetworkKizenOnly) {
			names = append(names, layer.Name)
		}
	}
	return names
}

// Withheld names every layer that does not hold, those that have a substitute included.
func (r Report) Withheld() []string {
	var names []string
	for _, layer := range r {
		if !layer.Held {
			names = append(names, layer.Name)
		}
	}
	return names
}

// Report says which layers hold. The first call builds an empty sandbox to find out, unless a program has been started
// before.
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

// probe builds a sandbox with a network of its own and starts nothing in it. Layers that fail are noted and left out of
// the next try. It reports whether anything was learned.
func (s *Sandbox) probe() (learned bool) {
	s.probed.Do(func() {
		for s.config.Mode != ModeOff {
			process, err := s.attempt(context.Background(), Spec{Network: NetworkKizenOnly})
			if err == nil {
				if listener := process.Listener(); listener != nil {
					_ = listener.Close()
				}
				process.Wait()
				return
			}
			if !s.blame(err) {
				s.config.Logger.Warn("the sandbox cannot be tried", "error", err)
				return
			}
			learned = true
		}
	})
	return learned
}

// blame decides which layer to do without after a failure. False: no layer is left that could be at fault.
func (s *Sandbox) blame(err error) bool {
	failed, ok := errors.AsType[*layerError](err)
	if !ok {
		return false
	}
	layers := []string{failed.layer}
	switch {
	case failed.layer == stage.LayerFileSystem:
		layers = append(layers, stage.LayerProc)
	case failed.layer == "" && s.holds(stage.LayerUser):
		// Where an ordinary user may not have one, it may have none of the others either, which the next try shows.
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
