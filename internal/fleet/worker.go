package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/backoff"
	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/payload"
	"github.com/kizen/kizen-sidecar/internal/routine"
	"github.com/kizen/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/internal/wire"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// callbacksAtOnce is how many callbacks one worker delivers at a time.
const callbacksAtOnce = 32

// taskInterval and callbackInterval are how often a worker polls an empty queue for executions and for callbacks.
// delayedInterval is how often it looks for delayed tasks that are due. With N queues it polls less often, by the
// square root of N: each poll asks all queues, and a fleet that needs several has many workers.
const (
	taskInterval     = 150 * time.Millisecond
	callbackInterval = 300 * time.Millisecond
	delayedInterval  = time.Second
)

// Config configures a [Worker]. All fields are required, except Revoke, Ready, Try, Sender, Metrics and Log.
type Config struct {
	Redis redis.UniversalClient
	// Queue is the name of the queue.
	Queue string
	// Queues is how many queues of asynq it consists of, see [wire.QueueNames]; zero means one.
	Queues int
	// Slots is how many executions run at once.
	Slots int
	// Lease is how long a worker may go without a renewal. After one lease it ends its steps itself; after two the
	// keeper declares it dead.
	Lease time.Duration
	// Attempts bounds how often the fleet tries to start an execution.
	Attempts int64
	// Retention limits the results that are kept.
	Retention Retention
	// Durability is how durable the start of a step must be; the zero value is [DurabilityMemory].
	Durability Durability
	// Prepare turns a request body into an execution. Invalid fields are reported as *runner.FieldErrors.
	Prepare func(execution.Body) (execution.Request, error)
	// Run runs one execution to its outcome, as [execution.Host.Run] does.
	Run func(context.Context, execution.Request) (execution.Ended, error)
	// Revoke revokes the keys of an execution whose worker has died, before the end is recorded. If nil, they expire
	// by themselves.
	Revoke func(ctx context.Context, business, id string) error
	// Ready returns why this worker should take no executions. If nil, it is always ready.
	Ready func(context.Context) error
	// Try checks that this machine can run executions, and returns why it cannot. If nil, the machine is assumed to
	// work.
	Try func(context.Context) error
	// Sender delivers callbacks. If nil, executions with a callback are refused.
	Sender *webhook.Sender
	// Metrics counts how executions end. If nil, nothing is counted.
	Metrics *telemetry.Metrics
	Log     *slog.Logger
}

// Worker takes executions from the queue until [Worker.Shutdown].
type Worker struct {
	config    Config
	records   records
	payloads  payload.Store
	members   *members
	queues    []string // asynq's names for the queues of executions
	held      []*held  // for executions, and for callbacks
	run       *redisRun
	recall    *recall
	intake    *intake
	turns     *turns // for callbacks
	letters   letters
	cancelled cancellations
	client    *asynq.Client
	inspector *asynq.Inspector
	callbacks *asynq.Server

	// State of the keeper: active tasks that the last sweep found without a worker, and the time from which it checks
	// archived ones.
	suspects      map[string]map[string]bool
	archivedSince map[string]int64
	archiveFull   map[string]bool // the last state that was logged

	slots     chan struct{}
	checking  atomic.Bool  // afterRenewal runs
	delivered atomic.Int64 // waiting for a slot, or running
	running   atomic.Int64
	ctx       context.Context // ends when running executions must stop
	cut       context.CancelCauseFunc
	all       routine.Group // handlers: asynq does not wait for those whose lease it lost

	leave  context.CancelFunc // ends the loops
	stop   context.CancelFunc // stops taking tasks
	loops  routine.Group
	taking routine.Group
}

// errDraining ends the executions that are left when the drain timeout is over.
var errDraining = errors.New("the worker shuts down")

// errTakenOver ends an attempt whose execution another worker has claimed.
var errTakenOver = errors.New("another worker has taken the execution over")

// errRedisRestarted ends an attempt whose claim was written before Redis restarted.
var errRedisRestarted = errors.New("redis was restarted before the step's code had started")

