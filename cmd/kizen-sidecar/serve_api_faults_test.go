package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// apiAt starts an API at an address, which may have been in use before.
func apiAt(t *testing.T, address string, handler http.Handler) *httptest.Server {
	t.Helper()
	var listener net.Listener
	waitFor(t, func() bool {
		var err error
		listener, err = net.Listen("tcp", address)
		return err == nil
	})
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}}
	server.Start()
	t.Cleanup(server.Close)
	return server
}

// fine answers every call, and counts the calls.
func fine(calls *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.WriteHeader(http.StatusNoContent)
	})
}

// TestServeSurvivesAnOutageOfItsAPI: while the API is gone, steps get a 502 and serve stays ready. After the API
// returns, calls succeed, and the process has kept no connection or file of the outage.
func TestServeSurvivesAnOutageOfItsAPI(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	var calls atomic.Int64
	api := apiAt(t, address, fine(&calls))
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "0", "--slots", "4", "--api-root",
		"http://"+address+"/api").settle(4)
	calls.Store(0)
	s.ask("POST", "/executions", script(`
statuses = []
while not statuses or statuses[-1] == 204:
    statuses.append(kizen.api.get("/x").status_code)
response = kizen.api.post("/x", json={})
outputs.log(f"{statuses[0]}, then {statuses[-1]} and {response.status_code}: {response.text}")`).with("execution_id", "runs"))
	waitFor(t, func() bool { return calls.Load() > 1 }) // the first has been answered
	api.CloseClientConnections()
	api.Close()
	events := s.events("runs")
	if said := events.until("log"); !strings.Contains(said, "204, then 502 and 502") {
		t.Errorf("the step saw %s", said)
	}
	if ended := events.until("finished"); !strings.Contains(ended, `"outcome":"ok"`) {
		t.Errorf("finished with %s", ended)
	}
	if status, body := s.Readiness(); status != 200 {
		t.Errorf("not ready because of the API: %d %s", status, body)
	}
	got := s.ask("POST", "/api/coderunner/run", script("outputs.log(kizen.api.get('/x').status_code)"))
	if got.status != 200 || !strings.Contains(got.body, `"logs":["502"]`) {
		t.Errorf("without the API: %d %s", got.status, got.body)
	}
	apiAt(t, address, fine(&calls))
	got = s.ask("POST", "/api/coderunner/run", script("outputs.log(kizen.api.get('/x').status_code)"))
	if got.status != 200 || !strings.Contains(got.body, `"logs":["204"]`) {
		t.Errorf("with the API again: %d %s", got.status, got.body)
	}
	s.requireWell()
}

// slowAPI has paths that never answer, that answer byte by byte without end, and that never read the request. Other
// paths answer at once.
type slowAPI struct {
	*httptest.Server
	held atomic.Int64
}

func newSlowAPI(t *testing.T) *slowAPI {
	t.Helper()
	api := &slowAPI{}
	hold := func(r *http.Request, drip func() error) {
		api.held.Add(1)
		defer api.held.Add(-1)
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-r.Context().Done():
				return
			case <-ticker.C:
				if drip() != nil {
					return
				}
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/api/hangs", func(_ http.ResponseWriter, r *http.Request) { hold(r, func() error { return nil }) })
	mux.HandleFunc("/api/drips", func(w http.ResponseWriter, r *http.Request) {
		hold(r, func() error {
			if _, err := w.Write([]byte(" ")); err != nil {
				return err
			}
			return http.NewResponseController(w).Flush()
		})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	api.Server = httptest.NewServer(mux)
	t.Cleanup(api.Close)
	return api
}

// TestServeEndsStepsThatASlowAPIDelays: a call that hangs or drips ends with the step's time limit, its own timeout or
// its caller, beside other steps. The API's side of the connection shows that it ended.
func TestServeEndsStepsThatASlowAPIDelays(t *testing.T) {
	t.Parallel()
	api := newSlowAPI(t)
	s := try(t, startRedisServer(t), t.TempDir(), "--warm", "0", "--slots", "4", "--timeout", "20s", "--api-root",
		api.URL+"/api").settle(4)
	for name, source := range map[string]string{
		"hangs":   "kizen.api.get('/hangs')",
		"drips":   "kizen.api.get('/drips')",
		"threads": "import threading\nall = [threading.Thread(target=kizen.api.get, args=('/hangs',)) for _ in range(8)]\nfor t in all: t.start()\nfor t in all: t.join()",
	} {
		t.Run(name, func(t *testing.T) {
			got := s.ask("POST", "/executions", script(source).with("execution_id", name).with("timeout_ms", 1500))
			if got.status != 202 {
				t.Fatalf("%d %s", got.status, got.body)
			}
			if beside := s.ask("POST", "/api/coderunner/run", script("outputs.log(kizen.api.get('/x').status_code)")); beside.status != 200 {
				t.Errorf("meanwhile: %d %s", beside.status, beside.body)
			}
			if ended := s.events(name).until("finished"); !strings.Contains(ended, `"outcome":"timeout"`) {
				t.Errorf("finished with %s", ended)
			}
			waitFor(t, func() bool { return api.held.Load() == 0 })
		})
	}
	t.Run("a step that waits no longer", func(t *testing.T) {
		got := s.ask("POST", "/api/coderunner/run", script(`
import requests
try:
    kizen.api.get("/hangs", timeout=0.3)
except requests.exceptions.ReadTimeout:
    outputs.log("gave up")`))
		if got.status != 200 || !strings.Contains(got.body, `"logs":["gave up"]`) ||
			!strings.Contains(got.body, `"requestErrorType":"ReadTimeout"`) {
			t.Errorf("%d %s", got.status, got.body)
		}
		waitFor(t, func() bool { return api.held.Load() == 0 })
	})
	t.Run("a caller that waits no longer", func(t *testing.T) {
		ctx, hangUp := context.WithCancel(t.Context())
		answered := make(chan error, 1)
		go func() {
			_, err := s.try(ctx, "b-1", "POST", "/api/coderunner/run", script("kizen.api.get('/hangs')"))
			answered <- err
		}()
		waitFor(t, func() bool { return api.held.Load() == 1 })
		hangUp()
		if err := <-answered; err == nil {
			t.Error("it got a response")
		}
		waitFor(t, func() bool { return api.held.Load() == 0 })
	})
	s.requireWell()
}
