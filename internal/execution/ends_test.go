package execution

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
	"github.com/kizen/kizen-sidecar/proxy"
	"github.com/kizen/kizen-sidecar/runner"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// The moments of an execution at which a test can interfere, in order.
const (
	preparing = "prepare"
	minting   = "mint"
	starting  = "start"
	running   = "run"
	revoking  = "revoke"
)

var errGone = errors.New("it is gone")

// fault is an event at one of these moments. ctx is that of the part.
type fault func(ctx context.Context, w *world) error

func fails(context.Context, *world) error { return errGone }

func refuses(context.Context, *world) error {
	var refused runner.FieldErrors
	refused.Add("does not fit", "inputs")
	return refused.Err()
}

// cancels cancels the caller's context, and fails like a part that notices that.
func cancels(_ context.Context, w *world) error {
	w.cancel(ErrCancelled)
	<-w.caller.Done()
	return context.Cause(w.caller)
}

// killed cancels the caller's context while the step runs; the step continues until it is killed.
func killed(ctx context.Context, w *world) error {
	w.cancel(ErrCancelled)
	<-ctx.Done()
	return ctx.Err()
}

// cancelsUnnoticed cancels the caller's context, and succeeds.
func cancelsUnnoticed(_ context.Context, w *world) error {
	w.cancel(ErrCancelled)
	return nil
}

func expires(context.Context, *world) error { return context.DeadlineExceeded }

func panics(context.Context, *world) error { panic("index out of range") }

// world is the environment of one execution: an interpreter, a listener, keys and a caller, all fakes. It records the
// events in order.
type world struct {
	host   *Host
	caller context.Context
	cancel context.CancelCauseFunc
	faults map[string]fault
	// result is the step's result if no fault prevents it.
	result runner.Result
	// asked is when the execution began to wait for a slot; zero if it did not wait.
	asked time.Time
	// call, if not nil, is made by the running step.
	call func(job runner.Execution)

	listener *pipeListener
	log      bytes.Buffer
	job      runner.Execution
	lifetime time.Duration

	mu     sync.Mutex
	events []string
}

// forCalls reads the rules once.
var forCalls = sync.OnceValues(func() (*policy.Engine, error) { return policy.ForCalls() })

func newWorld(t *testing.T, faults map[string]fault) *world {
	t.Helper()
	w := &world{faults: faults, result: runner.Result{Outcome: outcomes.OK, Started: time.Now(),
		Duration: time.Millisecond}}
	w.caller, w.cancel = context.WithCancelCause(t.Context())
	w.listener = &pipeListener{incoming: make(chan net.Conn), closed: make(chan struct{}),
		onClose: func() { w.note("close") }}
	engine, err := forCalls()
	if err != nil {
		t.Fatal(err)
	}
	w.host = &Host{
		config: Config{
			Engine: engine, Proxy: proxy.Config{APIRoot: &url.URL{Scheme: "http", Host: "127.0.0.1:1", Path: "/api"}},
			Log: slog.New(slog.NewJSONHandler(&w.log, nil)), Telemetry: &telemetry.Telemetry{},
		},
		keys: fakeKeys{w}, interpreters: fakeInterpreters{w},
	}
	return w
}

func (w *world) note(event string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event)
}

// at records a moment and triggers its fault.
func (w *world) at(ctx context.Context, moment string) error {
	w.note(moment)
	if fault := w.faults[moment]; fault != nil {
		return fault(ctx, w)
	}
	return nil
}

// story returns the events so far.
func (w *world) story() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.events, " ")
}

func (w *world) run() (Ended, error) {
	return w.host.Run(w.caller, Request{
		Identity: minter.Identity{BusinessID: "b-1", AccountID: "a-1", AccountType: policy.ServiceAutomation,
			ExecutionID: "e-1"},
		Name: "double", Asked: w.asked, Limits: runner.Limits{Wall: 30 * time.Second},
		Job:      runner.Execution{Runtime: runner.Python313},
		Starting: func(ctx context.Context) error { return w.at(ctx, starting) },
	})
}

// survive calls run and returns the value of its panic, if any.
func (w *world) survive() (done Ended, recovered any, err error) {
	defer func() { recovered = recover() }()
	done, err = w.run()
	return done, nil, err
}