// errRunsElsewhere delays the delivery of an execution that another attempt has.
var errRunsElsewhere = errors.New("the execution runs elsewhere")

// errWorkerDied is the error of an execution that ends as [outcomes.WorkerDied].
var errWorkerDied = errors.New("the worker died after the step's code had started; its progress is unknown, so it is not run again")

// errEndLost is the error of an execution whose worker is alive but no longer knows it.
var errEndLost = errors.New("the step's code had started, and Redis lost how it ended; its progress is unknown, so it is not run again")

// deathLimit is how many workers may die while they prepare the same execution.
const deathLimit = 2

// longestBackoff bounds the wait between two attempts to start an execution, and between two checks of a broken
// worker.
const longestBackoff = time.Minute

// NewWorker returns a worker that has not started.
func NewWorker(config Config) *Worker {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	w := &Worker{
		config: config, records: records{config.Redis, config.Durability, config.Retention},
		payloads: payload.Store{Redis: config.Redis}, recall: newRecall(), run: newRedisRun(config),
		queues: wire.QueueNames(config.Queue, config.Queues),
		client: asynq.NewClientFromRedisClient(config.Redis), inspector: asynq.NewInspectorFromRedisClient(config.Redis),
		suspects: map[string]map[string]bool{}, archivedSince: map[string]int64{}, archiveFull: map[string]bool{},
		slots: make(chan struct{}, config.Slots), turns: newTurns(callbacksAtOnce),
		letters: letters{config.Redis}, cancelled: cancellations{config.Redis, config.Queue},
	}
	for _, queue := range append(slices.Clone(w.queues), callbackQueues(w.queues)...) {
		w.held = append(w.held, newHeld(config.Redis, queue))
	}
	w.members = &members{redis: config.Redis, queue: config.Queue, lease: config.Lease, log: config.Log,
		missing: map[string]time.Time{}}
	w.intake = &intake{
		ready: config.Ready, try: config.Try, first: 100 * time.Millisecond, last: longestBackoff,
		broken:  make(chan error, 1),
		failing: map[string]bool{}, reason: errNotYet, report: w.logTaking,
		open: func() (*asynq.Server, error) {
			return w.serve(w.queues, config.Slots, taskInterval, w.execute)
		},
	}
	w.ctx, w.cut = context.WithCancelCause(context.Background())
	return w
}

// logTaking logs whether the worker takes executions.
func (w *Worker) logTaking(err error) {
	switch {
	case err == nil:
		w.config.Log.Info("executions are taken", "queue", w.config.Queue)
	case !errors.Is(err, errDraining):
		w.config.Log.Warn("no executions are taken until this worker works again", "queue", w.config.Queue, "error", err)
	}
}

// Taking returns why the worker takes no executions. If nil, it takes them.
func (w *Worker) Taking() error { return w.intake.taking() }

// Load returns how many executions run on this worker, and how many wait here for a slot.
func (w *Worker) Load() (running, waiting int) {
	running = int(w.running.Load())
	return running, max(int(w.delivered.Load())-running, 0)
}

// Backlogs returns how many executions and callbacks wait in the queue for any worker.
func (w *Worker) Backlogs(ctx context.Context) (executions, callbacks telemetry.Backlog, err error) {
	if executions, err = w.backlog(ctx, w.queues); err == nil {
		callbacks, err = w.backlog(ctx, callbackQueues(w.queues))
	}
	return executions, callbacks, err
}

func (w *Worker) backlog(ctx context.Context, queues []string) (total telemetry.Backlog, err error) {
	for _, queue := range queues {
		info, err := queueInfo(ctx, w.config.Redis, w.inspector, queue)
		if err != nil {
			return telemetry.Backlog{}, err
		}
		total.Depth += info.Pending + info.Retry + info.Scheduled
		total.Oldest = max(total.Oldest, info.Latency)
		total.DeadLetters += info.Archived
	}
	return total, nil
}

