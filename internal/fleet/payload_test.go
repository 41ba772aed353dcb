package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hibiken/asynq"

	"github.com/kizen/kizen-sidecar/client"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/payload"
	"github.com/kizen/kizen-sidecar/internal/wire"
)

// enqueueScript enqueues an execution as an orchestrator does, and returns its task.
func (f *fleetOf) enqueueScript(id string, size int) *asynq.TaskInfo {
	f.t.Helper()
	request := client.Request{
		Runtime: "python-3-13", UserScript: strings.Repeat("#", size), ExecutionID: id, BusinessID: "b", UserID: "u",
		Traceparent: "00-" + traceID + "-b7ad6b7169203331-01",
	}
	if _, err := (&client.Queue{Redis: f.store, Name: queue}).Enqueue(f.t.Context(), request); err != nil {
		f.t.Fatal(err)
	}
	task, err := asynq.NewInspectorFromRedisClient(f.store).GetTaskInfo(queue, wire.TaskID("b", id))
	if err != nil {
		f.t.Fatal(err)
	}
	return task
}

// stored returns the keys of requests that are stored outside their tasks.
func (f *fleetOf) stored() []string {
	keys, err := f.store.Keys(f.t.Context(), "kizen:{b}:payload:*").Result()
	if err != nil {
		f.t.Fatal(err)
	}
	return keys
}

func TestALargeRequestIsStoredOutsideOfItsTaskAndDeletedAtTheEnd(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	for id, size := range map[string]int{"small": 100, "large": 100 << 10} {
		task := f.enqueueScript(id, size)
		if len(task.Payload) > 500 {
			t.Errorf("the task of the %s request has %d bytes", id, len(task.Payload))
		}
	}
	if keys := f.stored(); len(keys) != 1 {
		t.Errorf("stored: %v", keys)
	}
	f.worker(f.server.Addr, 5, fine)
	for id, size := range map[string]int{"small": 100, "large": 100 << 10} {
		if known := f.ends(id); known.outcome != outcomes.OK {
			t.Errorf("%s ended %s: %s", id, known.outcome, known.result)
		}
		f.mu.Lock()
		if f.scripts[id] != size {
			t.Errorf("%s was prepared with a script of %d bytes", id, f.scripts[id])
		}
		f.mu.Unlock()
		f.requireRan(id, 1)
	}
	f.await("the queue to be empty", f.idle)
	if keys := f.stored(); len(keys) != 0 {
		t.Errorf("left: %v", keys)
	}
	// A request whose execution has ended is enqueued once more: it does not run, and leaves nothing either.
	f.enqueueScript("large", 100<<10)
	f.await("the queue to be empty", f.idle)
	f.requireRan("large", 1)
	if keys := f.stored(); len(keys) != 0 {
		t.Errorf("left by the second: %v", keys)
	}
}

// TestASecondRequestUnderAQueuedIDLeavesNothing: neither an equal request nor a different one leaves a stored payload,
// and the first request still runs.
func TestASecondRequestUnderAQueuedIDLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.enqueueScript("e", 100<<10)
	first := f.stored()
	for size, want := range map[int]error{100 << 10: client.ErrEnqueued, 200 << 10: client.ErrConflict} {
		request := client.Request{
			Runtime: "python-3-13", UserScript: strings.Repeat("#", size), ExecutionID: "e", BusinessID: "b", UserID: "u",
			Traceparent: "00-" + traceID + "-b7ad6b7169203331-01",
		}
		if _, err := (&client.Queue{Redis: f.store, Name: queue}).Enqueue(t.Context(), request); !errors.Is(err, want) {
			t.Errorf("a second request of %d bytes: %v", size, err)
		}
		if keys := f.stored(); !slices.Equal(keys, first) {
			t.Errorf("stored after a second request of %d bytes: %v", size, keys)
		}
	}
	f.worker(f.server.Addr, 5, fine)
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Errorf("ended %s: %s", known.outcome, known.result)
	}
	f.await("the queue to be empty", f.idle)
	if keys := f.stored(); len(keys) != 0 {
		t.Errorf("left: %v", keys)
	}
}

