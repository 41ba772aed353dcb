// Package routine starts the goroutines of this module. A panic in one of them ends the process with the exit code that
// its command documents; the Go runtime would end it with code 2.
package routine

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// handler is process-wide, because it ends the process.
var (
	handler atomic.Pointer[func(cause any, stack []byte)]
	ending  sync.Mutex
)

// OnPanic sets end as the handler of panics in goroutines of this package. A command's end does not return. Without a
// handler, the Go runtime handles the panic.
func OnPanic(end func(cause any, stack []byte)) { handler.Store(&end) }

// Safe wraps f so that the function of [OnPanic] handles its panics. Use it for functions that other packages run on
// their own goroutine, such as those of time.AfterFunc.
func Safe(f func()) func() {
	return func() {
		defer func() {
			end := handler.Load()
			if end == nil {
				return // without a recover the panic continues
			}
			if cause := recover(); cause != nil {
				ending.Lock() // the first panic ends the process
				defer ending.Unlock()
				(*end)(cause, debug.Stack())
			}
		}()
		f()
	}
}

// Go runs f on its own goroutine.
func Go(f func()) { go Safe(f)() }

// Group is a sync.WaitGroup that starts its goroutines as [Go] does.
type Group struct{ sync.WaitGroup }

// Go runs f on a goroutine, for which the group waits.
func (g *Group) Go(f func()) { g.WaitGroup.Go(Safe(f)) }