// Start joins the fleet and takes work as soon as the worker is ready.
func (w *Worker) Start(ctx context.Context) error {
	if err := w.config.Durability.Check(ctx, w.config.Redis); err != nil {
		return err
	}
	err := w.members.join(ctx)
	if err == nil {
		err = w.run.join(ctx)
	}
	if err != nil {
		return fmt.Errorf("join the fleet of queue %q: %w", w.config.Queue, err)
	}
	if w.config.Sender != nil {
		w.callbacks, err = w.serve(callbackQueues(w.queues), callbacksAtOnce, callbackInterval, w.deliverCallback)
		if err != nil {
			return err
		}
	}
	keeping, leave := context.WithCancel(context.Background())
	taking, stop := context.WithCancelCause(context.Background())
	w.leave, w.stop = leave, func() { stop(errDraining) }
	w.loops.Go(func() { w.members.renew(keeping, w.checkAfterRenewal) })
	w.loops.Go(func() { w.keepFleet(keeping) })
	w.taking.Go(func() { w.intake.run(taking) })
	return nil
}

// serve starts an asynq server that passes the tasks of queues to a handler. For each task asynq searches the queues in
// a random order, so a queue that is full of one business's tasks leaves the others their share.
func (w *Worker) serve(queues []string, concurrency int, interval time.Duration,
	handler asynq.HandlerFunc) (*asynq.Server, error) {
	priorities := map[string]int{}
	for _, queue := range queues {
		priorities[queue] = 1
	}
	less := math.Sqrt(float64(len(queues)))
	server := asynq.NewServerFromRedisClient(w.config.Redis, asynq.Config{
		Concurrency: concurrency, Queues: priorities, RetryDelayFunc: delay,
		TaskCheckInterval:        time.Duration(float64(interval) * less),
		DelayedTaskCheckInterval: time.Duration(float64(delayedInterval) * less),
		IsFailure:                func(err error) bool { return !isLater(err) },
		Logger:                   asynqLog{w.config.Log}, LogLevel: asynq.WarnLevel, ShutdownTimeout: time.Minute,
	})
	if err := server.Start(w.withIndex(handler)); err != nil {
		return nil, fmt.Errorf("take work from queue %q: %w", queues[0], err)
	}
	return server, nil
}

// withIndex wraps a handler so that it runs only for tasks that are in this worker's index.
func (w *Worker) withIndex(handler asynq.HandlerFunc) asynq.HandlerFunc {
	return func(ctx context.Context, task *asynq.Task) error {
		w.all.Add(1)
		defer w.all.Done()
		queue, _ := asynq.GetQueueName(ctx)
		index := w.index(queue)
		t := w.members.current()
		if t == nil {
			return &later{errFenced, 0}
		}
		id, _ := asynq.GetTaskID(ctx)
		if newer(task.Headers()[wire.VersionHeader]) {
			w.config.Log.Warn("a task is left to a newer worker", "task", id, "version", task.Headers()[wire.VersionHeader],
				"error", errNewer)
			return &later{errNewer, w.config.Lease}
		}
		defer index.returned(t.id, id)
		if err := index.add(ctx, t.id, id); err != nil {
			return &later{err, time.Second}
		}
		return handler(context.WithValue(ctx, termKey{}, t), task)
	}
}

// index returns this worker's index of the tasks of one of its queues.
func (w *Worker) index(queue string) *held {
	return w.held[slices.IndexFunc(w.held, func(h *held) bool { return h.queue == queue })]
}

// termKey is the key of the term in the context of a handler.
type termKey struct{}

// checkAfterRenewal starts afterRenewal, unless it is still running: the master of one queue may be unreachable, and
// waiting for it must not delay the next renewal.
func (w *Worker) checkAfterRenewal(ctx context.Context) {
	if w.checking.CompareAndSwap(false, true) {
		w.loops.Go(func() {
			defer w.checking.Store(false)
			w.afterRenewal(ctx)
		})
	}
}

