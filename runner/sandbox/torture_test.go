package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// The tests named TestTorture fill the machine with processes and executions, so no other test may run at the same
// time: make test skips them, and make torture runs only them.

// TestTortureAsOrdinaryUser runs the torture tests again as a user other than root.
func TestTortureAsOrdinaryUser(t *testing.T) {
	asOrdinaryUser(t, rareVariable+"=too", "-test.run=^TestTorture", "-test.skip=^TestTortureEverything")
}

// bombs fork for as long as they can.
var bombs = []struct{ name, code string }{
	{"that fills its limit", `
import os
while True:
    try: os.fork()
    except OSError: pass`},
	{"in sessions of their own", `
import os
while True:
    try:
        if os.fork() == 0: os.setsid()
    except OSError: pass`},
	{"that hops from id to id", `
import os
for _ in range(8):
    try: os.fork()
    except OSError: pass
while True:
    try:
        if os.fork(): os._exit(0)
        os.setsid()
        for _ in range(10000): pass
    except OSError: pass`},
}

func TestTortureForkBombIsContained(t *testing.T) {
	each(t, all, func(t *testing.T, s *Sandbox) {
		for _, bomb := range bombs {
			t.Run(bomb.name, func(t *testing.T) {
				marker := fmt.Sprintf("kizen-marker-%d-%s", os.Getpid(), t.Name())
				r := run(t, s, "import os, time\nif os.fork(): time.sleep(0.5); os._exit(9)\n"+bomb.code, func(spec *Spec) {
					spec.Argv = append(spec.Argv, marker)
				})
				if r.Code != 9 || r.Survivors == 0 || r.PeakProcesses > 64+2*stage.Threads {
					t.Errorf("got %+v", r.Exit)
				}
				if left := processesWith(marker); len(left) > 0 {
					t.Errorf("still there: %v", left)
				}
			})
		}
	})
}

// TestTortureFullProcessTableLeavesTheFirstProcessAlive reaches the limit at once, many times and in parallel. The
// first process then cannot start any process or thread.
func TestTortureFullProcessTableLeavesTheFirstProcessAlive(t *testing.T) {
	const bomb = `
import os
while True:
    try: os.fork()
    except OSError:
        if os.getsid(0) == os.getpid(): os._exit(9)`
	each(t, all, func(t *testing.T, s *Sandbox) {
		var numbers atomic.Int64
		var running sync.WaitGroup
		for range slots(s) {
			running.Go(func() {
				for numbers.Add(1) <= 50 {
					r, err := try(t.Context(), starts(s), bomb, func(spec *Spec) { spec.Limits.Processes = 16 })
					if err != nil || r.Err != nil || r.Code != 9 || s.holds(layerPidsCgroup) && !r.ProcessesRefused {
						t.Errorf("got %+v, %v", r, err)
					}
				}
			})
		}
		running.Wait()
	})
}

func TestTortureForkBombDiesWithTheSidecar(t *testing.T) {
	for _, kind := range []string{"full", "forks", "bare"} {
		for _, bomb := range bombs {
			t.Run(kind+" "+bomb.name, func(t *testing.T) {
				marker := fmt.Sprintf("kizen-marker-%d-%s", os.Getpid(), t.Name())
				sidecar := sidecarWith(t, kind,
					"import os, time\nprint('up', flush=True)\nif os.fork(): time.sleep(600)\n"+bomb.code, marker)
				eventually(t, "the bomb has grown", func() bool { return len(processesWith(marker)) > 10 })
				if err := sidecar.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "nothing of it is left", func() bool { return len(processesWith(marker)) == 0 })
			})
		}
	}
}

// executionsVariable sets the number of executions of each kind. The default is a few hundred in total.
const executionsVariable = "KIZEN_TEST_EXECUTIONS"

func TestTortureNothingIsLeftAfterManyExecutions(t *testing.T) {
	executions := 500
	if each, err := strconv.Atoi(os.Getenv(executionsVariable)); err == nil {
		executions = each * len(kindsOfExecutions)
	}
	requireNothingLeft(t, executions)
}
