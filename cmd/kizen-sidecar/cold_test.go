package main

import (
	"crypto/tls"
	"encoding/json"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// waitsThenCalls connects to the test, waits until it hangs up, and only then calls the API.
const waitsThenCalls = `
import socket
socket.create_connection(("127.0.0.1", int(inputs.port))).recv(1)
outputs.log(kizen.api.get("/x").text)
`

// TestTheConnectionToTheAPIIsOpenBeforeTheStepNeedsIt: run opens its TLS connection while Python still starts. The step
// waits until a real TLS API has seen the connection, and only then calls.
func TestTheConnectionToTheAPIIsOpenBeforeTheStepNeedsIt(t *testing.T) {
	api, ca, connections := tlsAPI(t)
	gate, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	_, port, _ := net.SplitHostPort(gate.Addr().String())
	command := sidecarCommand(t.Context(), nil, "run", "--script", "-", "--json", "--input", "port="+port+":string",
		"--api-root", api.URL+"/api", "--api-ca", ca, "--business-id", "b-1", "--user-id", "u-1")
	command.Stdin = strings.NewReader(waitsThenCalls)
	released := make(chan struct{})
	go func() {
		defer close(released)
		step, err := gate.Accept()
		if err != nil {
			return // the step did not connect; its result says why
		}
		defer step.Close()
		waitFor(t, func() bool { return connections.Load() > 0 })
	}()
	out, err := command.Output()
	_ = gate.Close()
	<-released
	var d document
	if err != nil || json.Unmarshal(out, &d) != nil || len(d.Logs) != 1 || d.Logs[0] != "b-1 HTTP/2.0" {
		t.Errorf("%v: %s", err, out)
	}
}

// phase is a line of run -v.
var phase = regexp.MustCompile(`(?m)^  (spawn|mint|import|step|teardown|revoke) +([0-9.]+) ms$`)

// BenchmarkColdStart shows where the time of a cold run goes: into its phases, or into the binary itself. The
// baselines are a Python that does nothing, and one that imports requests.
func BenchmarkColdStart(b *testing.B) {
	python := pythonWithRequests(b)
	var bare, requests, whole durations
	phases := map[string][]float64{}
	for b.Loop() {
		bare.add(b, exec.Command(python, "-I", "-S", "-c", "pass"))
		requests.add(b, exec.Command(python, "-c", "import requests"))
		command := sidecarCommand(b.Context(), nil, "run", "--script", "-", "-v", "--python", python)
		command.Stdin = strings.NewReader("pass\n")
		rest := 0.0
		for _, found := range phase.FindAllStringSubmatch(whole.add(b, command), -1) {
			spent, err := strconv.ParseFloat(found[2], 64)
			if err != nil {
				b.Fatal(err)
			}
			phases[found[1]] = append(phases[found[1]], spent)
			rest -= spent
		}
		phases["binary"] = append(phases["binary"], milliseconds(whole[len(whole)-1])+rest)
	}
	if len(phases) != 7 {
		b.Fatalf("run -v printed %d phases", len(phases)-1)
	}
	for name, spent := range phases {
		slices.Sort(spent)
		b.ReportMetric(spent[len(spent)/2], name+"-ms")
	}
	b.ReportMetric(milliseconds(bare.median()), "python-ms")
	b.ReportMetric(milliseconds(requests.median()), "import-requests-ms")
	b.ReportMetric(milliseconds(whole.median()), "run-ms")
}

// firstCall measures its first call to the API.
const firstCall = `
import time, requests
time.sleep(0.1)  # as long as steps work before they call
began = time.perf_counter()
kizen.api.get("/x")
outputs.log((time.perf_counter() - began) * 1000)
`

// BenchmarkFirstCall times the first call of a cold run, over TLS to an API that takes 30 ms for a handshake, with and
// without a connection that is opened ahead of time.
func BenchmarkFirstCall(b *testing.B) {
	api, ca, _ := tlsAPI(b)
	api.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		time.Sleep(30 * time.Millisecond)
		return nil, nil
	}
	spent := map[string][]float64{}
	for b.Loop() {
		for _, prewarm := range []string{"0", "1"} {
			command := sidecarCommand(b.Context(), nil, "run", "--script", "-", "--json", "--prewarm", prewarm,
				"--api-root", api.URL+"/api", "--api-ca", ca)
			command.Stdin = strings.NewReader(firstCall)
			out, err := command.Output()
			var d document
			if err != nil || json.Unmarshal(out, &d) != nil || len(d.Logs) != 1 {
				b.Fatalf("%v: %s", err, out)
			}
			took, err := strconv.ParseFloat(d.Logs[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			spent[prewarm] = append(spent[prewarm], took)
		}
	}
	for prewarm, name := range map[string]string{"0": "not-ahead-ms", "1": "ahead-ms"} {
		slices.Sort(spent[prewarm])
		b.ReportMetric(spent[prewarm][len(spent[prewarm])/2], name)
	}
}
