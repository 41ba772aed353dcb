package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// neighbour simulates another machine: a network namespace with its own address.
type neighbour struct{ name, address string }

// newNeighbour creates a neighbour. It needs root and ip(8).
func newNeighbour(t *testing.T) neighbour {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a network namespace of the test's own needs root")
	}
	ip := requireProgram(t, "ip")
	number := os.Getpid() % 60000
	n := neighbour{fmt.Sprintf("kz%d", number), fmt.Sprintf("10.%d.%d.2", 130+number/250%100, number%250)}
	own, theirs := n.name+"a", n.name+"b"
	must := func(arguments ...string) {
		t.Helper()
		if out, err := exec.Command(ip, arguments...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", arguments, err, out)
		}
	}
	must("netns", "add", n.name)
	t.Cleanup(func() {
		_ = exec.Command(ip, "netns", "del", n.name).Run()
		_ = exec.Command(ip, "link", "del", own).Run()
	})
	must("link", "add", own, "type", "veth", "peer", "name", theirs, "netns", n.name)
	must("addr", "add", strings.TrimSuffix(n.address, "2")+"1/24", "dev", own)
	must("link", "set", own, "up")
	must("-n", n.name, "addr", "add", n.address+"/24", "dev", theirs)
	must("-n", n.name, "link", "set", theirs, "up")
	return n
}

// listen opens a server in the namespace, which says hello to each client, and returns its port.
func (n neighbour) listen(t *testing.T) int {
	t.Helper()
	opened := make(chan net.Listener)
	go func() {
		runtime.LockOSThread() // and never unlock it: the thread ends in the other namespace
		var listener net.Listener
		namespace, err := unix.Open("/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(namespace, unix.CLONE_NEWNET)
		}
		if err == nil {
			listener, err = net.Listen("tcp", net.JoinHostPort(n.address, "0"))
		}
		if err != nil {
			t.Error(err)
		}
		opened <- listener
	}()
	listener := <-opened
	if listener == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(connection, "hello")
			_ = connection.Close()
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port
}

// connectingStep reaches one server, and must not reach another port of its machine, this machine, or a metadata
// service. It fails with the refusal of the last.
const connectingStep = `
import socket
host, permitted, refused, own = "%s", %d, %d, %d
assert socket.create_connection((host, permitted), 20).recv(9) == b"hello"
for address in (host, refused), ("127.0.0.1", own), ("169.254.169.254", 80):
    try: socket.create_connection(address, 20)
    except PermissionError: continue
    raise AssertionError(address)
outputs.log(kizen.api.get("/custom-objects").status_code)
socket.create_connection(("169.254.169.254", 80), 20)
`

// connectionsOf is the part of a result about connections.
type connectionsOf struct {
	Logs        []string
	Connections *struct {
		Count, Refused int
		Connections    []struct {
			Address string
			Port    int
			Allowed bool
			Policy  string
		}
	}
	Error *struct{ Error, Detail string }
}

// TestPolicyDecidesOnConnectionsInEveryCommand: run, serve and worker give the same decision, error, record and audit
// line for each connection of a step. The rule file, the kernel's seccomp notification, Python's error and the audit
// meet.
func TestPolicyDecidesOnConnectionsInEveryCommand(t *testing.T) {
	n := newNeighbour(t)
	permitted, refused := n.listen(t), n.listen(t)
	own, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	source := fmt.Sprintf(connectingStep, n.address, permitted, refused, own.Addr().(*net.TCPAddr).Port)
	rules := ruleFile(t, fmt.Sprintf(`@id("neighbour") permit (principal, action == Action::"connect", resource)
		when { context.address == ip("%s") && context.port == %d };`, n.address, permitted))
	api := newRecordingAPI(t)
	api.expect([]route{{Method: "GET", Path: "/custom-objects",
		Responses: []cannedResponse{{Status: 200}, {Status: 200}, {Status: 200}}}})
	flags := func(audit string) []string {
		return []string{"--network", "policy", "--policy", rules, "--audit-file", audit, "--api-root", api.root()}
	}
	audits := t.TempDir()
	check := func(t *testing.T, command, body string) {
		t.Helper()
		var got connectionsOf
		if err := json.Unmarshal([]byte(body), &got); err != nil || got.Connections == nil || got.Error == nil {
			t.Fatalf("%v: %s", err, body)
		}
		const reason = "connection to 169.254.169.254:80 refused by policy guardrail.metadata: metadata services"
		if !strings.Contains(got.Error.Error, reason) || !strings.Contains(got.Error.Detail, reason) ||
			!strings.HasPrefix(got.Error.Error, "PermissionError") {
			t.Errorf("the error is %q", got.Error.Error)
		}
		if len(got.Logs) != 1 || got.Logs[0] != "200" {
			t.Errorf("the API was not reached: %q", got.Logs)
		}
		var policies []string
		for _, c := range got.Connections.Connections {
			policies = append(policies, fmt.Sprintf("%s %t", c.Policy, c.Allowed))
		}
		want := "neighbour true, false,guardrail.loopback false,guardrail.metadata false,guardrail.metadata false"
		if strings.Join(policies, ",") != want || got.Connections.Count != 5 || got.Connections.Refused != 4 {
			t.Errorf("got %q, %+v", policies, got.Connections)
		}
		if lines := auditedConnections(t, filepath.Join(audits, command)); len(lines) != 5 || lines[0] != "allow neighbour" ||
			lines[4] != "deny guardrail.metadata" {
			t.Errorf("the audit has %q", lines)
		}
	}
	t.Run("run", func(t *testing.T) {
		got := sidecar(t, source, nil, append([]string{"run", "--script", "-", "--json"},
			flags(filepath.Join(audits, "run"))...)...)
		check(t, "run", got.stdout)
	})
	t.Run("serve", func(t *testing.T) {
		s := startServe(t, append([]string{"--warm", "1"}, flags(filepath.Join(audits, "serve"))...)...)
		check(t, "serve", s.ask("POST", "/api/coderunner/run", script(source)).body)
	})
	t.Run("worker", func(t *testing.T) {
		redisURL := startRedisServer(t)
		store := redisClient(t, redisURL)
		startWorker(t, redisURL, api.root(), flags(filepath.Join(audits, "worker"))[:6]...)
		enqueue(t, store, forFleet("connects", source))
		waitFor(t, func() bool { return endings(t, store)["connects"] == "exception" })
		if lines := auditedConnections(t, filepath.Join(audits, "worker")); len(lines) != 5 ||
			lines[0] != "allow neighbour" || lines[4] != "deny guardrail.metadata" {
			t.Errorf("the audit has %q", lines)
		}
	})
}

// auditedConnections returns the decision and the rule of each connection in an audit file.
func auditedConnections(t *testing.T, name string) (lines []string) {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		var line struct{ Kind, Decision, Policy string }
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line.Kind == "connection" {
			lines = append(lines, strings.TrimSpace(line.Decision+" "+line.Policy))
		}
	}
	return lines
}
