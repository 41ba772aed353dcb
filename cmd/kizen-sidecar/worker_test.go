package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/kizen/kizen-sidecar/internal/payload"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

const webhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// enqueue puts executions into the queue as an orchestrator does.
func enqueue(t *testing.T, store *redis.Client, bodies ...step) {
	t.Helper()
	client := asynq.NewClientFromRedisClient(store)
	for _, body := range bodies {
		payload, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprintf("b-1/%v", body["execution_id"])
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("kizen:execution", payload), asynq.Queue("kizen"), asynq.TaskID(id)); err != nil {
			t.Fatal(err)
		}
	}
}

func forFleet(id, source string) step {
	return script(source).with("execution_id", id).with("business_id", "b-1").with("user_id", "u-1")
}

// endings returns the outcomes of the finished executions of b-1, by id.
func endings(t *testing.T, store *redis.Client) map[string]string {
	t.Helper()
	keys, err := store.Keys(t.Context(), "kizen:{b-1}:run:*").Result()
	if err != nil {
		t.Fatal(err)
	}
	ended := map[string]string{}
	for _, key := range keys {
		if outcome := store.HGet(t.Context(), key, "outcome").Val(); outcome != "" {
			ended[strings.TrimPrefix(key, "kizen:{b-1}:run:")] = outcome
		}
	}
	return ended
}

// resultIn returns the result of an execution of b-1 from its record.
func resultIn(t *testing.T, store *redis.Client, id string) string {
	t.Helper()
	document, err := payload.Expand([]byte(store.HGet(t.Context(), "kizen:{b-1}:run:"+id, "result").Val()))
	if err != nil {
		t.Fatal(err)
	}
	return string(document)
}

// tally is an API that counts the calls of each execution, and can hold them.
type tally struct {
	*httptest.Server
	mu   sync.Mutex
	ran  map[string]int
	held int
	// hold is how many calls are answered before all others wait for release.
	hold    int
	release chan struct{}
}

func newTally(t *testing.T, hold int) *tally {
	t.Helper()
	a := &tally{ran: map[string]int{}, hold: hold, release: make(chan struct{})}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.ran[strings.TrimPrefix(r.URL.Path, "/api/ran/")]++
		held := len(a.ran) > a.hold
		if held {
			a.held++
		}
		a.mu.Unlock()
		if held {
			select {
			case <-a.release:
			case <-r.Context().Done():
			}
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *tally) look() (ran, held int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.ran), a.held
}

