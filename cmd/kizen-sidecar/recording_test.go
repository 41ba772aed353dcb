package main

import (
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// apiRootPath is the path of the recording API's root.
const apiRootPath = "/api"

// route is one answer of the recording API, in the form of case.json.
type route struct {
	Method    string           `json:"method"`
	Path      string           `json:"path"`
	Responses []cannedResponse `json:"responses"`
}

type cannedResponse struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	JSON    json.RawMessage   `json:"json"`
	Text    string            `json:"text"`
}

// call is one request as the recording API saw it.
type call struct {
	method string
	target string // raw, as on the request line
	header http.Header
	body   []byte
}

// recordingAPI imitates the platform: it answers from its routes and records its requests.
type recordingAPI struct {
	*httptest.Server
	mu     sync.Mutex
	routes []route
	served map[int]int
	calls  []call
}

func newRecordingAPI(t testing.TB) *recordingAPI {
	t.Helper()
	api := &recordingAPI{served: map[int]int{}}
	api.Server = httptest.NewServer(http.HandlerFunc(api.serve))
	t.Cleanup(api.Close)
	return api
}

// root returns the API root for the sidecar.
func (a *recordingAPI) root() string { return a.URL + apiRootPath }

// expect sets the routes: paths relative to the API root, or whole URLs of
// this server.
func (a *recordingAPI) expect(routes []route) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.routes, a.served, a.calls = routes, map[int]int{}, nil
}

// apiCalls returns the calls below the API root, with paths relative to it.
func (a *recordingAPI) apiCalls() []call {
	a.mu.Lock()
	defer a.mu.Unlock()
	var below []call
	for _, c := range a.calls {
		if path, ok := strings.CutPrefix(c.target, apiRootPath); ok {
			c.target = path
			below = append(below, c)
		}
	}
	return below
}

func (a *recordingAPI) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the request was cut off
	}
	a.mu.Lock()
	a.calls = append(a.calls, call{r.Method, r.RequestURI, r.Header.Clone(), body})
	answer, found := a.answer(r)
	a.mu.Unlock()
	if !found {
		http.Error(w, `{"detail": "no such route"}`, http.StatusNotFound)
		return
	}
	for name, value := range answer.Headers {
		w.Header().Set(name, value)
	}
	payload := []byte(answer.Text)
	if len(answer.JSON) > 0 {
		w.Header().Set("Content-Type", "application/json")
		payload = answer.JSON
	}
	w.WriteHeader(cmp.Or(answer.Status, http.StatusOK))
	_, _ = w.Write(payload) // the client may have disconnected
}

func (a *recordingAPI) answer(r *http.Request) (cannedResponse, bool) {
	for i, route := range a.routes {
		target := apiRootPath + route.Path
		if rest, ok := strings.CutPrefix(route.Path, a.URL); ok {
			target = rest
		}
		if route.Method != r.Method || target != r.RequestURI {
			continue
		}
		next := min(a.served[i], len(route.Responses)-1)
		a.served[i]++
		return route.Responses[next], true
	}
	return cannedResponse{}, false
}
