package fleet

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
	"github.com/kizen/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/internal/wire"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// queue is the queue that the tests of this file use.
const queue = "q"

// line is a connection to Redis that a test can cut, like the network between a worker and its Redis.
type line struct {
	net.Listener
	to string

	mu   sync.Mutex
	cut  bool
	open map[net.Conn]bool
	all  sync.WaitGroup
}

func newLine(t *testing.T, to string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{Listener: listener, to: to, open: map[net.Conn]bool{}}
	l.all.Go(l.serve)
	t.Cleanup(func() {
		_ = listener.Close()
		l.part()
		l.all.Wait()
	})
	return l
}

func (l *line) serve() {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		upstream, err := net.Dial("tcp", l.to)
		l.mu.Lock()
		if err != nil || l.cut {
			l.mu.Unlock()
			_ = conn.Close()
			if err == nil {
				_ = upstream.Close()
			}
			continue
		}
		l.open[conn], l.open[upstream] = true, true
		l.mu.Unlock()
		for _, pair := range [][2]net.Conn{{conn, upstream}, {upstream, conn}} {
			l.all.Go(func() {
				_, _ = io.Copy(pair[0], pair[1]) // it ends when either side does
				_ = pair[0].Close()
			})
		}
	}
}

// part cuts the line until mend is called.
func (l *line) part() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for conn := range l.open {
		_ = conn.Close()
	}
	clear(l.open)
}

func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}

// fleetOf is a Redis and the helpers with which tests observe it.
type fleetOf struct {
	t      testing.TB
	server *redistest.Server
	store  redis.UniversalClient
	// dial returns a client of a worker that reaches Redis at an address.
	dial    func(address string) redis.UniversalClient
	queues  int // of asynq
	records records
	sender  *webhook.Sender
	revoke  func(ctx context.Context, business, id string) error
	try     func(context.Context) error
	lease   time.Duration
	log     sidecartest.Buffer
	// ran counts the starts of each execution's code, and order has their ids.
	mu    sync.Mutex
	ran   map[string]int
	order []string
	// scripts has the size of the script that each execution was prepared with.
	scripts map[string]int
}

func newFleet(t testing.TB) *fleetOf {
	t.Helper()
	return newFleetOn(t, redistest.Start(t))
}

func newFleetOn(t testing.TB, server *redistest.Server) *fleetOf {
	t.Helper()
	store := redis.NewClient(&redis.Options{Addr: server.Addr})
	t.Cleanup(func() { _ = store.Close() })
	return &fleetOf{t: t, server: server, store: store, queues: 1, records: records{redis: store}, lease: time.Second,
		ran: map[string]int{}, scripts: map[string]int{}, dial: func(address string) redis.UniversalClient {
			return redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1, DialTimeout: time.Second})
		}}
}

// step runs an execution in a test's worker. It calls start when its code is about to begin, as
// [execution.Request.Starting].
type step func(ctx context.Context, start func() error) (execution.Ended, error)

// fine is a step that succeeds.
func fine(_ context.Context, start func() error) (execution.Ended, error) {
	if err := start(); err != nil {
		return execution.Ended{}, err
	}
	return execution.Ended{Result: runner.Result{Outcome: outcomes.OK}}, nil
}

