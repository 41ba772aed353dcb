// Package redistest starts real servers for tests on free loopback ports, and stops them when the test ends: Redis,
// and nginx as a reverse proxy.
package redistest

import (
	"bufio"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds how long a server may take to be ready.
const startTimeout = 20 * time.Second

// Server is a running redis-server.
type Server struct {
	Addr string // host:port
	Port int
	stop func()
	args []string
}

// URL returns the server's URL for redisconn.Config.
func (s *Server) URL() string { return "redis://" + s.Addr }

// Stop ends the process and waits for it. A second call does nothing.
func (s *Server) Stop() { s.stop() }

// Restart starts the process again after [Server.Stop], with the same arguments, in the same directory.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.stop = run(t, s.Port, "Ready to accept connections", s.args...).stop
}

// Start starts a redis-server on a free loopback port with extra command-line arguments. If redis-server is missing,
// the test is skipped, or fails if KIZEN_TEST_REQUIRE is 1.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return StartAt(t, FreePort(t), args...)
}

// StartAt is [Start] on a given port.
func StartAt(t testing.TB, port int, args ...string) *Server {
	t.Helper()
	dir := t.TempDir()
	args = append([]string{
		"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir,
	}, args...)
	return run(t, port, "Ready to accept connections", args...)
}

// StartSentinel starts a Sentinel that watches master under name, with a quorum of one.
func StartSentinel(t testing.TB, name string, master *Server, config ...string) *Server {
	t.Helper()
	port := FreePort(t)
	file := t.TempDir() + "/sentinel.conf"
	lines := append([]string{
		"port " + strconv.Itoa(port),
		"bind 127.0.0.1",
		"sentinel monitor " + name + " 127.0.0.1 " + strconv.Itoa(master.Port) + " 1",
	}, config...)
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return run(t, port, "+monitor master", file, "--sentinel")
}

// FreePort returns a loopback port on which no process listens. The port and the port 10000 above it, on which a
// cluster node also listens, are below the range of ephemeral ports. So no outgoing connection can take either port
// before the server does.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 10000 + rand.IntN(12000)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			_ = listener.Close()
			return port
		}
	}
	t.Fatal("no free loopback port was found in 100 tries")
	return 0
}

func run(t testing.TB, port int, ready string, args ...string) *Server {
	t.Helper()
	return &Server{
		Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Port: port,
		args: args,
		stop: Run(t, ready, exec.Command(Require(t, "redis-server"), args...), syscall.SIGKILL),
	}
}

// Run starts a server and waits until a line of its output contains ready. It returns a function that sends the signal
// and waits for the end. The server is stopped at the end of the test in any case.
func Run(t testing.TB, ready string, cmd *exec.Cmd, signal syscall.Signal) (stop func()) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		follow(output, ready, started)
	}()
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(signal)
		<-ended
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	select {
	case err := <-started:
		if err != nil {
			t.Fatalf("%s: %v", cmd, err)
		}
	case <-time.After(startTimeout):
		t.Fatalf("%s: not ready after %s", cmd, startTimeout)
	}
	return stop
}

// follow reads the server's output to its end. It reports once: when the server is ready, or when it has exited
// earlier.
func follow(output io.Reader, ready string, started chan<- error) {
	var seen strings.Builder
	reported := false
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		if reported {
			continue
		}
		if strings.Contains(lines.Text(), ready) {
			reported = true
			started <- nil
			continue
		}
		seen.WriteString(lines.Text() + "\n")
	}
	if !reported {
		started <- errors.New("it ended:\n" + seen.String())
	}
}

// Require returns the path of a program that the test needs. If it is missing, the test is skipped, or fails if
// KIZEN_TEST_REQUIRE is 1.
func Require(t testing.TB, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		missing(t, program)
	}
	return path
}

// RequirePython is [Require] for a Python that has modules: python3, or the system's own if that is a different one.
func RequirePython(t testing.TB, modules ...string) string {
	t.Helper()
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(python, "-c", "import "+strings.Join(modules, ", ")).Run() == nil {
			return python
		}
	}
	missing(t, "a python3 with "+strings.Join(modules, " and "))
	return ""
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("KIZEN_TEST_REQUIRE") == "1" {
		t.Fatalf("%s is missing, and KIZEN_TEST_REQUIRE is 1: install it", what)
	}
	t.Skipf("SKIPPED: %s is missing; install it to run this test", what)
}

// StartCluster starts a cluster of three masters without replicas and returns its nodes.
func StartCluster(t testing.TB, args ...string) []*Server {
	t.Helper()
	const slots, masters = 16384, 3
	nodes := make([]*Server, masters)
	for i := range nodes {
		nodes[i] = Start(t, append([]string{"--cluster-enabled", "yes"}, args...)...)
	}
	for i, node := range nodes {
		first, last := i*slots/masters, (i+1)*slots/masters-1
		node.Do(t, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(first), strconv.Itoa(last))
		node.Do(t, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		if i > 0 {
			node.Do(t, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(nodes[0].Port))
		}
	}
	for _, node := range nodes {
		Await(t, "the cluster to be complete", func() bool {
			info := node.Do(t, "CLUSTER", "INFO")
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		})
	}
	return nodes
}

// Do sends one command as the default user and returns the reply in the form of redis-cli.
func (s *Server) Do(t testing.TB, command ...string) string {
	t.Helper()
	output, err := exec.Command(Require(t, "redis-cli"),
		append([]string{"-p", strconv.Itoa(s.Port)}, command...)...).CombinedOutput()
	answer := strings.TrimSpace(string(output))
	if err != nil || strings.HasPrefix(answer, "ERR") {
		t.Fatalf("redis-cli %s: %v: %s", strings.Join(command, " "), err, answer)
	}
	return answer
}

// Await polls until done returns true. It is for events in other processes.
func Await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", startTimeout, what)
		}
	}
}
