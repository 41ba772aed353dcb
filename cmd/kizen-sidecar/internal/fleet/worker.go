package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/request"
	"github.com/kizen/kizen-sidecar/cmd/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// WorkerDied is the outcome of an execution whose worker died after the step's code had started. How far the code came is not
// known, so it is not run again.
const WorkerDied = "worker_died"

// callbacksAtOnce bounds the callbacks that one worker delivers at a time.
const callbacksAtOnce = 16

// Config of a [Worker]. All but Sender and Log is required.
type Config struct {
	Redis redis.UniversalClient
	// Queue is the name of asynq's queue.
	Queue string
	// Slots is how many executions run at once.
	Slots int
	// Lease is how long a worker counts as living without a word of it. It is taken for dead after two.
	Lease time.Duration
	// Attempts bounds how often an execution is prepared whose code does not come to start.
	Attempts int64
	// Keep is how long results are kept.
	Keep time.Duration
	// Prepare turns a body into what is run. Mistakes in it are *runner.FieldErrors.
	Prepare func(request.Body) (execution.Request, error)
	// Run carries one execution to its outcome, as [execution.Host.Run] does.
	Run func(context.Context, execution.Request) (execution.Outcome, error)
	// Sender delivers callbacks; nil: executions that want one are refused.
	Sender *webhook.Sender
	Log    *slog.Logger
}

// Worker takes executions from the queue until [Worker.Shutdown].
type Worker struct {
	config    Config
	name      string
	records   records
	members   *members
	client    *asynq.Client
	inspector *asynq.Inspector
	servers   []*asynq.Server

	slots     chan struct{}
	delivered atomic.Int64 // waits for a slot, or runs
	running   atomic.Int64
	ctx       context.Context // ends when what runs is to be cut off
	cut       context.CancelCauseFunc
	all       sync.WaitGroup // handlers: asynq does not wait for those whose lease it lost
	leaving   context.CancelFunc
	keeping   sync.WaitGroup
}

// errDraining ends what has not finished when the drain timeout is over.
var errDraining = errors.New("the worker shuts down")

// errTakenOver ends an attempt whose execution somebody else has claimed.
var errTakenOver = errors.New("another worker has taken the execution over")

// errWorkerDied is the message of an execution that ends as [WorkerDied].
var errWorkerDied = errors.New("the worker died after the step's code had started; how far it came is not known, so it is not run again")

// NewWorker returns a worker that takes nothing yet.
func NewWorker(config Config) *Worker {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	host, _ := os.Hostname() // part of a name that is unique without it
	w := &Worker{
		config: config, name: host + ":" + uuid.NewString(), records: records{config.Redis},
		client: asynq.NewClientFromRedisClient(config.Redis), inspector: asynq.NewInspectorFromRedisClient(config.Redis),
		slots: make(chan struct{}, config.Slots),
	}
	w.members = &members{redis: config.Redis, queue: config.Queue, id: w.name, lease: config.Lease, log: config.Log, missing: map[string]time.Time{}}
	w.ctx, w.cut = context.WithCancelCause(context.Background())
	return w
}

// Load is how many executions are under way in this worker, and how many that were delivered to it wait for a slot.
func (w *Worker) Load() (running, waiting int) {
	running = int(w.running.Load())
	return running, max(int(w.delivered.Load())-running, 0)
}

// Backlog is what waits in the queue, for whichever worker.
func (w *Worker) Backlog(context.Context) (telemetry.Backlog, error) {
	info, err := w.inspector.GetQueueInfo(w.config.Queue)
	if errors.Is(err, asynq.ErrQueueNotFound) {
		return telemetry.Backlog{}, nil // nothing was ever enqueued
	}
	if err != nil {
		return telemetry.Backlog{}, fmt.Errorf("look at queue %q: %w", w.config.Queue, err)
	}
	return telemetry.Backlog{
		Depth: info.Pending + info.Retry + info.Scheduled, Oldest: info.Latency, DeadLetters: info.Archived,
	}, nil
}