// worker starts a worker that reaches Redis at address, and stops it with the test.
func (f *fleetOf) worker(address string, attempts int64, do step) *Worker {
	f.t.Helper()
	client := f.dial(address)
	log, err := telemetry.NewLogger(&f.log, telemetry.LogConfig{Format: "json"})
	if err != nil {
		f.t.Fatal(err)
	}
	w := NewWorker(Config{
		Redis: client, Queue: queue, Queues: f.queues, Slots: 2, Lease: f.lease, Attempts: attempts, Retention: Retention{Age: time.Hour},
		Sender: f.sender,
		Revoke: f.revoke, Try: f.try,
		Prepare: func(b execution.Body) (execution.Request, error) {
			f.mu.Lock()
			f.scripts[b.ExecutionID] = len(b.UserScript)
			f.mu.Unlock()
			return execution.Request{Identity: minter.Identity{BusinessID: b.BusinessID, ExecutionID: b.ExecutionID}}, nil
		},
		Run: func(ctx context.Context, r execution.Request) (execution.Ended, error) {
			return do(ctx, func() error {
				err := r.Starting(ctx)
				if err == nil {
					f.mu.Lock()
					defer f.mu.Unlock()
					f.ran[r.Identity.ExecutionID]++
					f.order = append(f.order, r.Identity.ExecutionID)
				}
				return err
			})
		},
		Log: log,
	})
	if err := w.Start(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		w.Shutdown(ctx)
		_ = client.Close()
	})
	return w
}

// traceID is the trace of the executions.
const traceID = "0af7651916cd43dd8448eb211c80319c"

func (f *fleetOf) enqueue(id, callback string) {
	f.t.Helper()
	f.enqueueFor("b", id, callback)
}

func (f *fleetOf) enqueueFor(business, id, callback string) {
	f.t.Helper()
	f.enqueueBody(id, map[string]string{
		"runtime": "python-3-13", "user_script": "pass", "execution_id": id, "business_id": business, "user_id": "u",
		"callback_url": callback,
		"traceparent":  "00-" + traceID + "-b7ad6b7169203331-01",
	})
}

func (f *fleetOf) enqueueBody(id string, body any) {
	f.t.Helper()
	payload, err := json.Marshal(body)
	if err != nil {
		f.t.Fatal(err)
	}
	_, err = asynq.NewClientFromRedisClient(f.store).EnqueueContext(f.t.Context(),
		asynq.NewTask(wire.ExecutionTask, payload), asynq.Queue(queue), asynq.TaskID(id))
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleetOf) await(what string, done func() bool) {
	f.t.Helper()
	redistest.Await(f.t, what, done)
}

// ends waits for the outcome of an execution.
func (f *fleetOf) ends(id string) entry {
	f.t.Helper()
	var known entry
	f.await("the end of "+id, func() bool {
		var err error
		known, err = f.records.read(f.t.Context(), "b", id)
		return err == nil && known.state == Finished
	})
	return known
}

func (f *fleetOf) requireRan(id string, times int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ran[id] != times {
		f.t.Errorf("%s ran %d times, want %d", id, f.ran[id], times)
	}
}

// gate blocks a step until it is opened.
type gate struct {
	reached, opened chan struct{}
}

func newGate() gate { return gate{make(chan struct{}, 8), make(chan struct{})} }

func (g gate) pass(ctx context.Context) {
	g.reached <- struct{}{}
	select {
	case <-g.opened:
	case <-ctx.Done():
	}
}

// before returns a step that waits at the gate and then reports how its start went.
func (g gate) before(returned chan<- error) step {
	return func(ctx context.Context, start func() error) (execution.Ended, error) {
		g.pass(ctx)
		done, err := fine(ctx, start)
		returned <- err
		return done, err
	}
}

// after is a step that waits at the gate after its code has run.
func (g gate) after(ctx context.Context, start func() error) (execution.Ended, error) {
	done, err := fine(ctx, start)
	g.pass(ctx)
	return done, err
}

func TestAWorkerThatLosesRedisBeforeTheCodeStartsDoesNotStartIt(t *testing.T) {
	t.Parallel()
	f, g := newFleet(t), newGate()
	way := newLine(t, f.server.Addr)
	returned := make(chan error, 1)
	f.worker(way.Addr().String(), 5, g.before(returned))
	f.enqueue("e", "")
	<-g.reached
	way.part()
	close(g.opened)
	if err := <-returned; err == nil {
		t.Fatal("the code started without Redis")
	}
	f.worker(f.server.Addr, 5, fine)
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Errorf("ended %s", known.outcome)
	}
	f.requireRan("e", 1)
	way.mend()
	f.await("the queue to be empty", f.idle)
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Errorf("ended %s after the other worker returned", known.outcome)
	}
	f.requireRan("e", 1)
}

