package proxy

import (
	"context"
	"sync"
	"time"
)

// lazyDeadline is a context with a timeout that costs nothing until it is waited for, because a key source nearly
// always answers from memory.
type lazyDeadline struct {
	context.Context
	deadline time.Time

	mu     sync.Mutex
	real   context.Context
	cancel context.CancelFunc
}

func newLazyDeadline(parent context.Context, timeout time.Duration) *lazyDeadline {
	return &lazyDeadline{Context: parent, deadline: time.Now().Add(timeout)}
}

func (l *lazyDeadline) materialise() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.real == nil {
		l.real, l.cancel = context.WithDeadline(l.Context, l.deadline)
	}
	return l.real
}

func (l *lazyDeadline) Deadline() (time.Time, bool) { return l.materialise().Deadline() }
func (l *lazyDeadline) Done() <-chan struct{}       { return l.materialise().Done() }
func (l *lazyDeadline) Err() error                  { return l.materialise().Err() }

func (l *lazyDeadline) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		l.cancel()
	}
}