// TestAnotherRequestUnderAUsedIDIsRefused: the client refuses it at once; a worker does so if it was enqueued without
// the client. The first request and its result stay.
func TestAnotherRequestUnderAUsedIDIsRefused(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 5, fine)
	f.enqueueScript("e", 100)
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Fatalf("ended %s", known.outcome)
	}
	f.await("the queue to be empty", f.idle)
	orchestrator := client.Queue{Redis: f.store, Name: queue}
	another := func() error {
		for _, size := range []int{200, 100 << 10} {
			request := client.Request{
				Runtime: "python-3-13", UserScript: strings.Repeat("#", size), ExecutionID: "e", BusinessID: "b", UserID: "u",
			}
			if _, err := orchestrator.Enqueue(t.Context(), request); !errors.Is(err, client.ErrConflict) {
				return fmt.Errorf("a request of %d bytes: %w", size, err)
			}
		}
		return nil
	}
	if err := another(); err != nil {
		t.Error(err)
	}
	if keys := f.stored(); len(keys) != 0 {
		t.Errorf("stored: %v", keys)
	}
	f.enqueue("e", receiver.URL)
	f.await("the callback", func() bool { return len(receiver.outcomes()) == 1 })
	f.await("the queue to be empty", f.idle)
	if got := receiver.outcomes()[0]; got != "execution.finished refused" {
		t.Errorf("got %s", got)
	}
	if log := f.log.String(); !strings.Contains(log, "was submitted before with a different request") {
		t.Errorf("the log: %s", log)
	}
	f.requireRan("e", 1)
	if n := f.archived(); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	if known := f.ends("e"); known.outcome != outcomes.OK || known.callback.state != "" {
		t.Errorf("the first ended %s, callback %q", known.outcome, known.callback.state)
	}
	f.store.Del(t.Context(), wire.RecordKey("b", "e")) // it expires before the tombstone
	if _, err := NewOperator(f.store, queue, 1).Show(t.Context(), "b/e"); !errors.Is(err, ErrNothing) ||
		!strings.Contains(err.Error(), "has run, and its result is no longer kept") {
		t.Errorf("shown: %v", err)
	}
	if err := another(); err != nil {
		t.Error(err)
	}
}

func TestADeadLetterKeepsItsLargeRequest(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.worker(f.server.Addr, 1, failing(1))
	f.enqueueScript("e", 100<<10)
	if known := f.ends("e"); known.outcome != outcomes.NotStarted {
		t.Fatalf("ended %s", known.outcome)
	}
	f.await("the dead letter", func() bool { return f.archived() == 1 })
	if err := NewOperator(f.store, queue, 1).Retry(t.Context(), wire.TaskID("b", "e")); err != nil {
		t.Fatal(err)
	}
	f.await("its second end", func() bool {
		known, err := f.records.read(t.Context(), "b", "e")
		return err == nil && known.outcome == outcomes.OK
	})
	f.await("the queue to be empty", f.idle)
	f.requireRan("e", 1)
	if keys := f.stored(); len(keys) != 0 {
		t.Errorf("left: %v", keys)
	}
}

// TestALargeRequestThatIsGoneEndsItsExecution: the result gives the reason, and no other request runs in its place.
func TestALargeRequestThatIsGoneEndsItsExecution(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.enqueueScript("gone", 100<<10)
	f.store.Del(t.Context(), f.stored()...)
	f.enqueueScript("changed", 100<<10)
	f.store.Set(t.Context(), f.stored()[0],
		`{"runtime": "python-3-13", "user_script": "evil()", "execution_id": "changed", "business_id": "b", "user_id": "u"}`,
		0)
	f.worker(f.server.Addr, 5, fine)
	for _, id := range []string{"gone", "changed"} {
		known := f.ends(id)
		if known.outcome != outcomes.NotStarted || !strings.Contains(string(known.result), payload.ErrGone.Error()) {
			t.Errorf("%s ended %s: %s", id, known.outcome, known.result)
		}
		f.requireRan(id, 0)
	}
	f.await("the dead letters", func() bool { return f.archived() == 2 })
}

// TestAnOlderWorkerLeavesALargeRequest: it would refuse the reference as a request with an unknown field.
func TestAnOlderWorkerLeavesALargeRequest(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	for id, c := range map[string]struct {
		size    int
		version string
	}{"small": {100, "1"}, "large": {100 << 10, "2"}} {
		if got := f.enqueueScript(id, c.size).Headers[wire.VersionHeader]; got != c.version {
			t.Errorf("the task of the %s request has version %s", id, got)
		}
	}
}
