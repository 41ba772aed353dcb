package sandbox

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// stillAllowed is a program that does to itself and its children what programs must still be able to do.
const stillAllowed = `
import resource, signal, threading
child = os.fork()
if child == 0: signal.pause()
os.kill(child, 0); os.kill(child, signal.SIGTERM); os.waitpid(child, 0)
group = os.fork()
if group == 0: os.setpgid(0, 0); signal.pause()
while os.getpgid(group) != group: pass
os.killpg(group, signal.SIGKILL); os.waitpid(group, 0)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.raise_signal(signal.SIGUSR1); signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
resource.getrlimit(resource.RLIMIT_CPU); os.nice(1); os.sched_setaffinity(0, os.sched_getaffinity(0))
os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
`

// TestTheFirstProcessCannotBeKilledByItsOwnUser covers the weakest machine: a step that runs as the sidecar's own user
// and sees all of its processes.
func TestTheFirstProcessCannotBeKilledByItsOwnUser(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("as an ordinary user")
	}
	target := attacks.NewTarget(t, outside, os.Getenv(projectVariable))
	for name, without := range map[string][]string{"with Landlock": bare,
		"without": slices.Concat(bare, []string{"landlock"})} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t, Config{without: without})
			for _, attack := range attacks.Programs() {
				if !attack.OwnUser || attack.Scoped && !scopes(s) {
					continue
				}
				if r := attacked(t, s, attack, target); r.out != "" || r.Code != 0 {
					t.Errorf("%s: %+v:\n%s", attack.Name, r.Exit, r.out)
				}
			}
			if r := run(t, s, attacks.Prelude()+stillAllowed, nil); r.out != "" || r.Code != 0 {
				t.Errorf("%+v:\n%s", r.Exit, r.out)
			}
		})
	}
}

// scopes reports whether Landlock confines signals to the sandbox, as it does from version 6 of its interface.
func scopes(s *Sandbox) bool {
	version, _, _ := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	return s.holds(stage.LayerLandlock) && int(version) >= 6
}

// sidecarWith starts a sidecar as a separate process, and returns when its program has printed a line.
func sidecarWith(t *testing.T, kind, code, marker string) *exec.Cmd {
	t.Helper()
	sidecar := exec.Command("/proc/self/exe", kind, python, "-I", "-S", "-c", code, marker)
	sidecar.Env = append(os.Environ(), helperVariable+"=sidecar")
	out, err := sidecar.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sidecar.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sidecar.Process.Kill()
		_ = sidecar.Wait() // killed
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	return sidecar
}

// eventually waits for a condition. Its timeout catches hangs, not slow machines.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("this is still not true after five minutes: %s", what)
		}
	}
}

func TestDirectoriesOfDeadSidecarsAreRemoved(t *testing.T) {
	tmp := t.TempDir()
	for _, dir := range []string{tmp, filepath.Dir(tmp)} {
		if err := os.Chmod(dir, 0o755); err != nil { // each program runs as a different user
			t.Fatal(err)
		}
	}
	t.Setenv("TMPDIR", tmp)
	directories := func() []string {
		found, err := filepath.Glob(filepath.Join(tmp, scratchPrefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	const code = "import os, time; os.makedirs(os.environ['HOME'] + '/a/b'); print('up', flush=True); time.sleep(600)"
	dead := sidecarWith(t, "bare", code, "")
	if len(directories()) != 1 {
		t.Fatalf("found %q", directories())
	}
	stale := directories()[0]
	_ = dead.Process.Kill()
	_ = dead.Wait() // killed
	// No process of the step uses the directory any more.
	eventually(t, "its first process has ended", func() bool { return len(processesIn(stale)) == 0 })
	if _, err := os.Stat(stale + "/tmp/a/b"); err != nil {
		t.Fatalf("the dead sidecar's directory was already removed: %v", err)
	}
	// The directory of a running sidecar, that of another user, and files that only look like one must stay.
	sidecarWith(t, "bare", code, "")
	living := directories()
	other := filepath.Join(tmp, scratchPrefix+"1-file")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(tmp, scratchPrefix+"1-link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if r := run(t, newSandbox(t, environments["no namespaces"]), "print('ok')", nil); r.out != "ok" {
		t.Errorf("got %q", r.out)
	}
	if slices.Contains(living, stale) || len(living) != 1 {
		t.Errorf("another sidecar left %q of %q", living, stale)
	}
	want := append(living, other, link)
	slices.Sort(want)
	if got := directories(); !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
}

// processesIn returns the processes whose working directory is below a directory.
func processesIn(dir string) []string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, dir) {
			found = append(found, link)
		}
	}
	return found
}
