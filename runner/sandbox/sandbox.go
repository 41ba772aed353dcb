package sandbox

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kizen/kizen-sidecar/runner/egress"
	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// Mode says what to do if a layer is missing.
type Mode string

const (
	// ModeAuto uses every layer that this machine supports and logs a warning for the others. It is the default.
	ModeAuto Mode = "auto"
	// ModeRequired refuses to start programs unless every layer of isolation works.
	ModeRequired Mode = "required"
	// ModeOff isolates nothing, but keeps the resource limits and kills remaining processes. A malicious program
	// can kill the first process and survive.
	ModeOff Mode = "off"
)

// Config configures a Sandbox. The zero value is usable.
type Config struct {
	// Mode defaults to ModeAuto.
	Mode Mode
	// Logger logs each missing layer once. If nil, logging is disabled.
	Logger *slog.Logger

	// without names layers to omit, as if the kernel lacked them.
	without []string
	// upstream is asked instead of the host's name servers.
	upstream netip.AddrPort
}

// A Sandbox starts programs. It is safe for concurrent use.
type Sandbox struct {
	config Config
	tree   fileTree
	filter filter
	// connections is the filter of NetworkPolicy.
	connections []byte
	groups      *groups

	started atomic.Uint32 // numbers the programs
	users   userCounter
	probing sync.Mutex
	probed  atomic.Bool // by an empty sandbox, or by a program

	sweepScratch sync.Once
	fallback     sync.Once // logs that NetworkPolicy is replaced

	mu      sync.Mutex
	missing map[string]string // layer: why
}

// A MissingError lists the missing layers that ModeRequired needs.
type MissingError struct{ Layers []string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("the sandbox is required but %s not available here; run kizen-sidecar doctor, or use --sandbox=auto",
		strings.Join(e.Layers, ", "))
}

// New prepares a sandbox. It is cheap, because the first Start, or Report, tries the layers. With ModeRequired, New
// tries them itself and returns a *MissingError if one is missing.
func New(config Config) (*Sandbox, error) {
	if config.Mode == "" {
		config.Mode = ModeAuto
	}
	if !slices.Contains([]Mode{ModeAuto, ModeRequired, ModeOff}, config.Mode) {
		return nil, fmt.Errorf("unknown sandbox mode %q; use auto, required or off", config.Mode)
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Sandbox{config: config, missing: make(map[string]string)}
	s.users.start()
	if config.Mode == ModeOff {
		for _, layer := range isolation {
			if layer != stage.LayerNoNewPrivs {
				s.missing[layer] = "--sandbox=off"
			}
		}
	}
	for _, layer := range config.without {
		s.miss(layer, "left out")
	}
	if err := s.findLayers(); err != nil {
		return nil, fmt.Errorf("find out what the sandbox can do here: %w", err)
	}
	if config.Mode == ModeRequired {
		if missing := s.Report().Missing(); len(missing) > 0 {
			return nil, &MissingError{missing}
		}
	}
	return s, nil
}

// findLayers records the layers that are missing for certain. Its error says that this machine lacks files, memory or
// processes at the moment, so that the search failed.
func (s *Sandbox) findLayers() error {
	var exhausted error
	miss := func(layer string, err error) {
		if isExhaustion(err) {
			exhausted = err
		}
		s.miss(layer, err.Error())
	}
	if _, err := os.Stat("/proc/self/ns/net"); err != nil {
		s.miss(stage.LayerNetwork, "the kernel was built without it")
	}
	if os.Geteuid() == 0 {
		if err := whyNotRooted(); err != nil {
			miss(stage.LayerIdentity, err)
		}
	}
	s.tree = hostTree()
	var err error
	if s.filter, err = newFilter(); err != nil {
		miss(stage.LayerSeccomp, err)
	}
	s.connections, err = egress.Filter()
	if err == nil {
		err = egress.Supported()
	}
	if err == nil && !s.holds(stage.LayerSeccomp) {
		err = errors.New("it needs the layer seccomp")
	}
	if err != nil {
		miss(stage.LayerPolicy, err)
	}
	if err := landlockSupport(); err != nil {
		miss(stage.LayerLandlock, err)
	}
	s.findCgroups(miss)
	return exhausted
}

// miss records that a layer is missing and logs it once.
func (s *Sandbox) miss(layer, why string) {
	s.mu.Lock()
	_, known := s.missing[layer]
	if !known {
		s.missing[layer] = why
	}
	s.mu.Unlock()
	if !known && s.config.Mode != ModeOff {
		s.config.Logger.Warn("sandbox layer missing", "layer", layer, "why", why, "means", consequences[layer])
	}
}

// network returns the network that a program gets if it asks for wanted. If policy cannot decide on connections here,
// steps reach only the proxy; if every layer is required, it returns an error.
func (s *Sandbox) network(wanted Network) (Network, error) {
	if wanted != NetworkPolicy || s.holds(stage.LayerPolicy) {
		return wanted, nil
	}
	if s.config.Mode == ModeAuto && s.holds(stage.LayerNetwork) {
		s.fallback.Do(func() {
			s.config.Logger.Warn("policy cannot decide on connections here, so steps reach only the proxy; choose --network=host to allow everything, or --network=kizen-only to say so")
		})
		return NetworkKizenOnly, nil
	}
	return "",
		errors.New("policy cannot decide on connections here; run kizen-sidecar doctor, or choose --network=host or --network=kizen-only")
}

// Network returns the network that programs get if they ask for wanted, as far as it is known.
func (s *Sandbox) Network(wanted Network) Network {
	if network, err := s.network(wanted); err == nil {
		return network
	}
	return wanted
}

// holds reports whether a layer is usable, as far as it is known.
func (s *Sandbox) holds(layer string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, missing := s.missing[layer]
	return !missing
}
