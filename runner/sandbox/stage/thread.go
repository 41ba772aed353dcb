package stage

import (
	"runtime"
	"sync"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// spareThreads is how many threads the stage keeps beside those that Go starts by itself: one for each goroutine that waits
// in the kernel, for the step's end and for the sidecar's, and one more for whatever else runs on the one processor.
const spareThreads = 3

// startThreads starts all threads that the stage will need. A step that has used up its limit on processes lets no new
// one come, and a program in Go that cannot start a thread dies, which would be the end of the one process that kills
// what the step leaves behind. Go keeps threads that have nothing to do.
func startThreads() {
	var up sync.WaitGroup
	var done routine.Group
	release := make(chan struct{})
	for range spareThreads {
		up.Add(1)
		done.Go(func() {
			// A thread that is locked cannot run another goroutine: the next one takes a new thread.
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
