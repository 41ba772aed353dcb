package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
)

// stub replaces a host: each execution runs until the test ends it.
type stub struct {
	runs atomic.Int64
	end  chan runner.Result
}

func (s *stub) run(ctx context.Context, r execution.Request) (execution.Ended, error) {
	s.runs.Add(1)
	r.Job.Observer.Log("hello from " + r.Identity.ExecutionID)
	r.Job.Observer.HTTP(runner.HTTPEntry{Method: "GET", URL: "https://api/x"})
	select {
	case result := <-s.end:
		result.RequestID = r.Identity.ExecutionID
		return execution.Ended{Result: result}, nil
	case <-ctx.Done():
		return execution.Ended{Result: runner.Result{Outcome: outcomes.Cancelled,
			Error: &runner.StepError{Message: context.Cause(ctx).Error()}}}, nil
	}
}

func newTestService(t *testing.T, slots, depth int, config RegistryConfig) (*Registry, *stub) {
	t.Helper()
	q, err := queue.New(slots, depth)
	if err != nil {
		t.Fatal(err)
	}
	s := &stub{end: make(chan runner.Result)}
	config.Queue, config.Run = q, s.run
	service := NewRegistry(config)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = service.Shutdown(ctx) // cuts off the remaining executions
	})
	return service, s
}

func request(business, id string) execution.Request {
	return execution.Request{
		Identity: minter.Identity{BusinessID: business, ExecutionID: id, AccountID: "a", AccountType: "service_automation"},
		Name:     "Step",
	}
}

func submit(t *testing.T, s *Registry, business, id string) *Execution {
	t.Helper()
	e, err := s.Submit(request(business, id), []byte(id), "")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func eventTypes(e *Execution) []string {
	events, _ := e.Events(0)
	var types []string
	for _, event := range events {
		types = append(types, event.Type)
	}
	return types
}

func TestAnExecutionReportsEachOfItsStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, stub := newTestService(t, 1, 10, RegistryConfig{})
		first := submit(t, service, "b1", "e1")
		second := submit(t, service, "b1", "e2")
		synctest.Wait()
		if first.Snapshot().State != Running || second.Snapshot().State != Queued {
			t.Errorf("states are %s, %s", first.Snapshot().State, second.Snapshot().State)
		}
		stub.end <- runner.Result{Outcome: outcomes.OK}
		<-first.Done()
		if got := eventTypes(first); !slices.Equal(got, []string{"queued", "started", "log", "http", "finished"}) {
			t.Errorf("events are %v", got)
		}
		snapshot := first.Snapshot()
		var result struct {
			ID string `json:"request_id"`
		}
		if err := json.Unmarshal(snapshot.Result, &result); err != nil || result.ID != "e1" || snapshot.Outcome != "ok" ||
			snapshot.Phases == nil {
			t.Errorf("finished as %+v, %v", snapshot, err)
		}
		synctest.Wait()
		if second.Snapshot().State != Running {
			t.Error("the slot was not given to the waiting execution")
		}
		second.Cancel()
		<-second.Done()
	})
}

func TestTheSameIDRunsOnceAndGivesTheSameAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, stub := newTestService(t, 4, 10, RegistryConfig{})
		first := submit(t, service, "b1", "e1")
		if again := submit(t, service, "b1", "e1"); again != first {
			t.Error("the second submission created another execution")
		}
		stub.end <- runner.Result{Outcome: outcomes.OK}
		<-first.Done()
		synctest.Wait()
		if again := submit(t, service, "b1", "e1"); again != first || stub.runs.Load() != 1 {
			t.Errorf("ran %d times", stub.runs.Load())
		}
		if _, err := service.Submit(request("b1", "e1"), []byte("something else"), ""); !errors.Is(err, ErrConflict) {
			t.Errorf("the same id with another request: %v", err)
		}
		if foreign := submit(t, service, "b2", "e1"); foreign == first {
			t.Error("another business got this one's execution")
		}
		if _, ok := service.Get("b2", "e2"); ok {
			t.Error("Get found an unknown execution")
		}
	})
}

