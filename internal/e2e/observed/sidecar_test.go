package observed

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

func TestMain(m *testing.M) { os.Exit(sidecartest.Main(m, "kizen-sidecar")) }

// served is a running serve.
type served struct {
	*sidecartest.Service
	t *testing.T
}

func serve(t *testing.T, environment []string, arguments ...string) *served {
	t.Helper()
	return &served{sidecartest.StartService(t, environment,
		append([]string{"serve", "--listen", "127.0.0.1:0"}, arguments...)...), t}
}

// run runs a step and returns the response.
func (s *served) run(traceparent string, body map[string]any) (status int, answer string) {
	s.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.URL+"/api/coderunner/run",
		bytes.NewReader(text))
	if err != nil {
		s.t.Fatal(err)
	}
	s.Authorize(request)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-BUSINESS-ID", "b-1")
	request.Header.Set("X-USER-ID", "u-1")
	if traceparent != "" {
		request.Header.Set("traceparent", traceparent)
		request.Header.Set("tracestate", "vendor=1")
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, string(data)
}

// stop ends serve, which first exports its remaining telemetry.
func (s *served) stop() {
	s.t.Helper()
	if code := s.Stop(); code != 0 {
		s.t.Errorf("serve ended with %d", code)
	}
}

func script(source string) map[string]any {
	return map[string]any{"runtime": "python-3-13", "user_script": source}
}

// api is an API that keeps the headers of its requests.
type api struct {
	*httptest.Server
	mu   sync.Mutex
	sent []*http.Request
	text []string // bodies
}

func startAPI(t *testing.T) *api {
	a := &api{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a.mu.Lock()
		a.sent, a.text = append(a.sent, r), append(a.text, string(body))
		a.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		if strings.Contains(r.URL.Path, "missing") {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, `{"count": 2}`) // best effort: the caller may have disconnected
	}))
	t.Cleanup(a.Close)
	return a
}

// header returns the values of a header sent to path.
func (a *api) header(path, name string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.sent {
		if r.URL.Path == path {
			return r.Header.Get(name)
		}
	}
	return ""
}
