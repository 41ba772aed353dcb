// Package routine starts the goroutines of this module. A panic in one of them ends the process in the way that its command
// promises; the Go runtime would end it with code 2.
package routine

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// handler is one for the process, as the end of the process is.
var (
	handler atomic.Pointer[func(cause any, stack []byte)]
	ending  sync.Mutex
)

// OnPanic has every panic in a goroutine of this package handed to end, which does not return in a command. Without it, a panic
// is left to the runtime.
func OnPanic(end func(cause any, stack []byte)) { handler.Store(&end) }

// Safe returns f with its panics handed to the function of [OnPanic]. It is for functions that others start on a goroutine of
// their own, such as those of time.AfterFunc.
func Safe(f func()) func() {
	return func() {
		defer func() {
			end := handler.Load()
			if end == nil {
				return // without a recover the panic goes on
			}
			if cause := recover(); cause != nil {
				ending.Lock() // the first one ends the process
				defer ending.Unlock()
				(*end)(cause, debug.Stack())
			}
		}()
		f()
	}
}

// Go runs f on a goroutine of its own.
func Go(f func()) { go Safe(f)() }

// Group is a sync.WaitGroup whose goroutines are of this package.
type Group struct{ sync.WaitGroup }

// Go runs f on a goroutine that the group waits for.
func (g *Group) Go(f func()) { g.WaitGroup.Go(Safe(f)) }