func TestCancellingEndsWaitingAndRunningExecutions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, _ := newTestService(t, 1, 10, RegistryConfig{})
		running, waiting := submit(t, service, "b", "e1"), submit(t, service, "b", "e2")
		synctest.Wait()
		waiting.Cancel()
		<-waiting.Done()
		if _, err := waiting.Ended(); !errors.Is(err, execution.ErrCancelled) || waiting.Snapshot().Failure == "" ||
			waiting.Snapshot().Outcome != "cancelled" || !waiting.Snapshot().StartedAt.IsZero() {
			t.Errorf("the waiting execution ended with %v", err)
		}
		running.Cancel()
		<-running.Done()
		if snapshot := running.Snapshot(); snapshot.Outcome != outcomes.Cancelled {
			t.Errorf("the running execution ended as %+v", snapshot)
		}
	})
}

func TestAQueueTimeoutIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, _ := newTestService(t, 1, 10, RegistryConfig{QueueTimeout: time.Second})
		submit(t, service, "b", "e1")
		waiting := submit(t, service, "b", "e2")
		<-waiting.Done()
		if _, err := waiting.Ended(); !errors.Is(err, ErrQueueTimeout) || waiting.Snapshot().Outcome != outcomes.NotStarted {
			t.Errorf("ended with %v as %+v", err, waiting.Snapshot())
		}
		if events, _ := waiting.Events(0); !strings.Contains(string(events[len(events)-1].Data), `"outcome":"not_started"`) {
			t.Errorf("finished with %s", events[len(events)-1].Data)
		}
	})
}

func TestAFullQueueRefusesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, _ := newTestService(t, 1, 1, RegistryConfig{})
		submit(t, service, "b", "e1")
		submit(t, service, "b", "e2")
		if _, err := service.Submit(request("b", "e3"), []byte("e3"), ""); !errors.Is(err, queue.ErrFull) {
			t.Errorf("the third: %v", err)
		}
		if _, ok := service.Get("b", "e3"); ok {
			t.Error("a refused execution is kept")
		}
	})
}

func TestWaitingRequestsAreBoundedInBytesAndFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, stub := newTestService(t, 1, 100, RegistryConfig{WaitingBytes: 1000})
		try := func(business, id string, size int) error {
			_, err := service.Submit(request(business, id), make([]byte, size), "")
			return err
		}
		if err := try("greedy", "runs", 5000); err != nil {
			t.Fatalf("an execution that need not wait: %v", err)
		}
		synctest.Wait()
		for _, c := range []struct {
			business, id string
			size         int
			want         error
		}{
			{"greedy", "1", 600, nil},
			{"greedy", "2", 400, nil}, // while no other business waits, it may use everything
			{"greedy", "3", 1, queue.ErrFull},
			{"modest", "1", 500, nil}, // its share of two
			{"modest", "2", 1, queue.ErrFull},
			{"third", "1", 334, queue.ErrFull},
			{"third", "2", 333, nil},
		} {
			if err := try(c.business, c.id, c.size); !errors.Is(err, c.want) {
				t.Errorf("%s %s: %v, want %v", c.business, c.id, err, c.want)
			}
		}
		if waits := service.config.Queue.Stats().Waiting; waits != 4 {
			t.Errorf("%d wait", waits)
		}
		for range 5 { // the running one and the waiting ones
			stub.end <- runner.Result{Outcome: outcomes.OK}
			synctest.Wait()
		}
		for _, business := range []string{"greedy", "modest", "third"} {
			if held := service.waiting.Held(business); held != 0 {
				t.Errorf("no execution waits, but %d bytes of %s are counted", held, business)
			}
		}
	})
}

func TestKeptExecutionsAreBoundedInNumberAndBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, stub := newTestService(t, 1, 10, RegistryConfig{Keep: 3, KeepBytes: 64 << 10})
		finish := func(id string, log string) {
			e := submit(t, service, "b", id)
			stub.end <- runner.Result{Outcome: outcomes.OK, Logs: []string{log}}
			<-e.Done()
			synctest.Wait()
		}
		for i := range 5 {
			finish(fmt.Sprint("e", i), "x")
		}
		var kept []string
		for _, e := range service.Recent("b") {
			kept = append(kept, e.ID())
		}
		if len(kept) != 3 {
			t.Errorf("kept %v", kept)
		}
		if _, ok := service.Get("b", "e1"); ok {
			t.Error("the oldest is kept")
		}
		finish("big1", strings.Repeat("x", 40<<10))
		finish("big2", strings.Repeat("x", 40<<10))
		if _, ok := service.Get("b", "big1"); ok || service.kept.bytes > 64<<10 {
			t.Errorf("%d bytes are kept", service.kept.bytes)
		}
	})
}