// TestAWorkerThatReturnsTooLateDoesNotStartItsExecution: it had claimed the execution, and another worker took it over
// before it started.
func TestAWorkerThatReturnsTooLateDoesNotStartItsExecution(t *testing.T) {
	t.Parallel()
	f, g := newFleet(t), newGate()
	way := newLine(t, f.server.Addr)
	returned := make(chan error, 1)
	f.worker(way.Addr().String(), 5, g.before(returned))
	f.enqueue("e", "")
	<-g.reached
	way.part()
	f.worker(f.server.Addr, 5, fine)
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Errorf("ended %s", known.outcome)
	}
	way.mend()
	close(g.opened)
	if err := <-returned; err == nil {
		t.Error("the late worker started the code")
	}
	f.await("the queue to be empty", f.idle)
	f.requireRan("e", 1)
}

// TestTheResultOfAWorkerThatWasDeclaredDeadIsKeptBesideTheOutcome: the code ran once, and the record keeps the outcome
// of the fleet.
func TestTheResultOfAWorkerThatWasDeclaredDeadIsKeptBesideTheOutcome(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f, opened := newFleet(t), make(chan struct{})
	f.sender = receiver.sender
	way := newLine(t, f.server.Addr)
	reached := make(chan struct{}, 1)
	f.worker(way.Addr().String(), 5, func(ctx context.Context, start func() error) (execution.Ended, error) {
		done, err := fine(ctx, start)
		reached <- struct{}{}
		<-opened // it had its result before the cut, and could not write it
		return done, err
	})
	f.enqueue("e", receiver.URL)
	<-reached
	way.part()
	f.worker(f.server.Addr, 5, fine)
	known := f.ends("e")
	if known.outcome != outcomes.WorkerDied || !strings.Contains(string(known.result), "had started") ||
		!strings.Contains(string(known.result), "not run again") {
		t.Errorf("ended %s: %s", known.outcome, known.result)
	}
	f.await("the callback", func() bool { return len(receiver.outcomes()) == 1 })
	way.mend()
	close(opened)
	f.await("the callback of the late result", func() bool { return len(receiver.outcomes()) == 2 })
	if known := f.ends("e"); known.outcome != outcomes.WorkerDied || known.late.outcome != "ok" {
		t.Errorf("ended %s, late %s after the worker returned", known.outcome, known.late.outcome)
	}
	if got := receiver.outcomes(); got[0] != "execution.finished worker_died" || got[1] != "execution.late_result ok" {
		t.Errorf("received %v", got)
	}
	if log := f.log.String(); !strings.Contains(log, `"execution_id":"e","outcome":"worker_died","late_outcome":"ok"`) {
		t.Errorf("the log does not report the late result: %s", log)
	}
	f.await("the queue to be empty", f.idle)
	f.requireRan("e", 1)
}

// TestAnOutageOfRedisWhileTheStepRunsLosesNothing: the worker keeps the result until Redis is reachable.
func TestAnOutageOfRedisWhileTheStepRunsLosesNothing(t *testing.T) {
	t.Parallel()
	f, g := newFleet(t), newGate()
	way := newLine(t, f.server.Addr)
	f.worker(way.Addr().String(), 5, g.after)
	f.enqueue("e", "")
	<-g.reached
	way.part()
	close(g.opened)
	f.requireRan("e", 1)
	way.mend()
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Errorf("ended %s", known.outcome)
	}
	f.requireRan("e", 1)
}

