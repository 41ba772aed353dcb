package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// enqueueOnce enqueues an execution that asynq would try only once.
func (f *fleetOf) enqueueOnce(id, callback string) {
	f.t.Helper()
	payload, err := json.Marshal(map[string]string{
		"runtime": "python-3-13", "user_script": "pass", "execution_id": id, "business_id": "b", "user_id": "u",
		"callback_url": callback,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	client := asynq.NewClientFromRedisClient(f.store)
	_, err = client.EnqueueContext(f.t.Context(), asynq.NewTask(wire.ExecutionTask, payload), asynq.Queue(queue),
		asynq.TaskID(id), asynq.MaxRetry(0))
	if err != nil {
		f.t.Fatal(err)
	}
}

// failing returns a step that fails a number of times before its code starts.
func failing(times int) step {
	var mu sync.Mutex
	return func(ctx context.Context, start func() error) (execution.Ended, error) {
		mu.Lock()
		times--
		failed := times >= 0
		mu.Unlock()
		if failed {
			return execution.Ended{}, errors.New("a transient error")
		}
		return fine(ctx, start)
	}
}

func (f *fleetOf) archived() int {
	info, err := asynq.NewInspectorFromRedisClient(f.store).GetQueueInfo(queue)
	if err != nil {
		f.t.Fatal(err)
	}
	return info.Archived
}

// TestRunningOutOfFilesCountsNoAttempt: this holds although the worker can start another interpreter when it tests
// itself.
func TestRunningOutOfFilesCountsNoAttempt(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	var attempts atomic.Int64
	f.worker(f.server.Addr, 1, func(ctx context.Context, start func() error) (execution.Ended, error) {
		if attempts.Add(1) < 3 {
			return execution.Ended{}, fmt.Errorf("the python harness did not start: %w", syscall.EMFILE)
		}
		return fine(ctx, start)
	})
	f.enqueue("e", "")
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Errorf("ended %s: %s", known.outcome, known.result)
	}
	f.requireRan("e", 1)
}

// TestAsynqDoesNotDecideRetries: after a transient error the fleet retries a task that asynq would try only once, and
// logs it.
func TestAsynqDoesNotDecideRetries(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 5, failing(2))
	f.enqueueOnce("e", receiver.URL)
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Errorf("ended %s", known.outcome)
	}
	f.await("the callback", func() bool { return len(receiver.outcomes()) == 1 })
	f.await("the queue to be empty", f.idle)
	f.requireRan("e", 1)
	if n := f.archived(); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// TestAnExecutionGivenUpAfterAsynqsRetriesHasAnOutcome: the execution also has one callback and one dead letter.
func TestAnExecutionGivenUpAfterAsynqsRetriesHasAnOutcome(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 2, failing(100))
	f.enqueueOnce("e", receiver.URL)
	if known := f.ends("e"); known.outcome != outcomes.NotStarted ||
		!strings.Contains(string(known.result), "given up after 2 attempts: a transient error") {
		t.Errorf("ended %s: %s", known.outcome, known.result)
	}
	f.await("the callback", func() bool { return len(receiver.outcomes()) == 1 })
	f.await("the dead letter", func() bool { return f.idle() && f.archived() == 1 })
	f.requireRan("e", 0)
}

// loseTask makes a task look as if asynq had lost it: active, but no worker has it.
func (f *fleetOf) loseTask(id string, leased bool) {
	f.t.Helper()
	ctx, prefix := f.t.Context(), "asynq:{"+queue+"}:"
	pipe := f.store.TxPipeline()
	pipe.LRem(ctx, prefix+"pending", 0, id)
	pipe.LPush(ctx, prefix+"active", id)
	pipe.HSet(ctx, prefix+"t:"+id, "state", "active")
	if leased {
		pipe.ZAdd(ctx, prefix+"lease", redis.Z{Score: float64(time.Now().Add(time.Hour).Unix()), Member: id})
	}
	if _, err := pipe.Exec(ctx); err != nil {
		f.t.Fatal(err)
	}
}

