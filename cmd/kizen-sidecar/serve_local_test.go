package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// attackOnServe attacks the serve that runs it as any program of the machine could.
const attackOnServe = `
import http.client, json, socket
def ask(address, method, path, body=None, headers={}):
    c = http.client.HTTPConnection(address, timeout=10)
    c.request(method, path, body, headers)
    r = c.getresponse()
    return f"{r.status} {r.read().decode()}"
headers = {"Content-Type": "application/json", "X-BUSINESS-ID": "b-victim", "X-USER-ID": "u-victim"}
theft = json.dumps({"runtime": "python-3-13", "user_script": "outputs.log(secrets['K'][::-1])", "secrets": ["K"]})
outputs.log(ask(inputs.api, "POST", "/api/coderunner/run", theft, headers))
outputs.log(ask(inputs.api, "GET", "/executions", None, headers))
outputs.log(ask(inputs.admin, "GET", "/metrics"))
# A socket that is closed at once has no owner.
host, port = inputs.api.split(":")
s = socket.create_connection((host, int(port)))
s.sendall(f"POST /executions HTTP/1.1\r\nHost: {inputs.api}\r\nContent-Type: application/json\r\nX-BUSINESS-ID: b-victim\r\n"
          f"X-USER-ID: u-victim\r\nContent-Length: {len(theft)}\r\n\r\n{theft}".encode())
s.close()
`

// TestNoStepIsACallerOfTheServeThatRunsIt: this holds even if every other program of the machine may call.
func TestNoStepIsACallerOfTheServeThatRunsIt(t *testing.T) {
	for _, warm := range []string{"0", "1"} {
		t.Run("warm="+warm, func(t *testing.T) {
			secrets := writeFile(t, t.TempDir(), "secrets.json", `{"b-victim": {"K": "a-secret-of-the-victim"}}`)
			s := startServe(t, "--allow-anonymous", "--network", "host", "--warm", warm, "--api-root", "http://127.0.0.1:1/api",
				"--secrets-file", secrets)
			requireNoStepIsACaller(t, s)
		})
	}
}

func requireNoStepIsACaller(t *testing.T, s *served) {
	t.Helper()
	input := func(url string) step { return step{"t": "s", "v": strings.TrimPrefix(url, "http://")} }
	got := s.ask("POST", "/api/coderunner/run",
		script(attackOnServe).with("inputs", step{"api": input(s.URL), "admin": input(s.Admin)}))
	d := got.document(t)
	if d.Error != nil || len(d.Logs) != 3 {
		t.Fatalf("the attack itself failed: %d %s", got.status, got.body)
	}
	for _, answer := range d.Logs {
		if !strings.HasPrefix(answer, "403 ") || !strings.Contains(answer, "from_step") {
			t.Errorf("the step got the response %s", answer)
		}
	}
	if list := s.askFor("b-victim", "GET", "/executions", nil); !strings.Contains(list.body, `"count":0`) {
		t.Errorf("the victim has executions: %s", list.body)
	}
}

// TestNoStepOfAnOrdinaryUserIsACaller: the step then has the sidecar's own user id.
func TestNoStepOfAnOrdinaryUserIsACaller(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: TestNoStepIsACallerOfTheServeThatRunsIt runs as an ordinary user already")
	}
	dir := t.TempDir()
	for path := dir; path != "/tmp" && path != "/"; path = filepath.Dir(path) { // the user must be able to enter it
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.CommandContext(t.Context(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		sidecartest.Program("kizen-sidecar"), "serve", "--listen", "127.0.0.1:0", "--allow-anonymous", "--network", "host",
		"--warm", "0",
		"--api-root", "http://127.0.0.1:1/api")
	command.Dir = "/"
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}
	requireNoStepIsACaller(t, &served{sidecartest.StartCommand(t, command), t})
}

// TestServeRequiresTheTokenOfItsFile: serve creates a token for its owner only, refuses requests without it, keeps it
// over a restart and never logs it.
func TestServeRequiresTheTokenOfItsFile(t *testing.T) {
	home := t.TempDir()
	s := &served{sidecartest.StartCommand(t,
		sidecartest.Command(t.Context(), []string{"HOME=" + home, "XDG_RUNTIME_DIR=" + home},
			"serve", "--listen", "127.0.0.1:0", "--warm", "0", "--token-file", home+"/token")), t}
	info, err := os.Stat(home + "/token")
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	token, err := os.ReadFile(home + "/token")
	if err != nil || strings.TrimSpace(string(token)) != s.Token || len(s.Token) < 20 {
		t.Fatalf("the file has %q, the ready file %q (%v)", token, s.Token, err)
	}
	if got := s.ask("GET", "/executions", nil); got.status != 200 {
		t.Errorf("with the token: %d %s", got.status, got.body)
	}
	for _, wrong := range []string{"", s.Token[1:], s.Token + "x"} {
		other := served{&sidecartest.Service{URL: s.URL, Token: wrong}, t}
		if got := other.ask("POST", "/api/coderunner/run", script("pass")); got.status != http.StatusUnauthorized {
			t.Errorf("with the token %q: %d %s", wrong, got.status, got.body)
		}
	}
	if strings.Contains(s.Log.String(), s.Token) || !strings.Contains(s.Log.String(), "/token") {
		t.Errorf("the log should name the file and not contain the token: %s", s.Log)
	}
	kept := s.Token
	if code := s.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	again := startServe(t, "--warm", "0", "--token-file", home+"/token")
	if again.Token != kept {
		t.Error("the token changed with a restart")
	}
}

// TestWrongFlagsOfCallersAreRefused: a mistake with tokens and callers gives one line that says what to do. The
// environment without a home directory needs a process of its own.
func TestWrongFlagsOfCallersAreRefused(t *testing.T) {
	dir := t.TempDir()
	short := writeFile(t, dir, "short", "x\n")
	callers := writeFile(t, dir, "callers.yaml", "- {name: a, certificate: a, trusted: true}\n")
	for want, arguments := range map[string][]string{
		"is shorter than 16 bytes; remove the file":                 {"--token-file", short},
		"no such file or directory":                                 {"--token-file", dir + "/nowhere/token"},
		"omit it or --token-file":                                   {"--token-file", dir + "/t", "--allow-anonymous"},
		"are for serve without --callers; omit them":                {"--callers", callers, "--allow-anonymous"},
		"neither XDG_RUNTIME_DIR nor HOME is set; name a file with": nil,
		"list the callers with --callers, or listen on 127.0.0.1\n": {"--listen", "0.0.0.0:0", "--allow-anonymous"},
	} {
		command := exec.CommandContext(t.Context(), sidecartest.Program("kizen-sidecar"),
			append([]string{"serve"}, arguments...)...)
		command.Env = []string{"PATH=" + os.Getenv("PATH")}
		out, err := command.CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%v: %v %s, want %q", arguments, err, out, want)
		}
	}
}