// receiver accepts callbacks, verifies them, and refuses each one the first time.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	tried    map[string]int
	outcomes map[string]string // by execution
	late     int               // messages about late results
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(webhookSecret)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{tried: map[string]int{}, outcomes: map[string]string{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		if err := verifier.Verify(body, request.Header); err != nil {
			t.Errorf("a callback is not signed: %v", err)
		}
		var message struct {
			Type string
			Data struct {
				ID      string          `json:"execution_id"`
				Outcome string          `json:"outcome"`
				Result  json.RawMessage `json:"result"`
			} `json:"data"`
		}
		if err := json.Unmarshal(body, &message); err != nil {
			t.Errorf("a callback is not a message: %v", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		id := request.Header.Get("webhook-id")
		if r.tried[id]++; r.tried[id] == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if message.Type == "execution.late_result" { // it does not change the outcome
			r.late++
			return
		}
		if previous := r.outcomes[message.Data.ID]; previous != "" && previous != message.Data.Outcome {
			t.Errorf("two callbacks say that %s ended %s and %s", message.Data.ID, previous, message.Data.Outcome)
		}
		r.outcomes[message.Data.ID] = message.Data.Outcome
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.outcomes)
}

func startWorker(t *testing.T, redisURL, apiRoot string, more ...string) *served {
	t.Helper()
	secret := writeFile(t, t.TempDir(), "webhook.secret", webhookSecret)
	return startServing(t, append([]string{"worker", "--redis-url", redisURL, "--api-root", apiRoot, "--lease", "3s",
		"--webhook-secret-file", secret, "--webhook-allow", "127.0.0.0/8"}, more...)...)
}

// TestWorkerKeepsDeadLetters: a task that cannot be parsed becomes a dead letter, and a request that can be parsed but
// not run ends as refused. The task comes from a real queue, and the worker ends cleanly.
func TestWorkerKeepsDeadLetters(t *testing.T) {
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	inspector := asynq.NewInspectorFromRedisClient(store)
	api := newTally(t, 10)
	w := startWorker(t, redisURL, api.URL+"/api", "--slots", "1")
	enqueue(t, store, forFleet("e-1", "pass").with("execution_id", "no id"),
		forFleet("e-2", "pass").with("runtime", "ruby"))
	waitFor(t, func() bool {
		tasks, err := inspector.ListArchivedTasks("kizen")
		return err == nil && len(tasks) == 1 && endings(t, store)["e-2"] != ""
	})
	if ended := endings(t, store); ended["e-2"] != "refused" || len(ended) != 1 {
		t.Errorf("ended %v", ended)
	}
	if code := w.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	requireNoRecords(t, redisURL)
}

// TestABrokenWorkerTakesNothing: neither a worker without a Python nor one with too few file descriptors takes
// executions. Working workers run them, and no execution is given up.
func TestABrokenWorkerTakesNothing(t *testing.T) {
	t.Parallel()
	const total = 12
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	api := newTally(t, total)
	broken := startWorker(t, redisURL, api.URL+"/api", "--slots", "2", "--attempts", "1", "--python", "/no/such/python")
	command := sidecarCommand(context.Background(), nil, "worker", "--redis-url", redisURL, "--api-root", api.URL+"/api",
		"--attempts", "1")
	command.Args = append([]string{"sh", "-c", `ulimit -n 40; exec "$0" "$@"`, command.Path}, command.Args[1:]...)
	command.Path = "/bin/sh"
	poor := sidecartest.StartCommand(t, command)
	for _, log := range []*sidecartest.Buffer{broken.Log, poor.Log} {
		waitFor(t, func() bool {
			return strings.Contains(log.String(), "no executions are taken until this worker works again")
		})
	}
	for i := range total {
		id := fmt.Sprint("e-", i)
		enqueue(t, store, forFleet(id, "kizen.api.post('/ran/"+id+"').raise_for_status()"))
	}
	if status, body := broken.Readiness(); status != 503 || !strings.Contains(body, "/no/such/python") {
		t.Errorf("readiness %d %s", status, body)
	}
	startWorker(t, redisURL, api.URL+"/api", "--slots", "2")
	waitFor(t, func() bool { return len(endings(t, store)) == total })
	for id, outcome := range endings(t, store) {
		if outcome != "ok" || api.ran[id] != 1 {
			t.Errorf("%s ended %s and ran %d times", id, outcome, api.ran[id])
		}
	}
	for _, log := range []string{broken.Log.String(), poor.Log.String()} {
		if strings.Contains(log, "an execution was not started") || strings.Contains(log, `"msg":"execution ended"`) {
			t.Errorf("a broken worker took executions: %s", log)
		}
	}
}

// TestWorkerNeedsNoMoreThanItsDocumentedUser runs a worker as the documented user, and makes it take over from a dead
// one.
func TestWorkerNeedsNoMoreThanItsDocumentedUser(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(projectRoot, "docs/fleet.md"))
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile(`(?m)^user kizen-worker (.*)$`).FindSubmatch(page)
	if rules == nil {
		t.Fatal("the page documents no user")
	}
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	user := []any{"ACL", "SETUSER", "kizen-worker"}
	for _, rule := range strings.Fields(string(rules[1])) {
		user = append(user, rule)
	}
	if err := store.Do(t.Context(), user...).Err(); err != nil {
		t.Fatal(err)
	}
	api, callbacks := newTally(t, 0), newReceiver(t)
	confined := strings.Replace(redisURL, "redis://", "redis://kizen-worker:PASSWORD@", 1)
	victim := startWorker(t, confined, api.URL+"/api", "--slots", "1")
	enqueue(t, store, forFleet("dies", "kizen.api.post('/ran/dies')").with("callback_url", callbacks.URL))
	waitFor(t, func() bool { _, held := api.look(); return held == 1 })
	_ = victim.Process.Signal(syscall.SIGKILL)
	<-victim.Ended
	close(api.release)
	w := startWorker(t, confined, api.URL+"/api", "--slots", "1")
	enqueue(t, store, forFleet("runs", "kizen.api.post('/ran/runs')").with("callback_url", callbacks.URL))
	waitFor(t, func() bool { return callbacks.count() == 2 })
	if ended := endings(t, store); ended["dies"] != "worker_died" || ended["runs"] != "ok" {
		t.Errorf("ended %v", ended)
	}
	if code := w.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if denied := store.Do(t.Context(), "ACL", "LOG").Val(); fmt.Sprint(denied) != "[]" {
		t.Errorf("redis denied %v", denied)
	}
}

// TestWorkerDrains: after SIGTERM, a worker is not ready, finishes its step and leaves the waiting task to the next
// worker. Two processes share a real Redis, in which the first leaves nothing of itself.
func TestWorkerDrains(t *testing.T) {
	t.Parallel()
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	api := newTally(t, 0)
	w := startWorker(t, redisURL, api.URL+"/api", "--slots", "1")
	enqueue(t, store, forFleet("runs", "kizen.api.post('/ran/runs')"), forFleet("waits", "kizen.api.post('/ran/waits')"))
	waitFor(t, func() bool { _, held := api.look(); return held == 1 })
	waitFor(t, func() bool { status, _ := w.Readiness(); return status == 200 })
	if _, metrics := get(t, w.Admin+"/metrics"); !strings.Contains(metrics, `kizen_fleet_queue_depth{queue="kizen"} 1`) ||
		!strings.Contains(metrics, "\nkizen_execution_slot_usage 1\n") {
		t.Errorf("metrics %s", metrics)
	}
	if err := w.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { status, _ := w.Readiness(); return status == 503 })
	close(api.release)
	if code := w.ExitCode(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if ended := endings(t, store); ended["runs"] != "ok" || ended["waits"] != "" {
		t.Errorf("ended %v", ended)
	}
	for _, pattern := range []string{"kizen:fleet:*:worker*", "kizen:fleet:*:held:*", "kizen:fleet:*:keeper",
		"kizen:*:key:*"} {
		if left := store.Keys(context.Background(), pattern).Val(); len(left) != 0 {
			t.Errorf("left in redis: %v", left)
		}
	}
	again := startWorker(t, redisURL, api.URL+"/api", "--slots", "1")
	waitFor(t, func() bool { return endings(t, store)["waits"] == "ok" })
	if code := again.Stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestASecondSIGTERMEndsADrain: steps are cut off, and their keys are revoked.
func TestASecondSIGTERMEndsADrain(t *testing.T) {
	t.Parallel()
	redisURL := startRedisServer(t)
	store := redisClient(t, redisURL)
	for _, what := range []string{"worker", "serve"} {
		t.Run(what, func(t *testing.T) {
			api := newTally(t, 0)
			var s *served
			if what == "worker" {
				s = startWorker(t, redisURL, api.URL+"/api", "--drain-timeout", "1h")
				enqueue(t, store, forFleet("held", "while True: kizen.api.post('/ran/held')"))
			} else {
				s = startServe(t, "--redis-url", redisURL, "--api-root", api.URL+"/api", "--drain-timeout", "1h")
				go func() { // the response, if any, is that of a step that was cut off
					_, _ = s.try(context.Background(), "b-1", "POST", "/api/coderunner/run",
						script("while True: kizen.api.post('/ran/held')"))
				}()
			}
			waitFor(t, func() bool { _, held := api.look(); return held == 1 })
			_ = s.Process.Signal(syscall.SIGTERM)
			waitFor(t, func() bool { return strings.Contains(s.Log.String(), "draining") })
			_ = s.Process.Signal(syscall.SIGTERM)
			if code := s.ExitCode(); code != exitOK {
				t.Errorf("exit code %d", code)
			}
			if left := store.Keys(context.Background(), "kizen:*:key:*").Val(); len(left) != 0 {
				t.Errorf("left in redis: %v", left)
			}
		})
	}
}
