package serve

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/runner"
)

// ErrConflict is the error for an id that was submitted before with a different request.
var ErrConflict = errors.New("an execution with this id was submitted with a different request; use another id")

// RegistryConfig configures a [Registry]. Queue and Run are required.
type RegistryConfig struct {
	Queue *queue.Queue
	// Run runs one execution to its end, as [execution.Host.Run] does.
	Run func(ctx context.Context, request execution.Request) (execution.Ended, error)
	// QueueTimeout is how long an execution may wait for a slot; default 30 s.
	QueueTimeout time.Duration
	// WaitingBytes is the maximal total size of requests that wait for a slot; default 64 MiB. Even if other
	// businesses use it all, a business can still use its own share.
	WaitingBytes int64
	// Keep is the maximal number of kept finished executions, KeepBytes their maximal total size; default 1000 and 64
	// MiB. Beyond that, the business with the most loses its oldest. So a business with at most an equal share loses
	// none because of others. Lost executions that callers still read may use half of KeepBytes in addition.
	Keep      int
	KeepBytes int64
	// Abandoned, if not nil, is called for each execution that left the queue without a slot, with the reason.
	Abandoned func(request execution.Request, err error)
	// Finished, if not nil, is called at the end of each execution, on the goroutine that ran it.
	Finished func(*Execution)
	Log      *slog.Logger
}

// Registry runs and keeps executions. It is safe for concurrent use.
type Registry struct {
	config  RegistryConfig
	waiting *queue.Budget   // for requests that wait for a slot
	ctx     context.Context // its end cuts off all running executions
	cut     context.CancelCauseFunc
	all     routine.Group

	mu   sync.Mutex
	byID map[key]*Execution
	kept shelf // kept finished executions
	read shelf // executions that are no longer kept, but still read by callers
}

type key struct{ business, id string }