// TestNoResultIsLostIfRedisForgetsARunningExecution: enqueuing the execution again returns the same result.
func TestNoResultIsLostIfRedisForgetsARunningExecution(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f, g := newFleet(t), newGate()
	f.sender = receiver.sender
	f.worker(f.server.Addr, 5, g.after)
	f.enqueue("e", receiver.URL)
	<-g.reached
	if err := f.store.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	close(g.opened)
	if known := f.ends("e"); known.outcome != "ok" {
		t.Errorf("ended %s", known.outcome)
	}
	f.await("the callback", func() bool { return len(receiver.outcomes()) == 1 })
	f.enqueue("e", receiver.URL)
	f.await("the queue to be empty", f.idle)
	f.requireRan("e", 1)
}

// TestAClockThatIsAheadStartsNothingTwice: asynq's lease of the task looks expired, as it does to a worker whose clock
// is an hour ahead.
func TestAClockThatIsAheadStartsNothingTwice(t *testing.T) {
	t.Parallel()
	f, g := newFleet(t), newGate()
	f.worker(f.server.Addr, 5, g.after)
	f.enqueue("e", "")
	<-g.reached
	ahead := redis.Z{Score: float64(time.Now().Add(-time.Hour).Unix()), Member: "e"}
	if err := f.store.ZAddXX(t.Context(), "asynq:{"+queue+"}:lease", ahead).Err(); err != nil {
		t.Fatal(err)
	}
	f.worker(f.server.Addr, 5, fine) // a worker looks for such leases when it starts
	inspector := asynq.NewInspectorFromRedisClient(f.store)
	f.await("the second delivery", func() bool {
		task, err := inspector.GetTaskInfo(queue, "e")
		return err == nil && strings.Contains(task.LastErr, "runs elsewhere")
	})
	f.requireRan("e", 1)
	close(g.opened)
	if known := f.ends("e"); known.outcome != outcomes.OK {
		t.Errorf("ended %s", known.outcome)
	}
	f.await("the queue to be empty", f.idle)
	f.requireRan("e", 1)
}

func TestOnlyExecutionsThatHaveNotStartedAreRetried(t *testing.T) {
	broken := errors.New("the sidecar broke")
	for name, c := range map[string]struct {
		started  bool
		outcome  outcomes.Outcome
		attempts int
	}{
		"before the code": {false, outcomes.OK, 3},
		"after the code":  {true, outcomes.Internal, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			var mu sync.Mutex
			attempts := 0
			f.worker(f.server.Addr, 5, func(ctx context.Context, start func() error) (execution.Ended, error) {
				mu.Lock()
				attempts++
				last := attempts == 3
				mu.Unlock()
				if c.started || last {
					if done, err := fine(ctx, start); last || err != nil {
						return done, err
					}
				}
				return execution.Ended{}, broken
			})
			f.enqueue("e", "")
			if known := f.ends("e"); known.outcome != c.outcome {
				t.Errorf("ended %s: %s", known.outcome, known.result)
			}
			f.await("the queue to be empty", f.idle)
			mu.Lock()
			defer mu.Unlock()
			if attempts != c.attempts {
				t.Errorf("%d attempts", attempts)
			}
			f.requireRan("e", 1)
		})
	}
}

// TestAnInvalidBodyEndsItsExecution: its callback is sent, although the body has invalid fields.
func TestAnInvalidBodyEndsItsExecution(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 2, fine)
	f.enqueueBody("e", map[string]any{"execution_id": "e", "business_id": "b", "user_script": 7,
		"callback_url": receiver.URL, "frobnicate": 1})
	known := f.ends("e")
	if known.outcome != outcomes.Refused || !strings.Contains(string(known.result), `"kind":"refused"`) ||
		!strings.Contains(string(known.result), "user_script: must be a string") ||
		!strings.Contains(string(known.result), "frobnicate: unknown field") {
		t.Errorf("ended %s: %s", known.outcome, known.result)
	}
	f.await("the callback", func() bool { return len(receiver.outcomes()) == 1 })
	f.requireRan("e", 0)
}