// afterRenewal does the regular work that needs a reachable Redis.
func (w *Worker) afterRenewal(ctx context.Context) {
	_, err := w.run.check(ctx)
	if w.run.takeLoss() {
		w.loops.Go(func() { w.restore(ctx) })
	}
	for _, index := range w.held {
		err = errors.Join(err, index.reap(ctx))
	}
	err = errors.Join(err, w.cancelled.apply(ctx, w.recall.of))
	if err != nil {
		w.config.Log.Warn("this worker could not check its tasks; it will retry", "error", err)
	}
}

// restore records again the executions that this worker runs or has recently finished, because Redis may have lost
// them.
func (w *Worker) restore(ctx context.Context) {
	running, finished := w.recall.all()
	var errs []error
	for _, index := range w.held {
		errs = append(errs, index.restore(ctx))
	}
	for _, a := range running {
		errs = append(errs, w.records.restore(ctx, a.ticket, a.digest))
	}
	for _, done := range finished {
		errs = append(errs, w.restoreFinished(ctx, done))
	}
	if err := errors.Join(errs...); err != nil {
		w.config.Log.Error("some of the state that Redis may have lost could not be written again; the worker will retry",
			"error", err)
		w.run.markLost()
		return
	}
	w.config.Log.Info("the state that Redis may have lost was written again", "running", len(running), "finished",
		len(finished))
}

// restoreFinished records again how an execution ended, and requeues its task, because asynq may have lost its
// completion.
func (w *Worker) restoreFinished(ctx context.Context, done *finishedAttempt) error {
	if err := w.records.restore(ctx, done.ticket, done.digest); err != nil {
		return err
	}
	if _, _, err := w.records.finish(ctx, done.ticket, done.digest, done.ending, w.keep(done.ending)); err != nil {
		return err
	}
	known, err := w.records.read(ctx, done.business, done.id)
	if err == nil {
		err = w.notify(ctx, done.subject, known)
	}
	if err == nil {
		_, err = w.index(done.queue).requeue(ctx, "", requeueAny, []any{done.task})
	}
	return err
}

// Stop stops taking tasks: when it returns, no further delivery begins. Running executions continue.
func (w *Worker) Stop() {
	if w.stop != nil {
		w.stop()
	}
	w.taking.Wait()
	if w.callbacks != nil {
		w.callbacks.Stop()
	}
}

// Shutdown stops taking tasks, lets executions finish until ctx ends, cancels the rest, and leaves the fleet.
func (w *Worker) Shutdown(ctx context.Context) {
	w.Stop()
	stop := context.AfterFunc(ctx, routine.Safe(func() { w.cut(errDraining) }))
	w.intake.closing.Wait()
	if w.callbacks != nil {
		w.callbacks.Shutdown()
	}
	w.all.Wait()
	stop()
	w.cut(nil)
	if w.leave == nil {
		return // it never joined
	}
	w.leave()
	w.loops.Wait()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var errs []error
	for _, index := range w.held {
		errs = append(errs, index.giveBack(ending))
	}
	if err := errors.Join(append(errs, w.members.leave(ending))...); err != nil {
		w.config.Log.Warn("the worker could not leave the fleet; the keeper will declare it dead", "error", err)
	}
}

// subject identifies an execution to the fleet.
type subject struct {
	ticket
	queue                 string // asynq's name for it
	task, digest          string
	callback, traceparent string
	// stored refers to a request outside of the task. Its SHA256 is empty if the task contains the request.
	stored payload.Reference
}

// attempt is one delivery of an execution.
type attempt struct {
	*Worker
	subject
	term    *term
	payload []byte // of the task
	headers map[string]string
	// asked is when the execution was enqueued.
	asked time.Time
	// begun reports whether the step's code may have started.
	begun atomic.Bool
	// stop ends the attempt with a cause.
	stop context.CancelCauseFunc
}