// NewRegistry returns a registry. [Registry.Shutdown] ends it.
func NewRegistry(config RegistryConfig) *Registry {
	if config.QueueTimeout == 0 {
		config.QueueTimeout = 30 * time.Second
	}
	if config.WaitingBytes == 0 {
		config.WaitingBytes = 64 << 20
	}
	if config.Keep == 0 {
		config.Keep = 1000
	}
	if config.KeepBytes == 0 {
		config.KeepBytes = 64 << 20
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	s := &Registry{config: config, byID: map[key]*Execution{}, kept: newShelf(), read: newShelf(),
		waiting: queue.NewBudget(config.WaitingBytes)}
	s.ctx, s.cut = context.WithCancelCause(context.Background())
	return s
}

// Submit starts an execution, or returns the existing one with its ID. It does not wait. The request was decoded from
// body: the same ID with another body, or for another account, is a conflict. If callback is not empty, the end is
// reported to this URL. The error is [queue.ErrFull], [queue.ErrDraining] or [ErrConflict].
func (s *Registry) Submit(request execution.Request, body []byte, callback string) (*Execution, error) {
	id := request.Identity
	digest := sha256.Sum256(body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.byID[key{id.BusinessID, id.ExecutionID}]; ok {
		if known.digest != digest || known.request.Identity != id {
			return nil, ErrConflict
		}
		return known, nil
	}
	place, err := s.config.Queue.Enter(id.BusinessID)
	if err != nil {
		return nil, err
	}
	size := int64(0)
	if place.Waits() {
		size = int64(len(body)) + request.Job.Inputs.Size()
		if !s.waiting.Take(id.BusinessID, size) {
			place.Leave()
			return nil, queue.ErrFull
		}
	}
	now := time.Now()
	request.Asked = now
	e := &Execution{
		request: request, asked: askedOf(request), callback: callback, digest: digest, state: Queued, queued: now,
		done: make(chan struct{}), changed: make(chan struct{}),
	}
	var ctx context.Context
	ctx, e.cancelled = context.WithCancelCause(s.ctx)
	e.request.Job.Observer = e
	e.append("queued", `{}`)
	s.byID[key{id.BusinessID, id.ExecutionID}] = e
	s.all.Go(func() { s.follow(ctx, e, place, size) })
	return e, nil
}

func askedOf(r execution.Request) Asked {
	return Asked{Outputs: r.Job.Outputs, Secrets: runner.SecretNames(r.Job.Secrets), Limit: r.Limits.Wall}
}

// follow takes an execution from the queue to its end. size is the size of its request in bytes.
func (s *Registry) follow(ctx context.Context, e *Execution, place *queue.Place, size int64) {
	defer e.cancelled(nil)
	ended, err := s.run(ctx, e, place, size)
	e.finish(ended, err)
	s.keep(e)
	if s.config.Finished != nil {
		s.config.Finished(e)
	}
}

func (s *Registry) run(ctx context.Context, e *Execution, place *queue.Place, size int64) (execution.Ended, error) {
	waiting, cancel := context.WithTimeoutCause(ctx, s.config.QueueTimeout, ErrQueueTimeout)
	release, err := place.Wait(waiting)
	cancel()
	s.waiting.Give(e.BusinessID(), size)
	if err != nil {
		if s.config.Abandoned != nil {
			s.config.Abandoned(e.request, err)
		}
		return execution.Ended{}, err
	}
	defer release()
	e.start()
	return s.config.Run(ctx, e.request)
}

// keep adds a finished execution. If the limits are exceeded, it drops the oldest execution of the business with the
// most, possibly the one just added. So a business never evicts results of a business that keeps less.
func (s *Registry) keep(e *Execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept.add(e)
	for s.kept.count > s.config.Keep {
		s.forget(s.kept.oldest((*pile).count))
	}
	for s.kept.bytes > s.config.KeepBytes {
		s.forget(s.kept.oldest((*pile).size))
	}
}

// forget stops keeping an execution. Callers may still be reading it.
func (s *Registry) forget(e *Execution) {
	s.kept.remove(e)
	delete(s.byID, key{e.BusinessID(), e.ID()})
	e.forgotten = true
	if len(e.readers) > 0 {
		s.readForgotten(e)
	}
}

// readForgotten adds an execution to those that are no longer kept but still read. If these exceed their limit, it
// cuts off the readers of the oldest execution of the business with the most.
func (s *Registry) readForgotten(e *Execution) {
	s.read.add(e)
	for s.read.bytes > s.config.KeepBytes/2 && s.read.count > 1 {
		slow := s.read.oldest((*pile).size)
		s.read.remove(slow)
		for r := range slow.readers {
			r.cut()
		}
	}
}

// reader is a caller that currently reads an execution.
type reader struct{ cut func() }

// Reading registers a caller that reads a finished execution, until done is called. While it reads, the execution
// stays in memory, even if it is no longer kept. If such executions exceed their limit, the registry calls cut, which
// must end the reading soon and must not call the registry.
func (s *Registry) Reading(e *Execution, cut func()) (done func()) {
	r := &reader{cut}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.readers == nil {
		e.readers = map[*reader]struct{}{}
	}
	e.readers[r] = struct{}{}
	if e.forgotten && len(e.readers) == 1 {
		s.readForgotten(e)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if delete(e.readers, r); len(e.readers) == 0 {
			s.read.remove(e)
		}
	}
}

// Get returns an execution of a business.
func (s *Registry) Get(businessID, id string) (*Execution, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.byID[key{businessID, id}]
	return e, ok
}

// Recent returns the kept executions of a business, the latest first.
func (s *Registry) Recent(businessID string) []*Execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	var recent []*Execution
	for k, e := range s.byID {
		if k.business == businessID {
			recent = append(recent, e)
		}
	}
	slices.SortFunc(recent, func(a, b *Execution) int { return b.queued.Compare(a.queued) })
	return recent
}

// Shutdown refuses new executions, lets running ones finish until ctx ends, cuts off the rest, and returns when none is
// running. The error says how many were cut off.
func (s *Registry) Shutdown(ctx context.Context) error {
	s.config.Queue.Drain()
	var err error
	select {
	case <-s.config.Queue.Idle():
	case <-ctx.Done():
		err = fmt.Errorf("%d executions were cut off: %w", s.config.Queue.Stats().Used, context.Cause(ctx))
		s.cut(queue.ErrDraining)
	}
	s.all.Wait()
	s.cut(nil)
	return err
}