// Start joins the fleet and takes work.
func (w *Worker) Start(ctx context.Context) error {
	if err := w.members.join(ctx); err != nil {
		return fmt.Errorf("join the fleet of queue %q: %w", w.config.Queue, err)
	}
	keeping, leave := context.WithCancel(context.Background())
	w.leaving = leave
	w.keeping.Go(func() { w.members.keep(keeping, w.bury) })
	handlers := map[string]asynq.HandlerFunc{w.config.Queue: w.execute}
	concurrency := map[string]int{w.config.Queue: w.config.Slots}
	if w.config.Sender != nil {
		handlers[callbackQueue(w.config.Queue)], concurrency[callbackQueue(w.config.Queue)] = w.callback, callbacksAtOnce
	}
	for queue, handler := range handlers {
		server := asynq.NewServerFromRedisClient(w.config.Redis, asynq.Config{
			Concurrency: concurrency[queue], Queues: map[string]int{queue: 1}, TaskCheckInterval: 100 * time.Millisecond,
			DelayedTaskCheckInterval: time.Second, RetryDelayFunc: delay, IsFailure: func(err error) bool { return !isLater(err) },
			Logger: asynqLog{w.config.Log}, LogLevel: asynq.WarnLevel, ShutdownTimeout: time.Minute,
		})
		if err := server.Start(handler); err != nil {
			return fmt.Errorf("take work from queue %q: %w", queue, err)
		}
		w.servers = append(w.servers, server)
	}
	return nil
}

// Stop takes nothing new: when it returns, no further delivery begins. What runs goes on.
func (w *Worker) Stop() {
	for _, server := range w.servers {
		server.Stop()
	}
}

// Shutdown takes nothing new, lets what runs finish until ctx ends, cuts off the rest, and leaves the fleet.
func (w *Worker) Shutdown(ctx context.Context) {
	w.Stop()
	stop := context.AfterFunc(ctx, func() { w.cut(errDraining) })
	for _, server := range w.servers {
		server.Shutdown()
	}
	w.all.Wait()
	stop()
	w.cut(nil)
	if w.leaving == nil {
		return // it never joined
	}
	w.leaving()
	w.keeping.Wait()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := w.members.leave(ending); err != nil {
		w.config.Log.Warn("the worker could not say that it leaves; it will be taken for dead", "error", err)
	}
}

// attempt is one delivery of an execution.
type attempt struct {
	*Worker
	ticket
	body    request.Body
	refused error // what is wrong with the body
	headers map[string]string
	// asked is when it was put into the queue.
	asked time.Time
	// begun is whether the step's code may have started.
	begun bool
}

// execute handles one delivery of an execution. asynq's context ends with asynq's lease, which says nothing about the step.
func (w *Worker) execute(ctx context.Context, task *asynq.Task) error {
	w.all.Add(1)
	defer w.all.Done()
	body, refused, err := readExecution(task.Payload())
	if err != nil {
		w.config.Log.Error("what was delivered is no execution; it is kept as a dead letter", "error", err)
		return err
	}
	a := &attempt{
		Worker: w, ticket: newTicket(body.BusinessID, body.ExecutionID, w.name), body: body, refused: refused,
		headers: task.Headers(), asked: enqueuedAt(task.Headers(), time.Now()),
	}
	digest := sha256.Sum256(task.Payload())
	ctx = context.WithoutCancel(ctx)
	claimed, err := w.records.claim(ctx, a.ticket, hex.EncodeToString(digest[:]))
	switch {
	case errors.Is(err, ErrConflict):
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	case err != nil:
		return &later{err, time.Second}
	case claimed.state == Finished:
		return a.settle(ctx)
	case claimed.state == Started:
		return a.inherit(ctx, claimed.owner)
	case claimed.attempts > w.config.Attempts:
		return a.giveUp(ctx, claimed.reason)
	}
	return a.run(ctx)
}