// execute handles one delivery of an execution. The context that asynq passes ends with asynq's lease, so the step
// does not depend on it. execute returns nil only when the record says that the execution has finished, because asynq
// then deletes the task.
func (w *Worker) execute(ctx context.Context, task *asynq.Task) error {
	id, _ := asynq.GetTaskID(ctx)
	queue, _ := asynq.GetQueueName(ctx)
	named, err := readReference(task.Payload())
	if err != nil {
		w.config.Log.Error("a task is not a valid execution; it is kept as a dead letter", "error", err)
		return w.listDeadLetter(ctx, queue, id, err)
	}
	t, _ := ctx.Value(termKey{}).(*term)
	digest := sha256.Sum256(task.Payload())
	a := &attempt{
		Worker: w, term: t, payload: task.Payload(), headers: task.Headers(), asked: enqueuedAt(task.Headers(), time.Now()),
		subject: subject{
			ticket: newTicket(named.BusinessID, named.ExecutionID, t.id), queue: queue, task: id, digest: hex.EncodeToString(digest[:]),
			callback: named.CallbackURL, traceparent: traceOf(named, task.Headers()), stored: named,
		},
	}
	lasting := context.WithoutCancel(ctx)
	return w.listDeadLetter(lasting, queue, id, a.deliver(lasting))
}

// listDeadLetter returns the error of a delivery. If the error makes the task a dead letter, it first adds the task to
// the list of dead letters.
func (w *Worker) listDeadLetter(ctx context.Context, queue, task string, err error) error {
	var letter *archived
	if !errors.As(err, &letter) {
		return err
	}
	if listed := w.letters.add(ctx, queue, task); listed != nil {
		return &later{listed, time.Second}
	}
	return err
}

// deliver claims the execution and acts on its state.
func (a *attempt) deliver(ctx context.Context) error {
	if err := a.run.wait(a.ctx); err != nil {
		return &later{err, time.Second}
	}
	from := ""
	for {
		claimed, err := a.records.claim(ctx, a.ticket, a.digest, from)
		switch {
		case errors.Is(err, ErrConflict):
			return a.refuseConflict(ctx)
		case errors.Is(err, errNewer):
			a.config.Log.Warn("an execution is left to a newer worker", "execution_id", a.id, "error", err)
			return &later{err, a.config.Lease}
		case err != nil:
			return &later{err, time.Second}
		case claimed.state == Expired:
			a.config.Log.Info("the result of a delivered execution has expired; it is not run again", "execution_id", a.id)
			return a.deletePayload(ctx)
		case claimed.state == Finished:
			again, err := a.conclude(ctx)
			if !again {
				return err
			}
			continue
		case claimed.owner == a.owner && claimed.deaths >= deathLimit:
			return a.giveUp(ctx, fmt.Sprintf("%d workers died while they prepared it", claimed.deaths))
		case claimed.owner == a.owner && claimed.attempts > a.config.Attempts:
			return a.giveUp(ctx, fmt.Sprintf("given up after %d attempts: %s", a.config.Attempts, claimed.reason))
		case claimed.owner == a.owner:
			return a.attempt(ctx, claimed.attempts)
		}
		ended, err := a.ownerEnded(ctx, claimed.owner)
		if err != nil || !ended {
			return &later{errors.Join(err, errRunsElsewhere), a.config.Lease}
		}
		if claimed.state == Started {
			return a.endOrphan(ctx, claimed.owner)
		}
		from = claimed.owner
	}
}

// ownerEnded reports whether the attempt that owns the record has ended without recording it: its worker is dead, or
// its worker is this one and no longer runs the attempt.
func (a *attempt) ownerEnded(ctx context.Context, owner string) (bool, error) {
	worker := ticket{owner: owner}.worker()
	if worker == a.term.id {
		return !a.recall.runs(owner), nil
	}
	return a.members.dead(ctx, worker)
}