// TestATaskThatNoWorkerHasIsDelivered: asynq lists the task as active, but no worker has it. Without the keeper, its
// id would be blocked: forever if the task has no lease, for minutes if it has one.
func TestATaskThatNoWorkerHasIsDelivered(t *testing.T) {
	for name, leased := range map[string]bool{"without a lease": false, "with a lease": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			f.enqueue("e", "")
			f.loseTask("e", leased)
			f.worker(f.server.Addr, 5, fine)
			if known := f.ends("e"); known.outcome != outcomes.OK {
				t.Errorf("ended %s", known.outcome)
			}
			f.await("the queue to be empty", f.idle)
			f.requireRan("e", 1)
			f.enqueue("e", "") // the id is free again
		})
	}
}

// TestAnExecutionThatKillsItsWorkersIsGivenUp: two workers die while they prepare it.
func TestAnExecutionThatKillsItsWorkersIsGivenUp(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f, g := newFleet(t), newGate()
	f.sender = receiver.sender
	f.enqueue("e", receiver.URL)
	var ways []*line
	for range 2 {
		way := newLine(t, f.server.Addr)
		ways = append(ways, way)
		returned := make(chan error, 8)
		f.worker(way.Addr().String(), 5, g.before(returned))
		<-g.reached
		way.part()
	}
	f.worker(f.server.Addr, 5, fine)
	if known := f.ends("e"); known.outcome != outcomes.NotStarted ||
		!strings.Contains(string(known.result), "2 workers died while they prepared it") {
		t.Errorf("ended %s: %s", known.outcome, known.result)
	}
	f.await("the callback", func() bool { return len(receiver.outcomes()) == 1 })
	f.await("the dead letter", func() bool { return f.archived() == 1 })
	for _, way := range ways {
		way.mend()
	}
	close(g.opened)
	f.requireRan("e", 0)
}

// TestARequeuedDeadLetterRunsAgain: asynq's own tool requeues it, and its second end has a callback too.
func TestARequeuedDeadLetterRunsAgain(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 1, failing(1))
	f.enqueue("e", receiver.URL)
	if known := f.ends("e"); known.outcome != outcomes.NotStarted {
		t.Fatalf("ended %s", known.outcome)
	}
	f.await("the dead letter", func() bool { return f.archived() == 1 })
	f.await("the first callback", func() bool { return len(receiver.outcomes()) == 1 })
	if err := asynq.NewInspectorFromRedisClient(f.store).RunTask(queue, "e"); err != nil {
		t.Fatal(err)
	}
	f.await("the second callback", func() bool { return len(receiver.outcomes()) == 2 })
	if known := f.ends("e"); known.outcome != outcomes.OK || known.run != 1 {
		t.Errorf("ended %s in run %d", known.outcome, known.run)
	}
	f.await("the queue to be empty", f.idle)
	f.requireRan("e", 1)
	if n := f.archived(); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// TestAWorkerThatLosesRedisEndsItsStepsBeforeOthersTakeOver: it ends them within one lease. When Redis is back, it
// takes work again under another id.
func TestAWorkerThatLosesRedisEndsItsStepsBeforeOthersTakeOver(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	way := newLine(t, f.server.Addr)
	reached, ended := make(chan struct{}, 1), make(chan time.Time, 1)
	worker := f.worker(way.Addr().String(), 5, func(ctx context.Context, start func() error) (execution.Ended, error) {
		done, err := fine(ctx, start)
		if f.ranOnly("e") {
			reached <- struct{}{}
			<-ctx.Done()
			ended <- time.Now()
			done.Result.Outcome = outcomes.Cancelled
		}
		return done, err
	})
	f.enqueue("e", "")
	<-reached
	first := worker.members.term.Load()
	way.part()
	at := <-ended
	if lasted := at.Sub(*first.renewed.Load()); lasted >= 2*worker.config.Lease {
		t.Errorf("the step ran on for %s, and another worker may take over after %s", lasted, 2*worker.config.Lease)
	}
	way.mend()
	if known := f.ends("e"); known.outcome != outcomes.WorkerDied || known.late.outcome != "" {
		t.Errorf("ended %s, late %q", known.outcome, known.late.outcome)
	}
	f.enqueue("e2", "")
	if known := f.ends("e2"); known.outcome != outcomes.OK || known.worker() == first.id {
		t.Errorf("the next execution ended %s on worker %s", known.outcome, known.worker())
	}
	f.await("the queue to be empty", f.idle)
}

