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
