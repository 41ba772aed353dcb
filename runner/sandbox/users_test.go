package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

func TestNoUserIsTakenTwiceAtTheSameTime(t *testing.T) {
	locks := filepath.Join(t.TempDir(), "run", "users")
	// Two sidecars begin at the same ID by chance.
	one, other := userCounter{locks: locks}, userCounter{locks: locks}
	taken := map[int]bool{}
	var all []user
	for range userTries / 2 {
		for _, c := range []*userCounter{&one, &other} {
			u := c.take()
			if u.held == nil || taken[u.id] {
				t.Errorf("user %d is taken twice, or not locked", u.id)
			}
			taken[u.id] = true
			all = append(all, u)
		}
	}
	for i := range all {
		all[i].release()
	}
	again := userCounter{locks: locks}
	u := again.take()
	defer u.release()
	if !taken[u.id] {
		t.Errorf("user %d is not one of those that were released", u.id)
	}
}

func TestAUserIsAssignedEvenIfAllAreTaken(t *testing.T) {
	locks := filepath.Join(t.TempDir(), "run", "users")
	c := userCounter{locks: locks}
	var all []user
	for range userTries {
		all = append(all, c.take())
	}
	late := userCounter{locks: locks}
	u := late.take()
	if u.held != nil || u.id < firstUser || u.id >= firstUser+users {
		t.Errorf("user %+v", u)
	}
	for i := range all {
		all[i].release()
	}
}

func TestUsersAreAssignedEvenIfLockingFails(t *testing.T) {
	c := userCounter{locks: "/dev/null/users"}
	if one, other := c.take(), c.take(); one.id == other.id || one.held != nil || other.held != nil {
		t.Errorf("users %+v and %+v", one, other)
	}
}

// TestAStepCannotReserveUsersOfOtherPrograms: the step binds every name and locks every file that it can.
func TestAStepCannotReserveUsersOfOtherPrograms(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user cannot assign user ids")
	}
	out, printed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// The step sees the host's files and network.
	s := newSandbox(t, Config{without: append(slices.Clone(bare), stage.LayerLandlock)})
	squatter, err := s.Start(t.Context(), Spec{Argv: []string{python, "-I", "-S", "-c", fmt.Sprintf(`
import fcntl, resource, socket, time
all = []
try:
    for n in range(%d, %d):
        s = socket.socket(socket.AF_UNIX); s.bind("\0kizen-sidecar/user/%%d" %% n); all.append(s)
except OSError: pass
try: f = open(%q, "r+b"); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print("locked", flush=True)
except OSError: print("refused", flush=True)
time.sleep(600)`, firstUser, firstUser+users, userLocks)}, Env: []string{"PATH=/usr/bin:/bin"}, Stdout: printed, Limits: Limits{OpenFiles: 8192}})
	printed.Close()
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "refused\n" {
		t.Errorf("the file of the locks was %q, %v", line, err)
	}
	for range 3 {
		u := s.users.take()
		if u.held == nil {
			t.Error("a user's byte is not locked")
		}
		u.release()
	}
	squatter.Kill()
	squatter.Wait()
}

// TestAProgramOfAnotherSidecarCannotBeKilled attacks a program that only its user ID separates from the attacker.
func TestAProgramOfAnotherSidecarCannotBeKilled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user has the same id in each")
	}
	weak := Config{without: append(slices.Clone(bare), stage.LayerLandlock)}
	victims, attackers := newSandbox(t, weak), newSandbox(t, weak)
	victims.users.next.Store(7)
	attackers.users.next.Store(7)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	victim, err := victims.Start(t.Context(), Spec{
		Argv: []string{python, "-I", "-S", "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"},
		Env:  []string{"PATH=/usr/bin:/bin"}, Stdout: w,
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	got := run(t, attackers, `
import os
for attack in lambda: os.kill(PID, 9), lambda: open("/proc/PID/environ").read():
    try: attack(); print("BROKEN")
    except OSError as e: print(type(e).__name__)
`[1:], func(spec *Spec) {
		spec.Argv[4] = strings.ReplaceAll(spec.Argv[4], "PID", strings.TrimSpace(pid))
	})
	if got.out != "PermissionError\nPermissionError" {
		t.Errorf("got %q", got.out)
	}
	victim.Kill()
	if exit := victim.Wait(); !exit.Killed {
		t.Errorf("the victim ended for another reason: %+v", exit)
	}
}