// ranOnly reports whether only this execution's code has started.
func (f *fleetOf) ranOnly(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.ran) == 1 && f.ran[id] == 1
}

func TestTheKeyOfADeadWorkerIsRevokedBeforeItsExecutionIsEnded(t *testing.T) {
	t.Parallel()
	f, g := newFleet(t), newGate()
	way := newLine(t, f.server.Addr)
	f.worker(way.Addr().String(), 5, g.after)
	f.enqueue("e", "")
	<-g.reached
	var mu sync.Mutex
	var states []State
	f.revoke = func(ctx context.Context, business, id string) error {
		known, err := f.records.read(ctx, business, id)
		mu.Lock()
		defer mu.Unlock()
		states = append(states, known.state)
		if len(states) == 1 {
			return errors.New("not now")
		}
		return err
	}
	way.part()
	f.worker(f.server.Addr, 5, fine)
	f.ends("e")
	way.mend()
	mu.Lock()
	defer mu.Unlock()
	if len(states) != 2 || states[0] != Started || states[1] != Started {
		t.Errorf("revoked in the states %v, want a second attempt in %s", states, Started)
	}
}

// TestNothingRunsTwiceAfterRedisLosesItsLastWrites: the workers write the state of running and finished executions
// again.
func TestNothingRunsTwiceAfterRedisLosesItsLastWrites(t *testing.T) {
	const finished, running = 12, 2
	receiver := newReceiver(t, 0)
	dir := t.TempDir()
	server := redistest.Start(t, "--dir", dir)
	t.Parallel()
	f := newFleetOn(t, server)
	f.sender = receiver.sender
	g := newGate()
	do := func(ctx context.Context, start func() error) (execution.Ended, error) {
		done, err := fine(ctx, start)
		if err == nil && f.started() > finished {
			g.pass(ctx)
		}
		return done, err
	}
	for range 2 {
		f.worker(server.Addr, 5, do)
	}
	inspector := asynq.NewInspectorFromRedisClient(f.store)
	if err := f.store.SAdd(t.Context(), "asynq:queues", queue).Err(); err != nil {
		t.Fatal(err)
	}
	if err := inspector.PauseQueue(queue); err != nil {
		t.Fatal(err)
	}
	for i := range finished + running {
		f.enqueue(fmt.Sprint("e", i), receiver.URL)
	}
	server.Do(t, "SAVE") // Redis will lose all later writes, but the workers know them
	if err := inspector.UnpauseQueue(queue); err != nil {
		t.Fatal(err)
	}
	for range running {
		<-g.reached
	}
	f.await("the callbacks", func() bool { return len(receiver.outcomes()) == finished })
	server.Stop()
	redistest.StartAt(t, server.Port, "--dir", dir)
	if err := inspector.UnpauseQueue(queue); err != nil {
		t.Fatal(err)
	}
	f.await("the workers to write down what they know", func() bool {
		return strings.Count(f.log.String(), "the state that Redis may have lost was written again") == 2
	})
	close(g.opened)
	for i := range finished + running {
		id := fmt.Sprint("e", i)
		if known := f.ends(id); known.outcome != outcomes.OK {
			t.Errorf("%s ended %s: %s", id, known.outcome, known.result)
		}
	}
	f.await("the queue to be empty", f.idle)
	f.await("all callbacks", func() bool { return receiver.count() == finished+running })
	for i := range finished + running {
		f.requireRan(fmt.Sprint("e", i), 1)
	}
}

// started returns how many executions have started.
func (f *fleetOf) started() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.ran)
}

