package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
	"github.com/kizen/kizen-sidecar/internal/testkit/redistest"
	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// echoAPI is an API that serves all echoes of the corpus. It records the keys that it received.
type echoAPI struct {
	*httptest.Server
	mu   sync.Mutex
	keys map[string]bool
}

func newEchoAPI(t *testing.T) *echoAPI {
	a := &echoAPI{keys: map[string]bool{}}
	a.Server = httptest.NewServer(http.HandlerFunc(a.answer))
	t.Cleanup(a.Close)
	return a
}

func (a *echoAPI) answer(w http.ResponseWriter, r *http.Request) {
	a.saw(r.Header.Get("X-API-KEY"))
	for _, echo := range attacks.Echoes() {
		if r.URL.Path == apiRootPath+echo.Path {
			echo.Answer(w, r)
			return
		}
	}
}

func (a *echoAPI) saw(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[key] = true
}

// requireNoKey fails if a text contains the end of a key that the API saw.
func (a *echoAPI) requireNoKey(t *testing.T, where, text string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.keys) == 0 {
		t.Fatalf("%s: the API saw no key", where)
	}
	for key := range a.keys {
		if leaked := attacks.Leaked(key, text); leaked != "" {
			t.Errorf("%s contains the end of the key: %q", where, leaked)
			return
		}
	}
}

// requireSafe searches for the key in a whole result, and in the values that the step found.
func (a *echoAPI) requireSafe(t *testing.T, where, result string) {
	t.Helper()
	var d struct {
		Values struct{ Found struct{ V []string } }
		HTTP   *struct {
			Requests []struct{ Body, ResponseBody *string }
		} `json:"http_requests"`
		Logs []string
	}
	if err := json.Unmarshal([]byte(result), &d); err != nil || len(d.Values.Found.V) != attacks.EchoReadings() ||
		d.HTTP == nil || len(d.Logs) == 0 {
		t.Fatalf("%s: %v: the step did not read everything: %.3000s", where, err, result)
	}
	for i, text := range d.Values.Found.V {
		raw, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		a.requireNoKey(t, fmt.Sprintf("%s, what the step read (%d)", where, i), string(raw))
	}
	a.requireNoKey(t, where, result)
}

// TestNoLogAndNoCallbackContainsAnEchoedKey: neither a log line nor a callback contains a key that the API echoes.
// attacks_ways_test.go checks the results.
func TestNoLogAndNoCallbackContainsAnEchoedKey(t *testing.T) {
	t.Parallel()
	api := newEchoAPI(t)
	redisURL, box := startRedisServer(t), newMailbox(t)
	enqueue(t, redisClient(t, redisURL), forFleet("e-1", attacks.EchoStep()).with("output_types",
		map[string]string{"found": "a[s]"}).with("callback_url", box.URL))
	w := startWorker(t, redisURL, api.URL+"/api")
	waitFor(t, func() bool { return len(box.of(t, "e-1")) > 1 })
	api.requireSafe(t, "the callback", string(box.of(t, "e-1")[1].message(t).Data.Result))
	api.requireNoKey(t, "the log", w.Log.String())
}

// TestAStepCannotReadItsKeyThroughNginxThatCompresses: a real nginx compresses and cuts what an echoing API returns,
// and the step still finds no part of its key. Go's own HTTP servers do not answer like nginx.
func TestAStepCannotReadItsKeyThroughNginxThatCompresses(t *testing.T) {
	t.Parallel()
	api, address := newEchoAPI(t), sidecartest.FreeAddress(t)
	dir := t.TempDir()
	redistest.StartNginx(t, dir, strings.NewReplacer("DIR", dir, "ADDRESS", address, "API", api.URL).Replace(`
daemon off;
pid DIR/pid;
error_log stderr notice;
events {}
http {
    access_log off;
    client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
    gzip on; gzip_min_length 1; gzip_types *; gzip_http_version 1.0; gzip_proxied any;
    server {
        listen ADDRESS;
        location / { proxy_pass API; proxy_force_ranges on; }
    }
}`))
	waitFor(t, func() bool {
		response, err := http.Get("http://" + address + "/api/none")
		if err == nil {
			response.Body.Close()
		}
		return err == nil
	})
	script := writeFile(t, t.TempDir(), "script.py", attacks.EchoStep())
	got := sidecar(t, "", nil, "run", "--json", "--script", script, "--declare-output", "found:a[s]", "--api-root",
		"http://"+address+"/api")
	delete(api.keys, "") // of the request above
	api.requireSafe(t, "the document", got.stdout)
}

// TestAnOutputThatContainsTheKeyFailsTheStep: a step that gets its key in pieces which the proxy cannot detect cannot
// hand it out. The check of outputs, the logs and the caller's answer of serve meet.
func TestAnOutputThatContainsTheKeyFailsTheStep(t *testing.T) {
	api := newEchoAPI(t)
	// The API splits the key into fields, which the proxy cannot detect. The step joins them.
	api.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("X-API-KEY")
		api.saw(key)
		_ = json.NewEncoder(w).Encode(strings.Split(key, "")) // the step may have ended
	})
	step := "key = ''.join(kizen.api.get('/x').json())\noutputs.log(key)\nprint(key)\noutputs.x = key"
	s := startServe(t, "--api-root", api.URL+"/api")
	got := s.ask("POST", "/api/coderunner/run", script(step).with("output_types", map[string]string{"x": "s"}))
	if got.status != 400 || !strings.Contains(got.body, `output \"x\" contains the key of this execution`) {
		t.Errorf("%d %s", got.status, got.body)
	}
	api.requireNoKey(t, "the answer", got.body)
	api.requireNoKey(t, "the log", s.Log.String())
}