// requireLogged checks that the log has exactly one line about the end, with this outcome.
func (w *world) requireLogged(t *testing.T, outcome outcomes.Outcome) {
	t.Helper()
	var logged []outcomes.Outcome
	for line := range strings.Lines(w.log.String()) {
		var entry struct {
			Msg     string
			Outcome outcomes.Outcome
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry.Msg == "execution ended" {
			logged = append(logged, entry.Outcome)
		}
	}
	if !slices.Equal(logged, []outcomes.Outcome{outcome}) {
		t.Errorf("the log has the ends %v, want %q once\n%s", logged, outcome, &w.log)
	}
}

type fakeKeys struct{ w *world }

func (k fakeKeys) lease(ctx context.Context, _ minter.Identity, lifetime time.Duration) (lease, error) {
	k.w.lifetime = lifetime
	if err := k.w.at(ctx, minting); err != nil {
		return nil, err
	}
	return fakeLease(k), ctx.Err()
}

type fakeLease struct{ w *world }

func (l fakeLease) Key(context.Context) (string, error)           { return "the-signed-key", nil }
func (l fakeLease) Renew(context.Context, string) (string, error) { return "", errGone }
func (l fakeLease) Close(ctx context.Context) error               { return l.w.at(ctx, revoking) }

type fakeInterpreters struct{ w *world }

func (i fakeInterpreters) prepare(ctx context.Context, _ runner.Runtime, _ runner.Limits) (interpreter, error) {
	if err := i.w.at(ctx, preparing); err != nil {
		return nil, err
	}
	return fakeInterpreter(i), nil
}

type fakeInterpreter struct{ w *world }

func (i fakeInterpreter) Listener() net.Listener { return i.w.listener }

func (i fakeInterpreter) Discard() (stdout, stderr string) {
	i.w.note("discard")
	_ = i.w.listener.Close()
	return "", ""
}

// Run ends as [runner.Prepared.Run] does: a step that was killed because of ctx has the outcome Cancelled.
func (i fakeInterpreter) Run(ctx context.Context, job runner.Execution) (runner.Result, error) {
	i.w.job = job
	if i.w.call != nil {
		i.w.call(job)
	}
	err := i.w.at(ctx, running)
	if ctx.Err() != nil {
		i.w.note("killed")
		return runner.Result{Outcome: outcomes.Cancelled, Started: time.Now()}, nil
	}
	if err != nil {
		return runner.Result{}, err
	}
	return i.w.result, nil
}

// pipeListener accepts connections without a network, so that the test controls time.
type pipeListener struct {
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
	onClose  func()
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.incoming:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() {
		l.onClose()
		close(l.closed)
	})
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4711} }

func (l *pipeListener) dial(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.incoming <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// TestEveryEndReleasesEverything makes each part fail in each way. In every case the minted key is revoked exactly
// once, and before the step is killed if the caller cancels; the listener is closed; the interpreter has run or is
// discarded; the log has one line about the end.
func TestEveryEndReleasesEverything(t *testing.T) {
	const (
		unprepared = "prepare"
		unminted   = "prepare mint close discard"
		unstarted  = "prepare mint start close revoke discard"
		ran        = "prepare mint start run close revoke"
		cancelled  = "prepare mint start run revoke killed close"
	)
	for _, row := range []struct {
		name    string
		at      string
		fault   fault
		outcome outcomes.Outcome // empty if the execution panics
		story   string
	}{
		{"nothing happens", "", nil, outcomes.OK, ran},

		{"python is missing", preparing, fails, outcomes.NotStarted, unprepared},
		{"the runtime is unknown", preparing, refuses, outcomes.Refused, unprepared},
		{"cancelled while python starts", preparing, cancelsUnnoticed, outcomes.Cancelled, unminted},
		{"out of time while python starts", preparing, expires, outcomes.NotStarted, unprepared},
		{"a panic while python starts", preparing, panics, "", unprepared},

		{"redis is gone", minting, fails, outcomes.NotStarted, unminted},
		{"cancelled while the key is minted", minting, cancels, outcomes.Cancelled, unminted},
		{"cancelled when the key is minted", minting, cancelsUnnoticed, outcomes.Cancelled, unminted},
		{"out of time while the key is minted", minting, expires, outcomes.NotStarted, unminted},
		{"a panic while the key is minted", minting, panics, "", unminted},

		{"the caller cannot record the start", starting, fails, outcomes.NotStarted, unstarted},
		{"cancelled while the start is recorded", starting, cancels, outcomes.Cancelled, unstarted},
		{"out of time while the start is recorded", starting, expires, outcomes.NotStarted, unstarted},
		{"a panic while the start is recorded", starting, panics, "", unstarted},

		{"python fails", running, fails, outcomes.Internal, ran},
		{"the job does not fit", running, refuses, outcomes.Refused, ran},
		{"cancelled while the step runs", running, killed, outcomes.Cancelled, cancelled},
		{"a panic while the step runs", running, panics, "", ran},

		{"redis is gone at the end", revoking, fails, outcomes.OK, ran},
		{"cancelled at the end", revoking, cancelsUnnoticed, outcomes.OK, ran},
		{"a panic at the end", revoking, panics, "", ran},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, map[string]fault{row.at: row.fault})
				done, recovered, err := w.survive()
				if story := w.story(); story != row.story {
					t.Errorf("what happened:\n%s, want\n%s", story, row.story)
				}
				if row.outcome == "" {
					if recovered == nil {
						t.Error("the panic was lost")
					}
					return
				}
				if outcome := done.Outcome(err); outcome != row.outcome || recovered != nil {
					t.Errorf("outcome %q (%v, panic %v), want %q", outcome, err, recovered, row.outcome)
				}
				if begun := strings.Contains(row.story, running); done.Begun != begun {
					t.Errorf("begun: %v, want %v", done.Begun, begun)
				}
				w.requireLogged(t, row.outcome)
			})
		})
	}
}