// TestAnExecutionThatItsWorkerForgotIsEnded: Redis kept the start but lost the end, and the live worker no longer
// knows the execution.
func TestAnExecutionThatItsWorkerForgotIsEnded(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.lease = time.Minute
	worker := f.worker(f.server.Addr, 5, fine)
	record := wire.RecordKey("b", "e")
	err := f.store.HSet(t.Context(), record, "state", "started", "owner", worker.members.term.Load().id+"/lost").Err()
	if err != nil {
		t.Fatal(err)
	}
	f.enqueue("e", "")
	if known := f.ends("e"); known.outcome != outcomes.WorkerDied ||
		!strings.Contains(string(known.result), "Redis lost how it ended") {
		t.Errorf("ended %s: %s", known.outcome, known.result)
	}
	f.await("the queue to be empty", f.idle)
	f.requireRan("e", 0)
}

// TestTasksThatAsynqCouldNotCompleteAreRequeued: the handler has returned, but the worker lost asynq's lease before
// asynq could record that.
func TestTasksThatAsynqCouldNotCompleteAreRequeued(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	worker := f.worker(f.server.Addr, 5, fine)
	f.enqueue("e", "")
	f.ends("e")
	f.await("the queue to be empty", f.idle)
	f.enqueue("e", "") // asynq has it again, as if it had not been completed
	f.loseTask("e", true)
	past := redis.Z{Score: float64(time.Now().Add(-time.Second).Unix()), Member: "e"}
	if err := f.store.ZAdd(t.Context(), "asynq:{"+queue+"}:lease", past).Err(); err != nil {
		t.Fatal(err)
	}
	index := worker.held[0]
	id := worker.members.term.Load().id
	if err := index.add(t.Context(), id, "e"); err != nil {
		t.Fatal(err)
	}
	index.returned(id, "e")
	f.await("the queue to be empty", f.idle)
	f.requireRan("e", 1)
}

func TestTheRecordHasTheStateOfTheCallback(t *testing.T) {
	receiver := newReceiver(t, 0)
	receiver.status = http.StatusGone
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 5, fine)
	f.enqueue("e", receiver.URL)
	var known entry
	f.await("the end of the callback", func() bool {
		var err error
		known, err = f.records.read(t.Context(), "b", "e")
		return err == nil && known.callback.state == CallbackFailed
	})
	if !strings.Contains(known.callback.failure, "accepts no more messages (status 410)") {
		t.Errorf("the record says %q", known.callback.failure)
	}
}

// commands returns how many commands Redis has run, including those of scripts.
func (f *fleetOf) commands() (total int) {
	f.t.Helper()
	for line := range strings.Lines(f.server.Do(f.t, "INFO", "commandstats")) {
		_, after, found := strings.Cut(line, ":calls=")
		if !found || strings.HasPrefix(line, "cmdstat_info") || strings.HasPrefix(line, "cmdstat_config") {
			continue
		}
		number, _, _ := strings.Cut(after, ",")
		n, err := strconv.Atoi(number)
		if err != nil {
			f.t.Fatal(err)
		}
		total += n
	}
	return total
}