// conclude ends the delivery of a finished execution. If the execution is a dead letter that was requeued, again is
// true and the execution runs again.
func (a *attempt) conclude(ctx context.Context) (again bool, err error) {
	known, err := a.records.read(ctx, a.business, a.id)
	if err != nil {
		return false, &later{err, time.Second}
	}
	if known.deadLetter != "" {
		task, err := a.inspector.GetTaskInfo(a.queue, a.task)
		if err != nil {
			return false, &later{err, time.Second}
		}
		if task.LastErr == known.deadLetter { // archived with this error, and requeued since
			a.config.Log.Info("a dead letter is run again", "execution_id", a.id, "run", known.run+1)
			err := a.records.reopen(ctx, a.business, a.id, known.deadLetter)
			if err == nil {
				_, err = a.letters.remove(ctx, a.queue, a.task)
			}
			if err != nil {
				return false, &later{err, time.Second}
			}
			return true, nil
		}
	}
	if err := a.notify(ctx, a.subject, known); err != nil {
		return false, &later{err, time.Second}
	}
	if known.deadLetter != "" {
		return false, deadLetter(errors.New(known.deadLetter))
	}
	if err := a.records.settleEnd(ctx, a.business, a.id); err != nil {
		return false, &later{err, time.Second}
	}
	return false, a.deletePayload(ctx)
}

// deletePayload deletes the stored request of an execution that will never run again.
func (a *attempt) deletePayload(ctx context.Context) error {
	if a.stored.SHA256 == "" {
		return nil
	}
	if err := a.payloads.Delete(ctx, a.stored); err != nil {
		return &later{err, time.Second}
	}
	return nil
}

// endOrphan ends an execution whose attempt started the code and ended without recording the end. It revokes the key
// first: if the step still runs somewhere, it can no longer call the API.
func (a *attempt) endOrphan(ctx context.Context, owner string) error {
	holder := a.subject
	holder.owner = owner
	if done := a.recall.ended(owner); done != nil {
		return a.finish(ctx, holder, done.ending)
	}
	if a.config.Revoke != nil {
		if err := a.config.Revoke(ctx, a.business, a.id); err != nil {
			return &later{fmt.Errorf("revoke the key of a worker that has died: %w", err), time.Second}
		}
	}
	cause := errWorkerDied
	if holder.worker() == a.term.id {
		cause = errEndLost
	}
	a.config.Log.Error("an execution was ended after its step had started", "execution_id", a.id, "worker",
		holder.worker(), "error", cause)
	return a.finish(ctx, holder, a.failed(outcomes.WorkerDied, cause))
}

// giveUp ends an execution that could not be started, and keeps it as a dead letter.
func (a *attempt) giveUp(ctx context.Context, reason string) error {
	letter := deadLetter(errors.New(reason))
	a.config.Log.Error("an execution could not be started; it is kept as a dead letter", "execution_id", a.id, "error",
		reason)
	e := a.failed(outcomes.NotStarted, errors.New(reason))
	e.deadLetter = letter.Error()
	if err := a.finish(ctx, a.subject, e); err != nil {
		return err
	}
	return letter
}

// failed returns the end of an execution that has no result of its own.
func (a *attempt) failed(outcome outcomes.Outcome, cause error) ending {
	return a.ended(outcome, runner.Result{Outcome: outcome, Error: &runner.StepError{Message: cause.Error()}})
}

func (a *attempt) ended(outcome outcomes.Outcome, result runner.Result) ending {
	result.RequestID = a.id
	document, err := result.MarshalJSON()
	if err != nil {
		a.config.Log.Error("a result could not be written", "execution_id", a.id, "error", err)
		outcome, document = outcomes.Internal, []byte("null")
	}
	return ending{outcome: outcome, result: document, at: time.Now(), begun: a.begun.Load()}
}

