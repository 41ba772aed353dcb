package serve

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/kizen/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// The limits on the callbacks of one serve, which keeps them only in memory.
const (
	callbacksAtOnce  = 64
	callbackAttempts = 6
	callbackDelay    = 30 * time.Second // the longest wait between two attempts, even if Retry-After is longer
	callbackBytes    = 64 << 20
	callbackOverhead = 8 << 10 // the assumed size of a waiting callback without its message
	callbacksWaiting = 1 << 20 // never reached, because the limit in bytes takes effect first
)

// errCallbacks is the error for a callback that exceeds the memory for waiting callbacks.
var errCallbacks = errors.New("too many callbacks wait; is a receiver of this business down?")

// Callbacks delivers the ends of executions. A nil *Callbacks delivers nothing.
type Callbacks struct {
	sender *webhook.Sender
	log    *slog.Logger
	turns  *queue.Queue  // shares attempts, so that slow receivers of one business do not delay another
	memory *queue.Budget // for undelivered messages
	all    routine.Group
	ctx    context.Context
	cut    context.CancelFunc
}

// NewCallbacks returns callbacks that are signed and sent as config defines; it overrides Attempts and LongestDelay.
// memory limits the total size of waiting callbacks, in bytes; zero means 64 MiB.
func NewCallbacks(config webhook.Config, memory int64, log *slog.Logger) (*Callbacks, error) {
	config.Attempts, config.LongestDelay = callbackAttempts, callbackDelay
	sender, err := webhook.New(config)
	if err != nil {
		return nil, err
	}
	turns, err := queue.New(callbacksAtOnce, callbacksWaiting)
	if err != nil {
		return nil, err
	}
	c := &Callbacks{sender: sender, log: log, turns: turns, memory: queue.NewBudget(cmp.Or(memory, callbackBytes))}
	c.ctx, c.cut = context.WithCancel(context.Background())
	return c, nil
}

// Sender returns the sender, or nil if c is nil.
func (c *Callbacks) Sender() *webhook.Sender {
	if c == nil {
		return nil
	}
	return c.sender
}

// Finished starts the delivery of an execution's end, if the execution has a callback URL, and returns at once. Use it
// as [RegistryConfig]'s Finished.
func (c *Callbacks) Finished(e *Execution) {
	if c == nil || e.Callback() == "" {
		return
	}
	ctx := telemetry.WithExecution(telemetry.WithTrace(c.ctx, e.Traceparent()), e.ID())
	message, err := ending(e)
	if err != nil {
		c.log.ErrorContext(ctx, "a callback could not be written", "error", err)
		return
	}
	business, size := e.BusinessID(), int64(len(message.Body)+callbackOverhead)
	if !c.memory.Take(business, size) {
		c.log.ErrorContext(ctx, "a callback was not delivered", "error", errCallbacks)
		return
	}
	c.all.Go(func() {
		defer c.memory.Give(business, size)
		err := c.sender.Deliver(c.ctx, message, func(ctx context.Context,
			m webhook.Message) error {
			return c.try(ctx, business, m)
		})
		if err != nil {
			c.log.ErrorContext(ctx, "a callback was not delivered", "error", err)
		}
	})
}

// ending returns the message about the end of an execution. If its step did not run, the message has the reason as its
// result.
func ending(e *Execution) (webhook.Message, error) {
	snapshot := e.Snapshot()
	ended := webhook.Finished{ExecutionID: e.ID(), BusinessID: e.BusinessID(), Outcome: snapshot.Outcome,
		Result: snapshot.Result}
	if snapshot.Failure != "" {
		failed := runner.Result{RequestID: e.ID(), Outcome: snapshot.Outcome,
			Error: &runner.StepError{Message: snapshot.Failure}}
		document, err := failed.MarshalJSON()
		if err != nil {
			return webhook.Message{}, err
		}
		ended.Result = document
	}
	return ended.Message(e.Callback(), snapshot.FinishedAt)
}

// try makes one attempt when it is the business's turn.
func (c *Callbacks) try(ctx context.Context, business string, m webhook.Message) error {
	place, err := c.turns.Enter(business)
	if err != nil {
		return err
	}
	release, err := place.Wait(ctx)
	if err != nil {
		return err
	}
	defer release()
	return c.sender.Try(ctx, m)
}

// Close lets deliveries finish within grace, and drops the rest.
func (c *Callbacks) Close(grace time.Duration) {
	if c == nil {
		return
	}
	timer := time.AfterFunc(grace, routine.Safe(c.cut))
	c.all.Wait()
	timer.Stop()
	c.cut()
	c.sender.Close()
}