// inherit ends an execution whose code has started elsewhere, if that worker is dead.
func (a *attempt) inherit(ctx context.Context, owner string) error {
	holder := ticket{a.business, a.id, owner}
	dead, err := a.members.dead(ctx, holder.worker())
	if err != nil || !dead {
		return &later{errors.Join(err, errors.New("the execution runs elsewhere")), a.config.Lease}
	}
	a.config.Log.Error("the worker of an execution died while its step ran", "execution_id", a.id, "worker", holder.worker())
	a.ticket = holder
	return a.finish(ctx, a.failed(WorkerDied, errWorkerDied))
}

// giveUp ends an execution that could not be started, and keeps it as a dead letter.
func (a *attempt) giveUp(ctx context.Context, reason string) error {
	err := fmt.Errorf("given up after %d attempts: %s", a.config.Attempts, reason)
	a.config.Log.Error("an execution could not be started; it is kept as a dead letter", "execution_id", a.id, "error", err)
	if err := a.finish(ctx, a.failed(execution.NotStarted, err)); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
}

// failed is the end of an execution that has no result of its own.
func (a *attempt) failed(outcome string, cause error) ending {
	return a.ended(outcome, runner.Result{Outcome: runner.Internal, Error: &runner.StepError{Message: cause.Error()}})
}

func (a *attempt) ended(outcome string, result runner.Result) ending {
	result.RequestID = a.id
	document, err := result.MarshalJSON()
	if err != nil {
		a.config.Log.Error("a result could not be written", "execution_id", a.id, "error", err)
		outcome, document = string(runner.Internal), []byte("null")
	}
	return ending{outcome, document, time.Now()}
}

// run runs a claimed execution in a slot.
func (a *attempt) run(ctx context.Context) error {
	a.Worker.delivered.Add(1)
	defer a.Worker.delivered.Add(-1)
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-a.ctx.Done():
		return a.giveBack(ctx, errDraining, false)
	}
	a.running.Add(1)
	defer a.running.Add(-1)
	job, err := a.prepare()
	if err != nil {
		return a.finish(ctx, a.failed(execution.Refused, err))
	}
	job.Starting, job.Asked, job.Delivered = a.starting, a.asked, true
	if job.Job.Traceparent == "" {
		job.Job.Traceparent, job.Tracestate = a.headers["traceparent"], a.headers["tracestate"]
	}
	outcome, err := a.config.Run(a.ctx, job)
	var fields *runner.FieldErrors
	switch {
	case err == nil:
		return a.finish(ctx, a.ended(string(outcome.Result.Outcome), outcome.Result))
	case a.begun:
		return a.finish(ctx, a.failed(string(runner.Internal), err))
	case errors.As(err, &fields):
		return a.finish(ctx, a.failed(execution.Refused, err))
	case errors.Is(err, errTakenOver):
		return nil
	}
	return a.giveBack(ctx, err, a.ctx.Err() == nil)
}

func (a *attempt) prepare() (execution.Request, error) {
	if a.refused != nil {
		return execution.Request{}, a.refused
	}
	if a.body.CallbackURL != "" && a.config.Sender == nil {
		var refused runner.FieldErrors
		refused.Add("callbacks are not configured; start workers with --webhook-secret-file", "callback_url")
		return execution.Request{}, &refused
	}
	return a.config.Prepare(a.body)
}

// starting writes down that the step's code starts. Without that it does not start.
func (a *attempt) starting(ctx context.Context) error {
	ours, err := a.records.start(ctx, a.ticket)
	if err != nil {
		return fmt.Errorf("write down that the step starts: %w", err)
	}
	if !ours {
		return errTakenOver
	}
	a.begun = true
	return nil
}

// giveBack lets another attempt have an execution whose code this one did not start.
func (a *attempt) giveBack(ctx context.Context, cause error, counted bool) error {
	a.config.Log.Warn("an execution was not started; it is tried again", "execution_id", a.id, "error", cause)
	err := a.insist(ctx, func(ctx context.Context) error { return a.records.release(ctx, a.ticket, cause.Error(), counted) })
	if err != nil {
		return &later{err, time.Second}
	}
	if !counted {
		return &later{cause, 0}
	}
	return &later{cause, time.Second}
}