// attempt runs a claimed execution in a slot.
func (a *attempt) attempt(ctx context.Context, attempts int64) error {
	running, stop := context.WithCancelCause(a.Worker.ctx)
	defer stop(nil)
	a.stop = stop
	a.recall.begin(a)
	defer a.recall.end(a)
	a.delivered.Add(1)
	defer a.delivered.Add(-1)
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-running.Done():
		if cause := context.Cause(running); errors.Is(cause, execution.ErrCancelled) {
			return a.finish(ctx, a.subject, a.failed(outcomes.Cancelled, cause))
		}
		return a.giveBack(ctx, errDraining, false, 0)
	}
	a.running.Add(1)
	defer a.running.Add(-1)
	request, err := a.request(ctx)
	switch {
	case errors.Is(err, payload.ErrGone):
		return a.giveUp(ctx, err.Error())
	case err != nil:
		return a.giveBack(ctx, err, false, time.Second)
	}
	job, err := a.prepare(request)
	if err != nil {
		return a.refuse(ctx, err)
	}
	job.Starting, job.Fence, job.Asked, job.Delivered = a.starting, a.term.check, a.asked, true
	if job.Job.Traceparent == "" {
		job.Job.Traceparent, job.Tracestate = a.headers[wire.Traceparent], a.headers[wire.Tracestate]
	}
	defer context.AfterFunc(a.term.ctx, routine.Safe(func() { stop(context.Cause(a.term.ctx)) }))()
	done, err := a.config.Run(running, job)
	done.Begun = a.begun.Load() // begun is set only after the start is recorded
	outcome := done.Outcome(err)
	switch {
	case err == nil && outcome == outcomes.Cancelled && errors.Is(context.Cause(running), errFenced):
		return a.finish(ctx, a.subject, a.failed(outcomes.WorkerDied, errFenced))
	case err == nil:
		return a.finish(ctx, a.subject, a.ended(outcome, done.Result))
	case errors.Is(err, runner.ErrNotBegun):
		return a.giveUp(ctx, err.Error()) // the record says that it may have started, so no worker runs it again by itself
	case done.Begun:
		return a.finish(ctx, a.subject, a.failed(outcomes.Internal, err))
	case errors.Is(context.Cause(running), execution.ErrCancelled):
		return a.finish(ctx, a.subject, a.failed(outcomes.Cancelled, execution.ErrCancelled))
	case outcome == outcomes.Refused:
		return a.refuse(ctx, err)
	case errors.Is(err, errTakenOver):
		return &later{err, a.config.Lease}
	case errors.Is(err, errRedisRestarted), running.Err() != nil:
		return a.giveBack(ctx, err, false, 0)
	}
	if a.intake.failed(ctx, a.id, err) {
		return a.giveBack(ctx, err, false, 0)
	}
	return a.giveBack(ctx, err, true, backoff.Delay(int(attempts), time.Second, longestBackoff))
}

// refuse ends an execution that cannot run as submitted. While a worker of a newer version is alive, which may accept
// it, refuse leaves it to that worker.
func (a *attempt) refuse(ctx context.Context, err error) error {
	if others, failed := a.members.newer(ctx); failed != nil || others {
		return a.giveBack(ctx, errors.Join(failed, fmt.Errorf("%w (here: %w)", errNewer, err)), false, time.Second)
	}
	a.config.Log.Warn("an execution was refused", "execution_id", a.id, "business_id", a.business, "error", err)
	return a.finish(ctx, a.subject, a.failed(outcomes.Refused, err))
}

// refuseConflict ends a task whose id belongs to another request. The record stays that of the other request, so only
// the log, the metrics and a separate callback report this outcome.
func (a *attempt) refuseConflict(ctx context.Context) error {
	a.config.Log.Error("a task was refused, because its id was submitted before with a different request", "execution_id",
		a.id, "business_id", a.business)
	if err := a.notifyConflict(ctx, a.subject, a.failed(outcomes.Refused, ErrConflict)); err != nil {
		return &later{err, time.Second}
	}
	a.config.Metrics.FleetEnded(ctx, string(outcomes.Refused))
	return a.deletePayload(ctx)
}

// request returns the body of the execution, from the task or from the payload store.
func (a *attempt) request(ctx context.Context) ([]byte, error) {
	if a.stored.SHA256 == "" {
		return a.payload, nil
	}
	return a.payloads.Get(ctx, a.stored)
}

