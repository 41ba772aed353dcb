package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// The tests of this file run the corpus of internal/testkit/attacks against the built commands.

// asEachUser runs a test as this user and, if this user is root, as an ordinary user too. as makes a command run as
// that user.
func asEachUser(t *testing.T, test func(t *testing.T, as func(*exec.Cmd) *exec.Cmd)) {
	t.Run("as this user", func(t *testing.T) { test(t, func(command *exec.Cmd) *exec.Cmd { return command }) })
	if os.Getuid() != 0 {
		return
	}
	setpriv := requireProgram(t, "setpriv")
	t.Run("as an ordinary user", func(t *testing.T) {
		dir := t.TempDir()
		for path := dir; path != "/tmp" && path != "/"; path = filepath.Dir(path) { // the user must be able to enter it
			if err := os.Chmod(path, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		test(t, func(command *exec.Cmd) *exec.Cmd {
			ordinary := exec.Command(setpriv, append([]string{"--reuid=65534", "--regid=65534", "--clear-groups"},
				command.Args...)...)
			ordinary.Dir, ordinary.Stdin = "/", command.Stdin
			ordinary.Env = append(slices.Clone(command.Env), "HOME="+dir, "TMPDIR="+dir)
			return ordinary
		})
	})
}

// TestTortureStoppedStepsLeaveNothing runs steps that stop themselves, and expects that nothing of them outlives their
// limit.
func TestTortureStoppedStepsLeaveNothing(t *testing.T) {
	stops := prepareStops(t, nil)
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "1", "--slots", "4", "--api-root", "http://127.0.0.1:1/api")
	for range 4 {
		s.ask("POST", "/api/coderunner/run", script("pass"))
	}
	s.before = s.steady()
	var all sync.WaitGroup
	for name, body := range stops.steps {
		all.Go(func() {
			if got, err := s.try(t.Context(), "b-bad", "POST", "/api/coderunner/run", body); err != nil ||
				!strings.Contains(got.body, `"kind":"timeout"`) {
				t.Errorf("%s: %v %s", name, err, got.body)
			}
		})
	}
	all.Wait()
	s.requireWell()
}

// startMaliciousAPI answers /api/answers/N with answer N of the corpus, and any other path with 204.
func startMaliciousAPI(t *testing.T) (root string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answers := attacks.Answers()
	var all sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				for in := bufio.NewReader(c); ; {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					var n int
					if _, err := fmt.Sscanf(r.URL.Path, "/api/answers/%d", &n); err == nil {
						answers[n].Send(c)
						return
					}
					if _, err := io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
						return
					}
				}
			})
		}
	})
	return "http://" + listener.Addr().String() + "/api"
}

// TestTortureAMaliciousAPIBreaksNeitherProxyNorHarness runs steps that read every answer of the corpus, four at a
// time.
func TestTortureAMaliciousAPIBreaksNeitherProxyNorHarness(t *testing.T) {
	const slots = 4
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "1", "--slots", fmt.Sprint(slots), "--queue-timeout", "5m",
		"--timeout", "55s",
		"--memory", "128MiB", "--api-root", startMaliciousAPI(t)).settle(slots)
	before := sidecartest.AnonymousMiB(t, s.Process.Pid)
	var all sync.WaitGroup
	for n, a := range attacks.Answers() {
		all.Go(func() {
			body := script(attacks.CallStep).with("inputs", step{"path": step{"t": "s", "v": fmt.Sprintf("/answers/%d", n)}})
			got, err := s.try(t.Context(), "b-bad", "POST", "/api/coderunner/run", body)
			var d attackedStep
			if err != nil || json.Unmarshal([]byte(got.body), &d) != nil || len(got.body) > 1<<20 {
				t.Errorf("%s: %d, %d bytes, %v", a.Name, got.status, len(got.body), err)
				return
			}
			saw := strings.Join(d.Logs, "\n")
			if d.Error != nil {
				saw = d.Error.Kind
			}
			if matched, err := regexp.MatchString("^("+a.Sees+")", saw); err != nil || !matched {
				t.Errorf("%s: the step saw %q, want %s (%v)", a.Name, saw, a.Sees, err)
			}
		})
	}
	all.Wait()
	waitFor(t, func() bool { return sidecartest.AnonymousMiB(t, s.Process.Pid) < before+32 })
	if most := sidecartest.PeakMiB(t, s.Process.Pid); most > 256 {
		t.Errorf("serve took up to %.0f MiB", most)
	}
	s.requireWell()
}