// fill adds n tasks of a worker to the index.
func (f *fleetOf) fill(index *held, worker string, n int) {
	f.t.Helper()
	pipe, prefix := f.store.Pipeline(), "asynq:{"+index.queue+"}:"
	for i := range n {
		id := fmt.Sprint(worker, "-", i)
		pipe.HSet(f.t.Context(), prefix+"t:"+id, "state", "active")
		pipe.LPush(f.t.Context(), prefix+"active", id)
		pipe.ZAdd(f.t.Context(), prefix+"lease", redis.Z{Score: float64(time.Now().Add(time.Hour).Unix()), Member: id})
		pipe.SAdd(f.t.Context(), index.key(worker), id)
	}
	if _, err := pipe.Exec(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

// TestTakeoverCostDependsOnlyOnTheDeadWorkersTasks: the tasks of live workers do not add to it. The requeued tasks
// come first.
func TestTakeoverCostDependsOnlyOnTheDeadWorkersTasks(t *testing.T) {
	t.Parallel()
	const heldByDead = 250
	counts := map[int]int{}
	for _, active := range []int{1_000, 10_000} {
		f := newFleet(t)
		keeper := NewWorker(Config{Redis: f.store, Queue: queue, Slots: 1, Lease: time.Minute, Attempts: 5,
			Retention: Retention{Age: time.Hour}})
		index := keeper.held[0]
		f.fill(index, "living", active)
		f.fill(index, "dead", heldByDead)
		waiting := "asynq:{" + queue + "}:pending"
		if err := f.store.LPush(t.Context(), waiting, "waits").Err(); err != nil {
			t.Fatal(err)
		}
		if err := keeper.takeOver(t.Context(), "dead"); err != nil { // loads the scripts
			t.Fatal(err)
		}
		f.fill(index, "next", heldByDead)
		before := f.commands()
		if err := keeper.takeOver(t.Context(), "next"); err != nil {
			t.Fatal(err)
		}
		counts[active] = f.commands() - before
		left := f.store.LLen(t.Context(), "asynq:{"+queue+"}:active").Val()
		if n := f.store.LLen(t.Context(), waiting).Val(); n != 2*heldByDead+1 || left != int64(active) {
			t.Errorf("%d tasks wait and %d are active", n, left)
		}
		if last := f.store.LIndex(t.Context(), waiting, 0).Val(); last != "waits" {
			t.Errorf("%q is last, after the tasks that waited before", last)
		}
	}
	t.Logf("commands for %d tasks of a dead worker, by active tasks: %v", heldByDead, counts)
	if counts[1_000] != counts[10_000] || counts[1_000] > 8*heldByDead+20 {
		t.Errorf("commands by active tasks: %v, want the same, and at most %d", counts, 8*heldByDead+20)
	}
}

// TestABrokenWorkerTakesNothing: it takes no executions until it works again, and no attempt is counted.
func TestABrokenWorkerTakesNothing(t *testing.T) {
	const total = 20
	t.Parallel()
	f := newFleet(t)
	var mu sync.Mutex
	broken, tries := errors.New("no python"), 0
	f.try = func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		tries++
		return broken
	}
	lame := f.worker(f.server.Addr, 1, func(context.Context, func() error) (execution.Ended, error) {
		t.Error("a broken worker received an execution")
		return execution.Ended{}, broken
	})
	f.await("the worker to try itself more than once", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return tries > 1
	})
	if err := lame.Taking(); !errors.Is(err, broken) {
		t.Errorf("taking: %v", err)
	}
	f.try = nil
	f.worker(f.server.Addr, 1, fine)
	for i := range total {
		f.enqueue(fmt.Sprint("e", i), "")
	}
	for i := range total {
		if known := f.ends(fmt.Sprint("e", i)); known.outcome != outcomes.OK {
			t.Errorf("ended %s", known.outcome)
		}
	}
}

// TestAWorkerThatBreaksGivesBackItsExecutions: no attempt is counted, and the worker takes executions again when it
// works.
func TestAWorkerThatBreaksGivesBackItsExecutions(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	var mu sync.Mutex
	var broken error
	failures := 0
	f.try = func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if failures == 3 {
			broken = nil
		}
		if broken != nil {
			failures++
		}
		return broken
	}
	f.worker(f.server.Addr, 1, func(ctx context.Context, start func() error) (execution.Ended, error) {
		mu.Lock()
		if failures == 0 {
			broken = errors.New("too many open files")
		}
		err := broken
		mu.Unlock()
		if err != nil {
			return execution.Ended{}, err
		}
		return fine(ctx, start)
	})
	f.enqueue("e", "")
	if known := f.ends("e"); known.outcome != outcomes.OK || known.attempts != 1 {
		t.Errorf("ended %s after %d attempts", known.outcome, known.attempts)
	}
	f.requireRan("e", 1)
}
