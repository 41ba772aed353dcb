package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// onlyTheProxy calls the API, then tries to connect to everything else.
const onlyTheProxy = `
import socket
outputs.status = str(kizen.api.get("/ping").status_code)
reached = []
for address in (inputs.api, inputs.other, "1.1.1.1:53", "169.254.169.254:80"):
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        reached.append(address)
    except OSError:
        pass
outputs.reached = " ".join(reached)
`

// TestKizenOnlyReachesTheAPIAndNothingElse: with --network kizen-only, a step calls the API and reaches no other
// listener. The control with --network host shows that these listeners can be reached.
func TestKizenOnlyReachesTheAPIAndNothingElse(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	for _, network := range []string{"host", "kizen-only"} {
		t.Run(network, func(t *testing.T) {
			api := newRecordingAPI(t)
			api.expect([]route{{Method: "GET", Path: "/ping", Responses: []cannedResponse{{Status: 204}}}})
			address := strings.TrimPrefix(api.root(), "http://")
			address, _, _ = strings.Cut(address, "/")
			command := sidecarCommand(t.Context(), nil, "run", "--script", "-", "--json", "--network", network, "--api-root",
				api.root(),
				"--input", "api="+address+":string", "--input", "other="+other.Addr().String()+":string", "--declare-output",
				"status:string", "--declare-output", "reached:string")
			command.Stdin = strings.NewReader(onlyTheProxy)
			out, err := command.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var result struct{ Values map[string]struct{ V string } }
			if err := json.Unmarshal(out, &result); err != nil {
				t.Fatal(err)
			}
			reached := result.Values["reached"].V
			if result.Values["status"].V != "204" {
				t.Errorf("the API was not reached: %s", out)
			}
			if network == "kizen-only" && reached != "" {
				t.Errorf("reached %s", reached)
			}
			if network == "host" && !strings.Contains(reached, other.Addr().String()) {
				t.Errorf("the address that must not be reached has no listener: %q", reached)
			}
		})
	}
}

// TestTheStepEndsWithItsKilledSidecar: after SIGKILL of the sidecar, no process of the step remains. The sidecar cannot
// clean up, so the sandbox and the kernel have to.
func TestTheStepEndsWithItsKilledSidecar(t *testing.T) {
	api := newRecordingAPI(t)
	api.expect([]route{{Method: "POST", Path: "/started", Responses: []cannedResponse{{Status: 204}}}})
	marker := fmt.Sprintf("86401.%d", os.Getpid())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := sidecarCommand(ctx, nil, "run", "--script", "-", "--json", "--input", "marker="+marker, "--api-root",
		api.root())
	command.Stdin = strings.NewReader(endlessStep)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return len(api.apiCalls()) == 1 })
	if !runsWith(marker) {
		t.Fatal("the step's child is not running")
	}
	began := time.Now()
	_ = command.Process.Kill()
	_ = command.Wait() // killed
	waitFor(t, func() bool { return !runsWith(marker) })
	t.Logf("everything had ended after %s", time.Since(began))
}

// runsWith reports whether a process other than the sidecar has text in its arguments.
func runsWith(text string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		arguments, err := os.ReadFile(file)
		if err == nil && bytes.Contains(arguments, []byte(text)) && bytes.HasPrefix(arguments, []byte("sleep")) {
			return true
		}
	}
	return false
}

// printing calls the API before and after it prints a gigabyte, and waits for each response.
const printing = `
import os, time
kizen.api.post("/before")
chunk = b"x" * (1 << 20)
for _ in range(1024):
    os.write(1, chunk)
kizen.api.post("/after")
time.sleep(50)
`

// TestAGigabyteOfPrintsDoesNotGrowTheSidecar: a step that prints without end does not make the sidecar's memory grow.
// Python's pipe, the limit of output and the process's own memory meet.
func TestAGigabyteOfPrintsDoesNotGrowTheSidecar(t *testing.T) {
	api := newRecordingAPI(t)
	api.expect([]route{
		{Method: "POST", Path: "/before", Responses: []cannedResponse{{Status: 204}}},
		{Method: "POST", Path: "/after", Responses: []cannedResponse{{Status: 204}}},
	})
	command := sidecarCommand(t.Context(), nil, "run", "--script", "-", "--json", "--timeout", "55s", "--api-root",
		api.root())
	command.Stdin, command.Stdout = strings.NewReader(printing), io.Discard
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return len(api.apiCalls()) >= 1 })
	before := sidecartest.AnonymousMiB(t, command.Process.Pid)
	waitFor(t, func() bool { return len(api.apiCalls()) >= 2 })
	grown := sidecartest.AnonymousMiB(t, command.Process.Pid) - before
	_ = command.Process.Signal(os.Interrupt)
	_ = command.Wait() // interrupted: exit code 1
	if grown >= 16 {   // MiB of a gigabyte; the garbage collector lets it grow by some
		t.Errorf("the sidecar grew by %.1f MiB", grown)
	}
	t.Logf("the sidecar grew by %.1f MiB", grown)
}

// TestBuffersOfSocketsAreBounded: with cgroup v1 the memory limit does not include them, so they have their own limit.
func TestBuffersOfSocketsAreBounded(t *testing.T) {
	t.Parallel()
	got := sidecar(t, attacks.BuffersStep, nil, "run", "--json", "--script", "-", "--network", "host", "--memory", "64MiB")
	var d attackedStep
	if err := d.read(got.stdout); err != nil {
		t.Fatalf("%v %s", err, got.stderr)
	}
	if !slices.Contains(d.Layers.Held, "memory cgroup") {
		missingForTest(t, "a memory cgroup")
	}
	if d.Error != nil && d.Error.Kind == "memory_limit" {
		return // with cgroup v2 the memory limit includes them
	}
	if len(d.Logs) != 1 {
		t.Fatal(got.stdout)
	}
	if held, err := strconv.Atoi(d.Logs[0]); err != nil || held > 64 {
		t.Errorf("a step of 64 MiB has %s MiB in buffers of sockets", d.Logs[0])
	}
}
