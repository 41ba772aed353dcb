package sandbox

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

// attacked is the result of an attack in a sandbox.
func attacked(t *testing.T, s *Sandbox, attack attacks.Program, target attacks.Target) result {
	t.Helper()
	target.Renew(t)
	target.KeepsBounding = !s.holds("user namespace") && os.Geteuid() != 0
	return run(t, s, attack.Source(target), func(spec *Spec) { spec.Readable = []string{target.Exposed} })
}

// TestAttacksAreRefused runs the attacks in every environment except the one without a sandbox.
func TestAttacksAreRefused(t *testing.T) {
	target := attacks.NewTarget(t, outside, os.Getenv(projectVariable))
	each(t, []string{"forks", "everything", "no user namespaces", "no cgroups", "no namespaces"},
		func(t *testing.T, s *Sandbox) {
			for _, attack := range attacks.Programs() {
				t.Run(attack.Name, func(t *testing.T) {
					if attack.Namespaced && !s.holds(layerPID) {
						t.Skip("SKIPPED: only namespaces refuse this attack, and this environment has none")
					}
					if attack.OwnUser {
						t.Skip("SKIPPED: TestTheFirstProcessCannotBeKilledByItsOwnUser covers this attack")
					}
					if r := attacked(t, s, attack, target); r.out != "" || r.Code != 0 {
						t.Errorf("exit code %d, signal %v:\n%s", r.Code, r.Signal, r.out)
					}
				})
			}
		})
}

// TestAttacksWouldSucceed checks that the attacks are real: they succeed without a sandbox.
func TestAttacksWouldSucceed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: the kernel itself refuses half of the attacks by an ordinary user")
	}
	target := attacks.NewTarget(t, outside, os.Getenv(projectVariable))
	s := newSandbox(t, Config{Mode: ModeOff})
	for _, attack := range attacks.Programs() {
		t.Run(attack.Name, func(t *testing.T) {
			if attack.Name == "other calling conventions are refused" && !hasI386Calls(t) {
				t.Skip("SKIPPED: this kernel refuses the system calls of i386 to every program")
			}
			if attack.OwnUser {
				t.Skip("the step's user is not root")
			}
			r := attacked(t, s, attack, target)
			if strings.Contains(r.out, "BROKEN") == attack.Always {
				t.Errorf("exit code %d, signal %v:\n%s", r.Code, r.Signal, r.out)
			}
		})
	}
}

// hasI386Calls reports whether a program outside any sandbox can make an i386 system call.
func hasI386Calls(t *testing.T) bool {
	t.Helper()
	const call = `import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid of i386); int 0x80; ret
assert ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() > 0`
	return exec.CommandContext(t.Context(), "python3", "-c", call).Run() == nil
}