// TestLaterFaultsDoNotChangeTheResultOfTheStep: this holds for every outcome.
func TestLaterFaultsDoNotChangeTheResultOfTheStep(t *testing.T) {
	for _, outcome := range outcomes.All() {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, map[string]fault{revoking: fails})
			w.result.Outcome = outcome
			w.result.Logs = []string{"hello"}
			done, err := w.run()
			if err != nil || done.Result.Outcome != outcome || !slices.Equal(done.Result.Logs, []string{"hello"}) {
				t.Errorf("%s: %+v, %v", outcome, done.Result, err)
			}
			w.requireLogged(t, outcome)
			if !strings.Contains(w.log.String(), "the key could not be revoked") {
				t.Errorf("%s: the log does not mention the key:\n%s", outcome, &w.log)
			}
		})
	}
}

// hangs is a Redis that does not reply.
func hangs(ctx context.Context, _ *world) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestARedisThatHangsDelaysNoEnd: Redis does not reply to the revocation. The step is killed nevertheless, and the
// execution ends.
func TestARedisThatHangsDelaysNoEnd(t *testing.T) {
	t.Run("after the step", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, map[string]fault{revoking: hangs})
			began := time.Now()
			done, err := w.run()
			if took := time.Since(began); took != revokeLimit || err != nil || done.Result.Outcome != outcomes.OK {
				t.Errorf("%q, %v after %s", done.Result.Outcome, err, took)
			}
			if done.Revoke != revokeLimit {
				t.Errorf("revoke took %s", done.Revoke)
			}
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var until time.Duration
			began := time.Now()
			w := newWorld(t, map[string]fault{revoking: hangs, running: func(ctx context.Context, w *world) error {
				w.cancel(ErrCancelled)
				<-ctx.Done()
				until = time.Since(began)
				return ctx.Err()
			}})
			done, err := w.run()
			if until != revokeFirst || time.Since(began) != revokeLimit {
				t.Errorf("killed after %s, ended after %s", until, time.Since(began))
			}
			if outcome := done.Outcome(err); outcome != outcomes.Cancelled {
				t.Errorf("%q, %v", outcome, err)
			}
			if want := "prepare mint start run revoke killed close"; w.story() != want {
				t.Errorf("what happened:\n%s, want\n%s", w.story(), want)
			}
		})
	})
}

// TestTheCauseOfACancellationReachesTheStep: the step's error can name it.
func TestTheCauseOfACancellationReachesTheStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cause error
		w := newWorld(t, map[string]fault{running: func(ctx context.Context, w *world) error {
			w.cancel(errGone)
			<-ctx.Done()
			cause = context.Cause(ctx)
			return cause
		}})
		if _, _ = w.run(); !errors.Is(cause, errGone) {
			t.Errorf("the cause is %v", cause)
		}
	})
}

// TestCallsEndWithTheTimeLimit: the key and the proxy outlive the limit only by a grace period, even if the step was
// not ended.
func TestCallsEndWithTheTimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.call = func(job runner.Execution) {
			client := &http.Client{Transport: &http.Transport{DialContext: w.listener.dial, DisableKeepAlives: true}}
			// The clock of the test's bubble passes the limit, but the step still runs.
			time.Sleep(job.Timeout + keyGrace + time.Millisecond)
			answer, err := client.Get(job.APIURL + "/custom-objects")
			if err != nil {
				t.Error(err)
				return
			}
			_ = answer.Body.Close()
			if answer.StatusCode != http.StatusGatewayTimeout {
				t.Errorf("a call after the deadline: %d", answer.StatusCode)
			}
		}
		if _, err := w.run(); err != nil {
			t.Fatal(err)
		}
		if w.job.Timeout != 30*time.Second || w.lifetime != w.job.Timeout+keyGrace {
			t.Errorf("limit %s, lifetime of the key %s", w.job.Timeout, w.lifetime)
		}
	})
}