func (a *attempt) prepare(request []byte) (execution.Request, error) {
	body, err := execution.DecodeBody(request)
	var refused runner.FieldErrors
	switch {
	case err != nil:
		return execution.Request{}, err
	case body.ExecutionID != a.id || body.BusinessID != a.business:
		refused.Add("has several different values", "execution_id")
	case body.CallbackURL != a.callback:
		refused.Add("has several different values", "callback_url")
	case body.CallbackURL != "" && a.config.Sender == nil:
		refused.Add("callbacks are not configured; start workers with --webhook-secret-file", "callback_url")
	default:
		return a.config.Prepare(body)
	}
	return execution.Request{}, &refused
}

// starting records that the step's code starts. If it returns an error, the code does not start.
func (a *attempt) starting(ctx context.Context) error {
	ours, err := a.records.start(ctx, a.ticket)
	if err != nil {
		return fmt.Errorf("record the start of the step: %w", err)
	}
	if !ours {
		return errTakenOver
	}
	// A worker that has run this before records that within the pause after a restart, so an execution claimed before
	// the restart must not start.
	changed, err := a.run.checkFor(ctx, a.keys()[0])
	if err != nil {
		return err
	}
	if changed || !a.run.mayStart() {
		return errRedisRestarted
	}
	if err := a.term.check(); err != nil {
		return err
	}
	a.begun.Store(true)
	a.intake.succeeded()
	return nil
}

// giveBack gives back an execution whose code this attempt did not start.
func (a *attempt) giveBack(ctx context.Context, cause error, counted bool, after time.Duration) error {
	a.config.Log.Warn("an execution was not started and will be retried", "execution_id", a.id, "error", cause)
	err := a.retryWhileUp(ctx, func(ctx context.Context) error {
		return a.records.release(ctx, a.ticket, cause.Error(),
			counted)
	})
	if err != nil {
		return &later{err, time.Second}
	}
	return &later{cause, after}
}

// finish records the end of an execution and queues its callback.
func (a *attempt) finish(ctx context.Context, s subject, e ending) error {
	e.notifies = s.callback != ""
	a.recall.finish(s, e)
	var stands string
	var late bool
	err := a.retryWhileUp(ctx, func(ctx context.Context) (err error) {
		stands, late, err = a.records.finish(ctx, s.ticket, s.digest, e, a.keep(e))
		return err
	})
	if err != nil {
		a.config.Log.Error("a result could not be kept", "execution_id", a.id, "error", err)
		return &later{err, a.config.Lease}
	}
	if late {
		a.config.Log.Warn("a result came too late: the fleet had already ended the execution; the result is kept beside that outcome",
			"execution_id", a.id, "outcome", stands, "late_outcome", e.outcome)
		if err := a.notifyLate(ctx, s, e); err != nil {
			a.config.Log.Error("the callback of a late result could not be queued", "execution_id", a.id, "error", err)
		}
	}
	if stands == "" {
		return &later{errTakenOver, a.config.Lease}
	}
	if !late {
		a.config.Metrics.FleetEnded(ctx, stands)
	}
	if err := a.records.awaitDurable(ctx, s.ticket, a.keep(e)); err != nil {
		a.config.Log.Warn("the end of an execution is reported although it may not be durable yet", "execution_id", a.id,
			"error", err)
	}
	if s.callback != "" {
		known, err := a.records.read(ctx, s.business, s.id)
		if err == nil {
			err = a.notify(ctx, s, known)
		}
		if err != nil {
			return &later{err, time.Second}
		}
	}
	if e.deadLetter != "" {
		return nil
	}
	return a.deletePayload(ctx)
}

// keep returns how long the record of an end is kept: for a dead letter, as long as asynq keeps its task.
func (w *Worker) keep(e ending) time.Duration {
	if e.deadLetter != "" {
		return max(w.config.Retention.Age, letterLimit)
	}
	return w.config.Retention.Age
}

// retryWhileUp repeats a call to Redis until it succeeds. When the worker is cut off, it tries only once more.
func (w *Worker) retryWhileUp(ctx context.Context, do func(context.Context) error) error {
	for {
		err := do(ctx)
		if err == nil || w.ctx.Err() != nil {
			return err
		}
		_ = backoff.Wait(w.ctx, 200*time.Millisecond)
	}
}