func TestAnExecutionThatIsGivenUpIsKeptAndReported(t *testing.T) {
	receiver := newReceiver(t, 0)
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	w := f.worker(f.server.Addr, 2, func(context.Context, func() error) (execution.Ended, error) {
		return execution.Ended{}, errors.New("no python anywhere")
	})
	f.enqueue("e", receiver.URL)
	if known := f.ends("e"); known.outcome != outcomes.NotStarted ||
		!strings.Contains(string(known.result), "given up after 2 attempts: no python anywhere") ||
		!strings.Contains(string(known.result), `"kind":"not_started"`) {
		t.Errorf("ended %s: %s", known.outcome, known.result)
	}
	f.await("the dead letter", func() bool {
		backlog, _, err := w.Backlogs(t.Context())
		return err == nil && backlog.DeadLetters == 1 && backlog.Depth == 0
	})
	f.await("the callback", func() bool { return len(receiver.outcomes()) == 1 })
	f.requireRan("e", 0)
}

func TestACallbackIsRetriedWithOneIDUntilItIsAccepted(t *testing.T) {
	receiver := newReceiver(t, 2)
	t.Parallel()
	f := newFleet(t)
	f.sender = receiver.sender
	f.worker(f.server.Addr, 5, fine)
	f.enqueue("e", receiver.URL)
	f.await("the callback", func() bool { return len(receiver.outcomes()) == 1 })
	f.await("the record to say so", func() bool {
		known, err := f.records.read(t.Context(), "b", "e")
		return err == nil && known.callback.state == CallbackDelivered
	})
	receiver.mu.Lock()
	defer receiver.mu.Unlock()
	if receiver.refused != 2 || len(receiver.ids) != 1 {
		t.Errorf("refused %d times, ids %v", receiver.refused, receiver.ids)
	}
	failed := 0
	for line := range strings.Lines(f.log.String()) {
		if strings.Contains(line, "a callback was not delivered") {
			failed++
			if !strings.Contains(line, `"execution_id":"e"`) || !strings.Contains(line, `"trace_id":"`+traceID+`"`) {
				t.Errorf("the line does not name the execution: %s", line)
			}
		}
	}
	if failed != 2 {
		t.Errorf("the log has %d failed attempts", failed)
	}
}

// idle reports whether asynq has nothing left to do.
func (f *fleetOf) idle() bool {
	info, err := asynq.NewInspectorFromRedisClient(f.store).GetQueueInfo(queue)
	return err == nil && info.Pending+info.Active+info.Retry+info.Scheduled == 0
}

// receiver refuses some callbacks, accepts the rest, and verifies the signature of each.
type receiver struct {
	*httptest.Server
	sender *webhook.Sender

	mu       sync.Mutex
	refuse   int
	refused  int
	status   int // of every response; if 0, it accepts the message
	ids      map[string]bool
	received []string
}

func newReceiver(t testing.TB, refuse int) *receiver {
	t.Helper()
	secret := "whsec_" + base64.StdEncoding.EncodeToString([]byte("a-secret-of-thirty-two-bytes-000"))
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := webhook.ParseSecrets([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{refuse: refuse, ids: map[string]bool{}}
	if r.sender, err = webhook.New(webhook.Config{Secrets: secrets, Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}); err != nil {
		t.Fatal(err)
	}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		if err := verifier.Verify(body, request.Header); err != nil {
			t.Errorf("not signed: %v", err)
		}
		var message struct {
			Type string
			Data struct{ Outcome string }
		}
		if err := json.Unmarshal(body, &message); err != nil {
			t.Errorf("no message: %v", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ids[request.Header.Get("webhook-id")] = true
		if r.refused < r.refuse {
			r.refused++
			http.Error(w, fmt.Sprint("not yet: ", r.refused), http.StatusInternalServerError)
			return
		}
		if r.status != 0 {
			w.WriteHeader(r.status)
			return
		}
		r.received = append(r.received, message.Type+" "+message.Data.Outcome)
	}))
	t.Cleanup(r.Close)
	t.Cleanup(r.sender.Close)
	return r
}

// count returns how many different messages arrived.
func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ids)
}

func (r *receiver) outcomes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.received...)
}