// TestABusinessWithManyExecutionsEvictsNoneOfOthers: the results of other businesses must be kept, and their IDs must
// not run again.
func TestABusinessWithManyExecutionsEvictsNoneOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		config RegistryConfig
		log    int
	}{"in number": {RegistryConfig{Keep: 4}, 1}, "in bytes": {RegistryConfig{KeepBytes: 64 << 10}, 20 << 10}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service, stub := newTestService(t, 1, 10, c.config)
				finish := func(business, id string, log int) {
					e := submit(t, service, business, id)
					stub.end <- runner.Result{Outcome: outcomes.OK, Logs: []string{strings.Repeat("x", log)}}
					<-e.Done()
					synctest.Wait()
				}
				finish("modest", "e", 1)
				for i := range 20 {
					finish("greedy", fmt.Sprint(i), c.log)
				}
				if _, ok := service.Get("modest", "e"); !ok {
					t.Error("the other business's execution was forgotten")
				}
				if _, ok := service.Get("greedy", "19"); !ok {
					t.Error("the youngest was forgotten")
				}
				if kept := len(service.Recent("greedy")); kept > 3 {
					t.Errorf("%d executions of the largest business are kept", kept)
				}
			})
		})
	}
}

// TestEvictionTakesTheOldestOfTheLargestBusiness: no business may evict results of others. A result that is too large
// evicts only itself.
func TestEvictionTakesTheOldestOfTheLargestBusiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, stub := newTestService(t, 1, 10, RegistryConfig{Keep: 3, KeepBytes: 64 << 10})
		finish := func(business string, log int) {
			e := submit(t, service, business, "e")
			stub.end <- runner.Result{Outcome: outcomes.OK, Logs: []string{strings.Repeat("x", log)}}
			<-e.Done()
			time.Sleep(time.Second)
		}
		requireKept := func(want ...string) {
			t.Helper()
			var kept []string
			for _, business := range []string{"a", "b", "c", "d", "big"} {
				if _, ok := service.Get(business, "e"); ok {
					kept = append(kept, business)
				}
			}
			if !slices.Equal(kept, want) {
				t.Errorf("%v are kept, want %v", kept, want)
			}
		}
		for _, business := range []string{"a", "b", "c", "d"} {
			finish(business, 1)
		}
		requireKept("b", "c", "d")
		finish("big", 80<<10)
		// With equal numbers, the oldest is evicted. Then big has the most bytes, and loses its own execution.
		requireKept("c", "d")
	})
}

// TestMemoryOfSlowReadersIsBounded: an execution that is no longer kept stays in memory while a caller reads it. If
// too many stay, the readers of the oldest one of the business with the most are cut off.
func TestMemoryOfSlowReadersIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 20 << 10
		service, stub := newTestService(t, 1, 10, RegistryConfig{KeepBytes: 4 * size})
		var cut []string
		read := func(business, id string) (done func()) {
			e := submit(t, service, business, id)
			stub.end <- runner.Result{Outcome: outcomes.OK, Logs: []string{strings.Repeat("x", size/4)}}
			<-e.Done()
			synctest.Wait()
			return service.Reading(e, func() { cut = append(cut, business+id) })
		}
		modest := read("modest", "1")
		finished := read("greedy", "finished")
		finished()
		for i := range 20 {
			defer read("greedy", fmt.Sprint(i))()
		}
		if len(cut) == 0 || !strings.HasPrefix(cut[0], "greedy0") || slices.Contains(cut, "modest1") ||
			slices.Contains(cut, "greedyfinished") || slices.Contains(cut, "greedy19") {
			t.Errorf("the readers of %v were cut off", cut)
		}
		if held := service.read.bytes; held > 2*size || held == 0 {
			t.Errorf("%d bytes are held for readers", held)
		}
		modest()
	})
	synctest.Test(t, func(t *testing.T) { // a result that is too large to be kept can be read
		service, stub := newTestService(t, 1, 10, RegistryConfig{KeepBytes: 1})
		e := submit(t, service, "b", "1")
		stub.end <- runner.Result{Outcome: outcomes.OK}
		<-e.Done()
		synctest.Wait()
		done := service.Reading(e, func() { t.Error("the reader was cut off") })
		if service.read.count != 1 {
			t.Errorf("%d are held for readers", service.read.count)
		}
		done()
		if service.read.count != 0 || service.read.bytes != 0 || len(service.read.piles) != 0 {
			t.Errorf("held after its reader has ended: %+v", service.read)
		}
	})
}

