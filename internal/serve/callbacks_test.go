package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/execution"
	"github.com/kizen/kizen-sidecar/internal/outcomes"
	"github.com/kizen/kizen-sidecar/internal/queue"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/webhook"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/runner"
)

// ends finishes executions that have a callback URL.
type ends struct {
	t       *testing.T
	service *Registry
	log     *lockedBuffer
}

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(data)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// newEnds makes executions end with err and lets c deliver their callbacks.
func newEnds(t *testing.T, err error, change func(*Callbacks)) *ends {
	t.Helper()
	log := &lockedBuffer{}
	secrets, opened := webhook.ParseSecrets([]byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
	if opened != nil {
		t.Fatal(opened)
	}
	config := webhook.Config{Secrets: secrets, Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	c, opened := NewCallbacks(config, 0, slog.New(slog.NewTextHandler(log, nil)))
	if opened != nil {
		t.Fatal(opened)
	}
	change(c)
	slots, opened := queue.New(4, 1000)
	if opened != nil {
		t.Fatal(opened)
	}
	service := NewRegistry(RegistryConfig{Queue: slots, Finished: c.Finished,
		Run: func(context.Context, execution.Request) (execution.Ended, error) {
			return execution.Ended{Result: runner.Result{Outcome: outcomes.OK}}, err
		}})
	t.Cleanup(func() {
		if err := service.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		c.Close(0)
	})
	return &ends{t, service, log}
}

func (e *ends) submit(business, id, callback string) {
	e.t.Helper()
	_, err := e.service.Submit(execution.Request{Identity: minter.Identity{BusinessID: business, ExecutionID: id}}, nil,
		callback)
	if err != nil {
		e.t.Fatal(err)
	}
}

// TestReceiversThatHangDelayNoOtherBusiness: as soon as one attempt ends, the other business must get its turn.
func TestReceiversThatHangDelayNoOtherBusiness(t *testing.T) {
	t.Parallel()
	release, told := make(chan struct{}), make(chan struct{})
	var hanging atomic.Int64
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/told" {
			close(told)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body) // the server notices only then that the sender has disconnected
		hanging.Add(1)
		select {
		case <-release:
			w.WriteHeader(http.StatusInternalServerError)
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(receiver.Close)
	e := newEnds(t, nil, func(*Callbacks) {})
	for i := range 2 * callbacksAtOnce {
		e.submit("greedy", fmt.Sprint(i), receiver.URL+"/hangs")
	}
	redistest.Await(t, "the maximal number of attempts", func() bool { return hanging.Load() == callbacksAtOnce })
	e.submit("modest", "e", receiver.URL+"/told")
	release <- struct{}{}
	<-told
}

func TestWaitingCallbacksAreBounded(t *testing.T) {
	e := newEnds(t, nil, func(c *Callbacks) { c.memory = queue.NewBudget(1) })
	e.submit("b", "e", "https://example.com/")
	redistest.Await(t, "the callback to be refused",
		func() bool { return strings.Contains(e.log.String(), "too many callbacks wait") })
}

func TestACallbackContainsTheReasonWhyAStepDidNotRun(t *testing.T) {
	told := make(chan []byte, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		told <- body
	}))
	t.Cleanup(receiver.Close)
	e := newEnds(t, fmt.Errorf("no python: %w", runner.ErrNoPython), func(*Callbacks) {})
	e.submit("b", "e", receiver.URL)
	var message struct{ Data webhook.Finished }
	if body := <-told; json.Unmarshal(body, &message) != nil || message.Data.Outcome != outcomes.NotStarted ||
		!strings.Contains(string(message.Data.Result), "no python") ||
		!strings.Contains(string(message.Data.Result), `"kind":"not_started"`) {
		t.Errorf("the callback is %s", body)
	}
}
