package sandbox

import (
	"bufio"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

func TestNoUserIsTakenTwiceAtATime(t *testing.T) {
	var one, other userCounter // two sidecars that happen to begin at the same id
	taken := map[int]bool{}
	var all []user
	for range userTries / 2 {
		for _, c := range []*userCounter{&one, &other} {
			u := c.take()
			if u.held < 0 || taken[u.id] {
				t.Errorf("user %d is taken twice, or not held", u.id)
			}
			taken[u.id] = true
			all = append(all, u)
		}
	}
	for i := range all {
		all[i].release()
	}
	var again userCounter
	u := again.take()
	defer u.release()
	if !taken[u.id] {
		t.Errorf("user %d is not one of those that were released", u.id)
	}
}

func TestOneIsGivenWhereAllUsersAreTaken(t *testing.T) {
	var c userCounter
	var all []user
	for range userTries {
		all = append(all, c.take())
	}
	var late userCounter
	u := late.take()
	if u.held >= 0 || u.id < firstUser || u.id >= firstUser+users {
		t.Errorf("user %+v", u)
	}
	for i := range all {
		all[i].release()
	}
}

// TestAProgramOfAnotherSidecarCannotBeKilled attacks where only the user keeps programs apart.
func TestAProgramOfAnotherSidecarCannotBeKilled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user is the same in each")
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
		t.Errorf("the victim ended otherwise: %+v", exit)
	}
}