func TestShutdownLetsRunningExecutionsFinishThenCutsThemOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, stub := newTestService(t, 2, 10, RegistryConfig{})
		finishes, hangs := submit(t, service, "b", "e1"), submit(t, service, "b", "e2")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		ended := make(chan error)
		go func() { ended <- service.Shutdown(ctx) }()
		synctest.Wait()
		if _, err := service.Submit(request("b", "e3"), []byte("e3"), ""); !errors.Is(err, queue.ErrDraining) {
			t.Errorf("while draining: %v", err)
		}
		stub.end <- runner.Result{Outcome: outcomes.OK}
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "1 executions were cut off") {
			t.Errorf("shutdown: %v", err)
		}
		for _, e := range []*Execution{finishes, hangs} {
			<-e.Done()
		}
	})
}

func TestWatchersSeeEventsAsTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service, stub := newTestService(t, 1, 10, RegistryConfig{})
		e := submit(t, service, "b", "e1")
		var seen []string
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			for after := 0; ; {
				events, more := e.Events(after)
				for _, event := range events {
					after = event.Number
					seen = append(seen, event.Type)
					if event.Type == "finished" {
						return
					}
				}
				<-more
			}
		}()
		synctest.Wait()
		stub.end <- runner.Result{Outcome: outcomes.OK}
		<-watched
		if !slices.Equal(seen, []string{"queued", "started", "log", "http", "finished"}) {
			t.Errorf("saw %v", seen)
		}
	})
}

// TestAnExecutionCountsItsMemory: the registry limits its memory by these sizes.
func TestAnExecutionCountsItsMemory(t *testing.T) {
	lists := func(n int) runner.Value {
		items := make([]runner.Value, n)
		for i := range items {
			items[i] = runner.Value{Type: "l", V: []runner.Value{}}
		}
		return runner.Value{Type: "l", V: items}
	}
	for name, fill := range map[string]func(*Execution) runner.Result{
		"100,000 empty messages": func(e *Execution) runner.Result {
			result := runner.Result{}
			for range 100_000 {
				e.Log("")
				result.Logs, result.LogTimes = append(result.Logs, ""), append(result.LogTimes, time.Now())
			}
			return result
		},
		"inputs of 100,000 empty lists": func(e *Execution) runner.Result {
			e.request.Job.Inputs = runner.Inputs{"x": lists(100_000)}
			source, inputs := e.request.Job.Shown()
			return runner.Result{Source: source, Inputs: inputs}
		},
		"an output of 100,000 empty lists": func(*Execution) runner.Result {
			value, err := json.Marshal(lists(100_000))
			if err != nil {
				t.Fatal(err)
			}
			return runner.Result{Values: []runner.NamedValue{{Name: "x", JSON: value}}}
		},
		"100 calls of 400 fields": func(e *Execution) runner.Result {
			record := &runner.HTTPRecord{}
			for range 100 {
				call := runner.HTTPEntry{Headers: map[string]string{}, ResponseHeaders: map[string]string{}}
				for i := range 200 {
					name := fmt.Sprintf("h%03d", i)
					call.Headers[name], call.ResponseHeaders[name] = "", ""
				}
				e.HTTP(call)
				record.Requests = append(record.Requests, call)
			}
			return runner.Result{HTTP: record}
		},
		"1,000 outputs and 1,000 secrets": func(e *Execution) runner.Result {
			for i := range 1000 {
				e.asked.Outputs = append(e.asked.Outputs, runner.Parameter{Name: fmt.Sprintf("output_%d", i), Type: "s"})
				e.asked.Secrets = append(e.asked.Secrets, fmt.Sprintf("SECRET_%d", i))
			}
			return runner.Result{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inUse := func() int64 {
				var memory runtime.MemStats
				runtime.GC()
				runtime.GC() // the second one empties the pools of encoders
				runtime.ReadMemStats(&memory)
				return int64(memory.HeapAlloc)
			}
			before := inUse()
			e := &Execution{changed: make(chan struct{}), done: make(chan struct{})}
			result := fill(e)
			result.Outcome = outcomes.OK
			e.finish(execution.Ended{Result: result}, nil)
			result = runner.Result{}
			if held := inUse() - before; held > e.size+32<<10 || held < e.size/4 { // the test itself holds a little
				t.Errorf("it uses %d bytes and counts as %d", held, e.size)
			}
			runtime.KeepAlive(e)
			runtime.KeepAlive(result)
		})
	}
}
