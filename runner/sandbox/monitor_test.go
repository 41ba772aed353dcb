package sandbox

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestAnIdleProgramIsNotInspected: the first inspection notices that the program is over its limit.
func TestAnIdleProgramIsNotInspected(t *testing.T) {
	for _, idle := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			m := newMonitor(Spec{Idle: idle}, Limits{Memory: 1 << 40, CPU: time.Second}, &group{})
			m.follow(os.Getpid())
			m.chargeCPU(time.Hour)
			done, killed := make(chan struct{}), make(chan struct{})
			go m.watch(done, func() { close(killed) })
			defer close(done)
			time.Sleep(time.Minute)
			select {
			case <-killed:
				if idle {
					t.Fatal("an idle program was killed for its processor time")
				}
				return
			default:
				if !idle {
					t.Fatal("a program that is over its limit was not killed")
				}
			}
			m.limitCPU(time.Second)
			time.Sleep(interval)
			synctest.Wait()
			select {
			case <-killed:
			default:
				t.Error("a program that is no longer idle was not inspected")
			}
		})
	}
}

func TestTheCPUTimeOfAProcessThatEndsInASampleCountsOnce(t *testing.T) {
	const leader, step = 1, 2
	dead := false
	read := func(pid int) (stat, bool) {
		switch {
		case pid == leader && dead:
			return stat{threads: 1, waited: time.Second}, true
		case pid == leader:
			return stat{threads: 1}, true
		case !dead:
			dead = true // the leader waits for it right after its time has been read
			return stat{threads: 1, own: time.Second}, true
		}
		return stat{}, false
	}
	for sample := range 2 {
		now, _ := sumUsage(leader, func(int) []int { return []int{step} }, read)
		if now.cpu != time.Second {
			t.Errorf("sample %d counts %s, want 1s", sample, now.cpu)
		}
	}
}