// TestTortureSlowCallersDoNotBlockOthers opens more connections than the sidecar accepts. Each sends half a request.
func TestTortureSlowCallersDoNotBlockOthers(t *testing.T) {
	const strangers = 2000
	api := newGateAPI(t)
	api.open()
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "1", "--slots", "2", "--api-root", api.root()).settle(2)
	before := sidecartest.AnonymousMiB(t, s.Process.Pid)
	p := startProxy(t, "--api-root", api.root())
	for what, c := range map[string]struct{ address, head string }{
		"serve, half a head": {strings.TrimPrefix(s.URL, "http://"),
			"POST /api/coderunner/run HTTP/1.1\r\nHost: localhost\r\nX-Slow: "},
		"serve, half a body": {strings.TrimPrefix(s.URL, "http://"),
			"POST /api/coderunner/run HTTP/1.1\r\nHost: localhost\r\nX-BUSINESS-ID: b-slow\r\nX-USER-ID: u\r\n" +
				"Authorization: Bearer " + s.Token + "\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{"},
		"operators": {strings.TrimPrefix(s.Admin, "http://"), "GET /metrics HTTP/1.1\r\nX-Slow: "},
		"proxy, half a head": {strings.SplitN(strings.TrimPrefix(p.URL, "http://"), "/", 2)[0],
			"GET /x HTTP/1.1\r\nX-Slow: "},
	} {
		t.Run(what, func(t *testing.T) {
			var slow []net.Conn
			for range strangers {
				connection, err := net.Dial("tcp", c.address)
				if err != nil {
					t.Fatal(err)
				}
				slow = append(slow, connection)
				_, _ = io.WriteString(connection, c.head) // the server may have closed it in favour of a newer one
			}
			for range 5 {
				if got := s.ask("POST", "/api/coderunner/run", script("outputs.log(kizen.api.get('/x').status_code)")); got.status != 200 || !strings.Contains(got.body, `"logs":["204"]`) {
					t.Errorf("a step meanwhile: %d %s", got.status, got.body)
				}
				if status, _ := s.Readiness(); status != 200 {
					t.Errorf("not ready: %d", status)
				}
				if status, body := get(t, p.URL+"/x"); status != 204 {
					t.Errorf("a call meanwhile: %d %s", status, body)
				}
			}
			open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.Process.Pid))
			if err != nil || len(open) > 1200 {
				t.Errorf("serve has %d files open, %v", len(open), err)
			}
			for _, connection := range slow {
				_ = connection.Close()
			}
		})
	}
	waitFor(t, func() bool { return sidecartest.AnonymousMiB(t, s.Process.Pid) < before+32 })
	s.requireWell()
}

// bareContainer is a container that cannot create namespaces: a name, and a command that imitates it.
type bareContainer struct {
	name   string
	prefix []string
}

var bareContainers = []bareContainer{
	{"root without a capability", []string{"setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"}},
	{"an ordinary user without namespaces", []string{"unshare", "--user", "--map-root-user", "sh", "-c",
		`for f in /proc/sys/user/max_*_namespaces; do echo 0 >"$f"; done; exec setpriv --bounding-set=-all --inh-caps=-all "$0" "$@"`}},
}

// runIn returns a function that runs a script with flags in a container of this kind.
func (c bareContainer) runIn(t *testing.T) func(script string, flags ...string) outcome {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can drop all of these privileges")
	}
	requireProgram(t, "setpriv")
	requireProgram(t, "unshare")
	return func(script string, flags ...string) outcome {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		arguments := append(c.prefix[1:len(c.prefix):len(c.prefix)], sidecartest.Program("kizen-sidecar"), "run", "--json",
			"--script", "-", "--network", "host")
		command := exec.CommandContext(ctx, c.prefix[0], append(arguments, flags...)...)
		command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
		command.Stdin = strings.NewReader(script)
		var stdout, stderr strings.Builder
		command.Stdout, command.Stderr = &stdout, &stderr
		_ = command.Run() // the outcome contains the exit code
		return outcome{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	}
}

// TestAContainerWithoutNamespacesIsReportedOrRefused: --sandbox=auto reports the missing layers, --sandbox=required
// runs nothing.
func TestAContainerWithoutNamespacesIsReportedOrRefused(t *testing.T) {
	t.Parallel()
	for _, c := range bareContainers {
		t.Run(c.name, func(t *testing.T) {
			within := c.runIn(t)
			refused := within("outputs.log('ran')", "--sandbox", "required")
			if refused.code != exitSidecar || strings.Contains(refused.stdout, `"ran"`) ||
				!strings.Contains(refused.stderr, "namespace") || !strings.Contains(refused.stderr, "unprivileged identity") {
				t.Errorf("--sandbox=required: %d %s\n%s", refused.code, refused.stdout, refused.stderr)
			}
			var d attackedStep
			got := within("outputs.log('ran')", "--sandbox", "auto")
			if err := json.Unmarshal([]byte(got.stdout), &d); err != nil || got.code != 0 || len(d.Logs) != 1 {
				t.Fatalf("--sandbox=auto: %d %v %s\n%s", got.code, err, got.stdout, got.stderr)
			}
			if !strings.Contains(got.stderr, "PID namespace") || slices.Contains(d.Layers.Held, "PID namespace") {
				t.Errorf("the log does not report the missing layers; held %q:\n%s", d.Layers.Held, got.stderr)
			}
		})
	}
}

// TestTortureEveryAttackInAContainerWithoutNamespaces: the remaining layers stop every attack.
func TestTortureEveryAttackInAContainerWithoutNamespaces(t *testing.T) {
	project, err := filepath.Abs(projectRoot)
	if err != nil {
		t.Fatal(err)
	}
	victim := startServe(t, "--warm", "0")
	for _, c := range bareContainers {
		t.Run(c.name, func(t *testing.T) {
			within := c.runIn(t)
			target := attacks.NewTarget(t, "/var/tmp", project)
			target.Sidecar = victim.Process.Pid
			target.Environment = append(target.Environment, "TZ", "KIZEN_API_URL", "TRACEPARENT")
			target.Descriptors, target.KeepsBounding = []int{95, 96, 97}, true
			for _, program := range attacks.Programs() {
				if program.Namespaced || program.OwnUser || program.Unprivileged {
					continue
				}
				target.Renew(t)
				var d attackedStep
				got := within(program.Step(target), "--sandbox", "auto")
				if err := json.Unmarshal([]byte(got.stdout), &d); err != nil || d.Error != nil || len(d.Logs) != 1 ||
					d.Logs[0] != "" {
					t.Errorf("%s: %d %v %s\n%s", program.Name, got.code, err, got.stdout, got.stderr)
				}
			}
		})
	}
}