// TestWaitingForASlotDoesNotCountAsTheStepsTime: after a wait longer than its limit, an execution still has its full
// time.
func TestWaitingForASlotDoesNotCountAsTheStepsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.asked = time.Now().Add(-time.Hour)
		done, err := w.run()
		if outcome := done.Outcome(err); outcome != outcomes.OK {
			t.Errorf("%q, %v", outcome, err)
		}
		if w.job.Timeout != 30*time.Second || w.lifetime != w.job.Timeout+keyGrace {
			t.Errorf("limit %s, lifetime of the key %s", w.job.Timeout, w.lifetime)
		}
		if !strings.Contains(w.log.String(), `"queue_ms":3600000,`) {
			t.Errorf("the log does not mention the wait:\n%s", &w.log)
		}
	})
}

// TestAListenerThatFails covers an address in use, before a key exists, and a listener whose Accept fails.
func TestAListenerThatFails(t *testing.T) {
	t.Run("taken", func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = taken.Close() }()
		w := newWorld(t, nil)
		id := minter.Identity{BusinessID: "b-1", AccountID: "a-1", AccountType: policy.ServiceAutomation, ExecutionID: "e-1"}
		_, err = w.host.Open(w.caller, id, Serving{Address: taken.Addr().String(), KeyLifetime: time.Minute})
		if err == nil || !strings.Contains(err.Error(), "address already in use") || w.story() != "" {
			t.Errorf("%v; what happened: %s", err, w.story())
		}
		w.requireLogged(t, outcomes.NotStarted)
	})
	t.Run("the proxy refuses its configuration", func(t *testing.T) {
		w := newWorld(t, nil)
		w.host.config.Proxy.Prewarm = -1
		done, err := w.run()
		if outcome := done.Outcome(err); outcome != outcomes.NotStarted || w.story() != "prepare discard close" {
			t.Errorf("%q, %v; what happened: %s", outcome, err, w.story())
		}
	})
	t.Run("an account type that does not exist", func(t *testing.T) {
		w := newWorld(t, nil)
		_, err := w.host.Run(w.caller, Request{Identity: minter.Identity{BusinessID: "b-1", AccountID: "a-1",
			AccountType: "service_x", ExecutionID: "e-1"}})
		if outcome := (Ended{}).Outcome(err); outcome != outcomes.NotStarted || w.story() != "prepare discard close" {
			t.Errorf("%q, %v; what happened: %s", outcome, err, w.story())
		}
	})
	t.Run("accepts nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			w.call = func(runner.Execution) { synctest.Wait() } // until Accept has failed
			w.listener.incoming = nil
			broken := &brokenListener{pipeListener: w.listener}
			w.host.interpreters = listening{fakeInterpreters{w}, broken}
			done, err := w.run()
			if outcome := done.Outcome(err); outcome != outcomes.OK || w.story() != "prepare mint start run close revoke" {
				t.Errorf("%q, %v; what happened: %s", outcome, err, w.story())
			}
			if !strings.Contains(w.log.String(), "could not accept a connection") {
				t.Errorf("the log does not mention the listener:\n%s", &w.log)
			}
		})
	})
}

// brokenListener fails in every Accept.
type brokenListener struct{ *pipeListener }

func (*brokenListener) Accept() (net.Conn, error) { return nil, errGone }

// listening returns interpreters with the given listener.
type listening struct {
	fakeInterpreters
	listener net.Listener
}

func (l listening) prepare(ctx context.Context, runtime runner.Runtime, limits runner.Limits) (interpreter, error) {
	prepared, err := l.fakeInterpreters.prepare(ctx, runtime, limits)
	return listeningOne{prepared, l.listener}, err
}

type listeningOne struct {
	interpreter
	listener net.Listener
}

func (l listeningOne) Listener() net.Listener { return l.listener }

// TestTheKeyOfAStandaloneProxyIsRevokedOnce: this holds with and without an earlier interrupt. The end is logged.
func TestTheKeyOfAStandaloneProxyIsRevokedOnce(t *testing.T) {
	for name, interrupt := range map[string]bool{"closed": false, "interrupted, then closed": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				id := minter.Identity{BusinessID: "b-1", AccountID: "a-1", AccountType: policy.ServiceAutomation,
					ExecutionID: "e-1"}
				a, err := w.host.Open(w.caller, id, Serving{Listener: w.listener, KeyLifetime: time.Minute})
				if err != nil {
					t.Fatal(err)
				}
				want := "mint close revoke"
				if interrupt {
					w.cancel(ErrCancelled)
					a.Revoke(w.caller)
					want = "mint revoke close"
				}
				a.Close(w.caller, 0)
				if w.story() != want {
					t.Errorf("what happened: %s, want %s", w.story(), want)
				}
				w.requireLogged(t, outcomes.OK)
			})
		})
	}
}