// finish writes the result down, and has the callback delivered.
func (a *attempt) finish(ctx context.Context, e ending) error {
	var stands string
	err := a.insist(ctx, func(ctx context.Context) (err error) {
		stands, err = a.records.finish(ctx, a.ticket, e, a.config.Keep)
		return err
	})
	if err != nil {
		a.config.Log.Error("a result could not be kept", "execution_id", a.id, "error", err)
		return &later{err, a.config.Lease}
	}
	if stands == "" {
		return nil // whoever has ended it settles it
	}
	if stands != e.outcome {
		a.config.Log.Warn("a result came too late and is dropped: the execution had been ended",
			"execution_id", a.id, "outcome", stands, "dropped", e.outcome)
	}
	return a.settle(ctx)
}

// settle queues the callback of a finished execution, unless that is done.
func (a *attempt) settle(ctx context.Context) error {
	known, err := a.records.read(ctx, a.business, a.id)
	if err != nil {
		return &later{err, time.Second}
	}
	if known.settled || a.body.CallbackURL == "" {
		return nil
	}
	finished := webhook.Finished{ExecutionID: a.id, BusinessID: a.business, Outcome: known.outcome, Result: known.result}
	message, err := finished.Message(a.body.CallbackURL, known.at)
	if err != nil {
		return fmt.Errorf("write the callback: %w: %w", err, asynq.SkipRetry)
	}
	if err := a.enqueueCallback(ctx, message); err != nil {
		return &later{err, time.Second}
	}
	if err := a.records.settle(ctx, a.business, a.id); err != nil {
		return &later{err, time.Second}
	}
	return nil
}

// insist tries again while Redis is away, until the worker is cut off, and then once more.
func (w *Worker) insist(ctx context.Context, do func(context.Context) error) error {
	for {
		err := do(ctx)
		if err == nil || w.ctx.Err() != nil {
			return err
		}
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-timer.C:
		case <-w.ctx.Done():
			timer.Stop()
		}
	}
}

// bury has the work of a dead worker delivered to those who live, long before asynq would: it enqueues a copy of every active
// task that may have been its. When asynq comes with the original there is nothing left to do.
func (w *Worker) bury(ctx context.Context, dead string) error {
	return errors.Join(
		w.copyActive(ctx, w.config.Queue, dead, executionOptions, w.orphaned),
		w.copyActive(ctx, callbackQueue(w.config.Queue), dead, callbackOptions, func(context.Context, *asynq.TaskInfo, string) (bool, error) {
			return true, nil // nobody can tell whose it is, and receivers can tell a repetition
		}),
	)
}

func (w *Worker) copyActive(
	ctx context.Context, queue, dead string, options func(queue, id string) []asynq.Option,
	orphaned func(context.Context, *asynq.TaskInfo, string) (bool, error),
) error {
	active, err := w.active(queue, 1000)
	var errs []error
	for _, task := range active {
		copied, err := orphaned(ctx, task, dead)
		if err == nil && copied {
			_, err = w.client.EnqueueContext(ctx, asynq.NewTaskWithHeaders(task.Type, task.Payload, task.Headers), options(w.config.Queue, copyID(task.ID, dead))...)
		}
		if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, err)...)
}

// active are the tasks of a queue that workers have, read so many at a time. One that comes or goes meanwhile may be missed,
// and is asynq's to find.
func (w *Worker) active(queue string, atOnce int) (all []*asynq.TaskInfo, err error) {
	for page := 1; ; page++ {
		tasks, err := w.inspector.ListActiveTasks(queue, asynq.PageSize(atOnce), asynq.Page(page))
		if errors.Is(err, asynq.ErrQueueNotFound) {
			return nil, nil
		}
		if all = append(all, tasks...); err != nil || len(tasks) < atOnce {
			return all, err
		}
	}
}

// orphaned reports whether no living worker has claimed a task.
func (w *Worker) orphaned(ctx context.Context, task *asynq.TaskInfo, dead string) (bool, error) {
	body, _, err := readExecution(task.Payload)
	if err != nil {
		return false, nil // whoever has it makes a dead letter of it
	}
	known, err := w.records.read(ctx, body.BusinessID, body.ExecutionID)
	return known.owner == "" || known.worker() == dead, err
}
