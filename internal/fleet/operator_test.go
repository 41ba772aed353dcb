package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/tombstone"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// TestARetriedDeadLetterRunsAgain: it has its own callback, and its runs are counted.
func TestARetriedDeadLetterRunsAgain(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	var works atomic.Bool
	f.worker(f.server.Addr, 1, func(ctx context.Context, start func() error) (execution.Ended, error) {
		if !works.Load() {
			return execution.Ended{}, errors.New("no python anywhere")
		}
		return fine(ctx, start)
	})
	operator := NewOperator(f.store, queue, 1)
	const total = 3
	for i := range total {
		f.enqueue(fmt.Sprint("e", i), receiver.URL)
	}
	f.await("the dead letters", func() bool {
		found, err := operator.List(t.Context(), false, TaskDead, 10)
		return err == nil && found.Dead == total && len(found.Tasks) == total
	})
	shown, err := operator.Show(t.Context(), "e0")
	if err != nil || shown.State != TaskDead || shown.Outcome != outcomes.NotStarted ||
		!strings.Contains(shown.Reason, "no python anywhere") {
		t.Errorf("shown %+v, %v", shown, err)
	}
	works.Store(true)
	if err := operator.Retry(t.Context(), "e0"); err != nil {
		t.Fatal(err)
	}
	f.await("the retried one", func() bool {
		shown, err := operator.Show(t.Context(), "b/e0")
		return err == nil && shown.Outcome == outcomes.OK && shown.Run == 1
	})
	if n, err := operator.RetryDead(t.Context(), false); err != nil || n != total-1 {
		t.Errorf("%d were retried, %v", n, err)
	}
	f.await("the callbacks", func() bool { return receiver.count() == 2*total })
	f.await("the queue to be empty", f.idle)
	for i := range total {
		f.requireRan(fmt.Sprint("e", i), 1)
	}
	found, err := operator.List(t.Context(), false, "", 10)
	if err != nil || found.Dead+found.Trimmed+len(found.Tasks) != 0 {
		t.Errorf("left: %+v, %v", found, err)
	}
	for what, err := range map[string]error{
		"a finished one": operator.Retry(t.Context(), "b/e0"), "an unknown one": operator.Retry(t.Context(), "b/none"),
		"an empty queue":    second(operator.RetryDead(t.Context(), false)),
		"an unknown record": second(operator.Show(t.Context(), "b/none")),
	} {
		if !errors.Is(err, ErrNothing) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestACallbackThatWasGivenUpIsListedAndDeliveredAgain: it is also listed after asynq has deleted it, and asynq's own
// tool can redeliver it.
func TestACallbackThatWasGivenUpIsListedAndDeliveredAgain(t *testing.T) {
	receiver := newReceiver(t, 0)
	receiver.status = http.StatusGone
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 5, fine)
	const total = 4
	for i := range total {
		f.enqueue(fmt.Sprint("e", i), receiver.URL)
	}
	operator := NewOperator(f.store, queue, 1)
	list := func() Overview {
		found, err := operator.List(t.Context(), true, "", 10)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	f.await("the dead letters", func() bool { return list().Dead == total })
	dead := list().Tasks
	receiver.mu.Lock()
	receiver.status = 0
	receiver.mu.Unlock()
	if err := operator.RetryCallback(t.Context(), dead[0].ID); err != nil {
		t.Fatal(err)
	}
	inspector := asynq.NewInspectorFromRedisClient(f.store)
	if err := inspector.RunTask(callbackQueue(queue), dead[1].ID); err != nil {
		t.Fatal(err)
	}
	f.await("two of them", func() bool { return len(receiver.outcomes()) == 2 && list().Dead == total-2 })
	// asynq deletes what it archived beyond 9,999.
	if err := inspector.DeleteTask(callbackQueue(queue), dead[2].ID); err != nil {
		t.Fatal(err)
	}
	if found := list(); found.Trimmed != 1 || found.Dead != 1 || !slices.ContainsFunc(found.Tasks, func(task Task) bool {
		return task.ID == dead[2].ID && task.State == TaskTrimmed
	}) {
		t.Errorf("found %+v", found)
	}
	if n, err := operator.RetryDead(t.Context(), true); err != nil || n != 1 {
		t.Errorf("%d were retried, %v", n, err)
	}
	f.await("the last of them", func() bool { return len(receiver.outcomes()) == 3 && list().Dead == 0 })
	if found := list(); found.Trimmed != 1 {
		t.Errorf("found %+v", found)
	}
	for what, err := range map[string]error{
		"a delivered one": operator.RetryCallback(t.Context(), dead[0].ID),
		"an unknown one":  operator.RetryCallback(t.Context(), "none"),
		"a deleted one":   operator.RetryCallback(t.Context(), dead[2].ID),
		"none left":       second(operator.RetryDead(t.Context(), true)),
	} {
		if !errors.Is(err, ErrNothing) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestServeRefusesAnIDThatAFleetHasStarted: serve on the same Redis refuses the id from the start of the step's code
// on, not only after its end.
func TestServeRefusesAnIDThatAFleetHasStarted(t *testing.T) {
	t.Parallel()
	f, g := newFleet(t), newGate()
	f.worker(f.server.Addr, 5, g.after)
	f.enqueue("e", "")
	<-g.reached
	begun, err := tombstone.Store{Redis: f.store}.Begin(t.Context(), "b", "e", "another")
	if err != nil || begun {
		t.Errorf("a service began it as well: %v, %v", begun, err)
	}
	close(g.opened)
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Errorf("ended %s", known.outcome)
	}
}

// TestADeadLetterThatAsynqDeletedIsStillListed: the test fills asynq's archive, so that asynq deletes the oldest dead
// letter when the next one arrives.
func TestADeadLetterThatAsynqDeletedIsStillListed(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.worker(f.server.Addr, 1, func(context.Context, func() error) (execution.Ended, error) {
		return execution.Ended{}, errors.New("no python anywhere")
	})
	operator := NewOperator(f.store, queue, 1)
	dead := func(total int) func() bool {
		return func() bool {
			found, err := operator.List(t.Context(), false, TaskDead, 1)
			return err == nil && found.Dead == total
		}
	}
	f.enqueue("first", "")
	f.await("the first", dead(1))
	later := time.Now().Add(time.Hour).Unix()
	message := f.store.HGet(t.Context(), "asynq:{"+queue+"}:t:first", "msg").Val()
	fill := f.store.Pipeline()
	for i := range archiveLimit - 1 {
		id := fmt.Sprint("filler-", i)
		fill.HSet(t.Context(), "asynq:{"+queue+"}:t:"+id, "msg", message, "state", "archived")
		fill.ZAdd(t.Context(), "asynq:{"+queue+"}:archived", redis.Z{Score: float64(later), Member: id})
	}
	if _, err := fill.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.await("the warning", func() bool {
		return strings.Contains(f.log.String(),
			"asynq's archive of dead letters is full")
	})
	f.enqueueFor("b-2", "second", "")
	f.await("the first to be deleted", func() bool {
		return f.store.Exists(t.Context(), "asynq:{"+queue+"}:t:first").Val() == 0
	})
	found, err := operator.List(t.Context(), false, TaskTrimmed, 10)
	if err != nil || found.Trimmed != 1 || len(found.Tasks) != 1 || found.Tasks[0].ID != "first" ||
		found.Dead != archiveLimit {
		t.Errorf("found %+v, %v", found, err)
	}
	shown, err := operator.Show(t.Context(), "b/first")
	if err != nil || shown.State != TaskTrimmed || shown.Outcome != outcomes.NotStarted ||
		!strings.Contains(shown.Reason, "no python anywhere") {
		t.Errorf("shown %+v, %v", shown, err)
	}
	if err := operator.Retry(t.Context(), "b/first"); !errors.Is(err, ErrNothing) ||
		!strings.Contains(err.Error(), "has since deleted its request") {
		t.Errorf("retried: %v", err)
	}
	if ttl := f.store.TTL(t.Context(), "kizen:{b}:run:first").Val(); ttl < letterLimit-time.Hour {
		t.Errorf("its record is kept for %s", ttl)
	}
}

// TestCancelledExecutionsEnd: one in the queue, one that waits in a worker, and one that runs. Each has one callback.
func TestCancelledExecutionsEnd(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	operator := NewOperator(f.store, queue, 1)
	f.enqueue("waits", receiver.URL)
	if running, err := operator.Cancel(t.Context(), "waits"); err != nil || running {
		t.Fatalf("cancelled: %v, %v", running, err)
	}
	if _, err := operator.Cancel(t.Context(), "waits"); !errors.Is(err, ErrNothing) {
		t.Errorf("cancelled again: %v", err)
	}
	f.worker(f.server.Addr, 5, func(ctx context.Context, start func() error) (execution.Ended, error) {
		if err := start(); err != nil {
			return execution.Ended{}, err
		}
		<-ctx.Done()
		ended := execution.Ended{}
		ended.Result.Outcome = outcomes.Cancelled
		return ended, nil
	})
	f.enqueue("runs", receiver.URL)
	f.await("the start", func() bool { return f.started() == 1 })
	if running, err := operator.Cancel(t.Context(), "runs"); err != nil || !running {
		t.Fatalf("cancelled: %v, %v", running, err)
	}
	for _, id := range []string{"waits", "runs"} {
		if known := f.ends(id); known.outcome != outcomes.Cancelled {
			t.Errorf("%s ended %s: %s", id, known.outcome, known.result)
		}
	}
	f.await("the callbacks", func() bool { return receiver.count() == 2 })
	f.await("the queue to be empty", f.idle)
	f.requireRan("waits", 0)
	// The retention also applies to executions that an operator ended.
	if kept := f.store.ZCard(t.Context(), "kizen:{b}:results").Val(); kept != 2 {
		t.Errorf("%d results are in the index", kept)
	}
	for _, id := range []string{"waits", "runs"} {
		if ttl := f.store.TTL(t.Context(), wire.RecordKey("b", id)).Val(); ttl > time.Hour || ttl <= 0 {
			t.Errorf("the record of %s is kept for %s", id, ttl)
		}
	}
	if _, err := operator.Cancel(t.Context(), "b/runs"); !errors.Is(err, ErrNothing) {
		t.Errorf("cancelled after its end: %v", err)
	}
}

// TestADiscardedDeadLetterLeavesOnlyItsTombstone: this also holds for one that asynq has deleted, one without a
// record, and callbacks.
func TestADiscardedDeadLetterLeavesOnlyItsTombstone(t *testing.T) {
	receiver := newReceiver(t, 0)
	receiver.status = http.StatusGone
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 1, func(context.Context, func() error) (execution.Ended, error) {
		return execution.Ended{}, errors.New("no python anywhere")
	})
	operator := NewOperator(f.store, queue, 1)
	for _, id := range []string{"one", "two", "trimmed"} {
		f.enqueueScript(id, 100<<10)
	}
	f.enqueueBody("unreadable", map[string]string{"execution_id": "no id"})
	f.enqueue("told", receiver.URL)
	f.await("the dead letters", func() bool { return f.archived() == 5 })
	list := func(callbacks bool) Overview {
		found, err := operator.List(t.Context(), callbacks, "", 10)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	f.await("the callback to be given up", func() bool { return list(true).Dead == 1 })
	inspector := asynq.NewInspectorFromRedisClient(f.store)
	if err := inspector.DeleteTask(queue, "b/trimmed"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"b/one", "b/trimmed"} {
		if err := operator.Discard(t.Context(), id); err != nil {
			t.Error(err)
		}
		if err := operator.Discard(t.Context(), id); !errors.Is(err, ErrNothing) {
			t.Errorf("%s was discarded again: %v", id, err)
		}
	}
	if found := list(false); found.Dead != 3 || found.Trimmed != 0 {
		t.Errorf("found %+v", found)
	}
	if n, err := operator.DiscardDead(t.Context(), false); err != nil || n != 3 {
		t.Errorf("%d were discarded, %v", n, err)
	}
	if n, err := operator.DiscardDead(t.Context(), true); err != nil || n != 1 {
		t.Errorf("%d callbacks were discarded, %v", n, err)
	}
	for _, pattern := range []string{"kizen:{b}:run:*", "asynq:*:t:*", "kizen:*:letters"} {
		if left := f.store.Keys(t.Context(), pattern).Val(); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	}
	if left := f.stored(); len(left) != 1 { // asynq deleted the only reference to it, and it expires
		t.Errorf("stored requests: %v", left)
	}
	// The ids stay used.
	f.enqueueScript("one", 100<<10)
	f.await("the queue to be empty", f.idle)
	f.requireRan("one", 0)
	for what, err := range map[string]error{
		"an unknown one": operator.Discard(t.Context(), "b/none"), "none": second(operator.DiscardDead(t.Context(), false)),
		"an unknown callback": operator.DiscardCallback(t.Context(), "none"),
		"no callback":         second(operator.DiscardDead(t.Context(), true)),
	} {
		if !errors.Is(err, ErrNothing) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestOnlyWhatHasEndedIsDiscarded: neither waiting tasks are discarded, nor tasks that asynq archived by itself.
func TestOnlyWhatHasEndedIsDiscarded(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	operator := NewOperator(f.store, queue, 1)
	f.enqueue("archived", "")
	server := asynq.NewServerFromRedisClient(f.store, asynq.Config{
		Queues: map[string]int{queue: 1}, LogLevel: asynq.FatalLevel,
		TaskCheckInterval: 10 * time.Millisecond,
	})
	err := server.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error {
		return fmt.Errorf("lost: %w", asynq.SkipRetry)
	}))
	if err != nil {
		t.Fatal(err)
	}
	f.await("asynq to archive it", func() bool { return f.archived() == 1 })
	server.Shutdown()
	f.enqueue("waits", "")
	for _, id := range []string{"waits", "archived"} {
		if err := operator.Discard(t.Context(), id); !errors.Is(err, ErrNothing) {
			t.Errorf("%s was discarded: %v", id, err)
		}
	}
	if _, err := operator.DiscardDead(t.Context(), false); !errors.Is(err, ErrNothing) {
		t.Errorf("all were discarded: %v", err)
	}
	if n := f.archived(); n != 1 {
		t.Errorf("%d are archived", n)
	}
}

// TestADrainOfAQueueWithoutTasksIsShown: this holds even before the queue's first task.
func TestADrainOfAQueueWithoutTasksIsShown(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	operator := NewOperator(f.store, queue, 1)
	for _, paused := range []bool{true, false} {
		err := operator.Resume()
		if paused {
			err = operator.Drain(t.Context(), func(int) {})
		}
		if err != nil {
			t.Fatal(err)
		}
		if found, err := operator.List(t.Context(), false, "", 10); err != nil || found.Paused != paused {
			t.Errorf("listed as %+v, %v", found, err)
		}
	}
}

func TestWorkersTakeNothingFromADrainedQueue(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	g := newGate()
	f.worker(f.server.Addr, 5, g.after)
	operator := NewOperator(f.store, queue, 1)
	f.enqueue("runs", "")
	<-g.reached
	var counts []int
	short, cancel := context.WithTimeoutCause(t.Context(), 3*drainPoll, errors.New("enough"))
	defer cancel()
	if err := operator.Drain(short, func(active int) { counts = append(counts, active) }); err == nil ||
		!strings.Contains(err.Error(), "1 executions") {
		t.Errorf("drained: %v", err)
	}
	close(g.opened)
	if err := operator.Drain(t.Context(), func(active int) { counts = append(counts, active) }); err != nil {
		t.Error(err)
	}
	if counts[0] != 1 || counts[len(counts)-1] != 0 || !slices.IsSortedFunc(counts, func(a, b int) int { return b - a }) {
		t.Errorf("reported %v", counts)
	}
	f.enqueue("waits", "")
	found, err := operator.List(t.Context(), false, TaskWaiting, 10)
	if err != nil || !found.Paused || found.Waiting != 1 || found.Tasks[0].ID != "waits" {
		t.Errorf("found %+v, %v", found, err)
	}
	if err := operator.Resume(); err != nil {
		t.Error(err)
	}
	f.ends("waits")
	if err := operator.Resume(); !errors.Is(err, ErrNothing) {
		t.Errorf("resumed again: %v", err)
	}
}
