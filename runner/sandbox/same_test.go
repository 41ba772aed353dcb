package sandbox

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

//go:embed testdata/layers.py
var layersProgram string

// differences are the probes whose results may differ if the program runs as the sidecar's own user, with the reason.
var differences = map[string]string{
	"PID namespace, signals the first": "Landlock counts the stage as part of the program; it has no signal handlers, so no signal from inside ends it",
	"resource limits, RLIMIT_NPROC":    "the limit counts the processes of the user, and the stage has more threads than the first process of a fork",
}

// TestAForkHasTheSameLayersAsAProgram: the stage builds the sandbox of a program in Go, and the fork server builds the
// sandbox of a fork in Python. On this kernel, each probe of each layer must give the same result for both. A layer
// without probes fails the test.
func TestAForkHasTheSameLayersAsAProgram(t *testing.T) {
	const name = "kizen-test-of-layers"
	outside, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	machine, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	given := map[string]any{"abstract": name, "port": host.Addr().(*net.TCPAddr).Port, "namespaces": hostNamespaces(t)}
	calls := map[string]int{}
	for _, call := range append(slices.Clone(deniedCalls), "clone3") {
		if number, ok := machine.SyscallNames[call]; ok {
			calls[call] = number
		}
	}
	given["calls"] = calls
	for _, call := range []string{"clone", "prctl", "prlimit64"} {
		given[call] = machine.SyscallNames[call]
	}
	argument, err := json.Marshal(given)
	if err != nil {
		t.Fatal(err)
	}
	probe := func(s *Sandbox) map[string]map[string]any {
		t.Helper()
		r := run(t, s, layersProgram, func(spec *Spec) {
			spec.Argv = append(spec.Argv, string(argument))
			if s.holds(stage.LayerNetwork) {
				spec.Network = NetworkKizenOnly
			}
		})
		var layers map[string]map[string]any
		if err := json.Unmarshal([]byte(r.out), &layers); err != nil {
			t.Fatalf("%v: exit code %d\n%s", err, r.Code, r.out)
		}
		return layers
	}
	direct, forked := newSandbox(t, Config{}), newSandbox(t, Config{})
	forking.Store(forked, true)
	program, fork := probe(direct), probe(forked)
	for _, layer := range append(slices.Clone(isolation), stage.LayerLimits, stage.LayerExec) {
		// TestNoEscapeGetsOut attacks the connection policy, in programs and in forks.
		if len(program[layer]) == 0 && layer != stage.LayerPolicy {
			t.Errorf("no probe covers the layer %q", layer)
		}
	}
	probes := 0
	for layer, values := range program {
		for _, name := range slices.Sorted(maps.Keys(mergedKeys(values, fork[layer]))) {
			if differences[layer+", "+name] != "" && os.Geteuid() != 0 {
				continue
			}
			probes++
			if !reflect.DeepEqual(values[name], fork[layer][name]) {
				t.Errorf("%s, %s: a program has %v, a fork %v", layer, name, values[name], fork[layer][name])
			}
		}
	}
	t.Logf("%d probes of %d layers", probes, len(program))
	if program[stage.LayerIdentity]["CapBnd"] != "0000000000000000" || program[stage.LayerSeccomp]["mode"] != "2" {
		t.Errorf("the program is not in a sandbox: %v", program)
	}
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(program[stage.LayerIdentity]["last capability"]); got+"\n" != string(last) {
		t.Errorf("the probes cover the capabilities up to %s, but the kernel has them up to %s", got, last)
	}
}

// mergedKeys returns the union of the keys of two maps.
func mergedKeys(a, b map[string]any) map[string]any {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// hostNamespaces returns the inodes of this process's namespaces.
func hostNamespaces(t *testing.T) map[string]string {
	t.Helper()
	inodes := map[string]string{}
	for _, name := range []string{"user", "mnt", "pid", "ipc", "uts", "net", "cgroup"} {
		info, err := os.Stat("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		inodes[name] = strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10)
	}
	return inodes
}
