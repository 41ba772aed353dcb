package serve

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// What bounds the callbacks of one serve, which are kept in memory alone.
const (
	callbacksAtOnce  = 64
	callbackAttempts = 6
	callbackDelay    = 30 * time.Second // the longest between two attempts, whatever a receiver wants
	callbackBytes    = 64 << 20
	callbackOverhead = 8 << 10 // of each that waits, beside its message
	callbacksWaiting = 1 << 20 // never reached: the bytes are what bounds them
)

// errCallbacks: so many wait that this one does not fit.
var errCallbacks = errors.New("too many callbacks wait; is a receiver of this business down?")

// Callbacks delivers the ends of executions. A nil one delivers none.
type Callbacks struct {
	sender *webhook.Sender
	log    *slog.Logger
	turns  *queue.Queue  // of attempts: slow receivers of one business hold up no other
	memory *queue.Budget // of messages that are not delivered yet
	all    routine.Group
	ctx    context.Context
	cut    context.CancelFunc
}

// NewCallbacks returns callbacks that are signed and sent as config says; its Attempts and LongestDelay are set here. Those that
// wait may hold memory bytes in total; zero means 64 MiB.
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

// Sender is the sender; nil where there is none.
func (c *Callbacks) Sender() *webhook.Sender {
	if c == nil {
		return nil
	}
	return c.sender
}

// Finished delivers the end of an execution that wants it, behind the back of
// who calls. It is [RegistryConfig]'s Finished.
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
		err := c.sender.Deliver(c.ctx, message, func(ctx context.Context, m webhook.Message) error { return c.try(ctx, business, m) })
		if err != nil {
			c.log.ErrorContext(ctx, "a callback was not delivered", "error", err)
		}
	})
}

// ending is what a receiver is told of an execution. Where its step did not
// run, its result is why.
func ending(e *Execution) (webhook.Message, error) {
	snapshot := e.Snapshot()
	ended := webhook.Finished{ExecutionID: e.ID(), BusinessID: e.BusinessID(), Outcome: snapshot.Outcome, Result: snapshot.Result}
	if snapshot.Failure != "" {
		failed := runner.Result{RequestID: e.ID(), Outcome: outcomes.Internal, Error: &runner.StepError{Message: snapshot.Failure}}
		document, err := failed.MarshalJSON()
		if err != nil {
			return webhook.Message{}, err
		}
		ended.Result = document
	}
	return ended.Message(e.Callback(), snapshot.FinishedAt)
}

// try makes one attempt, when it is the business's turn.
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

// Close lets deliveries finish within grace, and gives up the rest.
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
