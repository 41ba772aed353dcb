package stage

import (
	"runtime"
	"sync"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// spareThreads is the number of threads in addition to those that Go starts by itself: one for the goroutine that
// waits for the end of the step, one for the goroutine that waits for the end of the sidecar, and one for the
// goroutine that runs.
const spareThreads = 3

// startThreads starts all threads that the stage will need. When a step has exhausted its limit on processes, no new
// thread can start, and a Go program that cannot start a thread crashes. That would end the only process that kills the
// step's remaining processes. Go keeps idle threads.
func startThreads() {
	var up sync.WaitGroup
	var done routine.Group
	release := make(chan struct{})
	for range spareThreads {
		up.Add(1)
		done.Go(func() {
			// A locked thread cannot run other goroutines, so the next goroutine needs a new thread.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			up.Done()
			<-release
		})
	}
	up.Wait()
	close(release)
	done.Wait()
}
