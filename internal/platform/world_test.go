package platform

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// world is a running platform and a minter on the same store.
type world struct {
	t       *testing.T
	root    string // the API root
	store   *redisconn.Embedded
	redis   redis.UniversalClient
	minter  *minter.Minter
	headers http.Header
	log     *logBuffer

	accounts int // how many plugin accounts the test has created
}

// start runs a platform on an embedded store.
func start(t *testing.T) *world {
	t.Helper()
	store, err := redisconn.StartEmbedded()
	must(t, err)
	t.Cleanup(store.Close)
	must(t, store.Share("127.0.0.1:0"))
	at, log := startPlatform(t, "--redis-url", store.URL())
	w := newWorld(t, at)
	w.store, w.log = store, log
	return w
}

// newWorld returns the world of a running platform.
func newWorld(t *testing.T, at ready) *world {
	t.Helper()
	client, err := redisconn.Open(redisconn.Config{URL: at.RedisURL})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	keys, err := minter.GenerateKeySet()
	must(t, err)
	m, err := minter.New(minter.Config{Redis: client, Keys: keys})
	must(t, err)
	w := &world{t: t, root: at.APIRoot, redis: client, minter: m}
	w.headers = w.headersFor(w.mint(identity()))
	return w
}

// startPlatform runs a platform until the test ends.
func startPlatform(t *testing.T, arguments ...string) (ready, *logBuffer) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ready.json")
	ctx, stop := context.WithCancel(context.Background())
	log, logged := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, append([]string{"--ready-file", file}, arguments...), logged)
		_ = logged.Close()
	}()
	waitForListening(t, log)
	kept := &logBuffer{}
	go func() { _, _ = io.Copy(kept, log) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the platform ended with %v", err)
		}
	})
	return readReady(t, file), kept
}

// logBuffer contains the log of a platform, once the platform listens.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func waitForListening(t *testing.T, log io.Reader) {
	t.Helper()
	var lines strings.Builder
	for scanner := bufio.NewScanner(log); scanner.Scan(); {
		lines.WriteString(scanner.Text() + "\n")
		if strings.Contains(scanner.Text(), `"msg":"listening"`) {
			return
		}
	}
	t.Fatalf("the platform does not listen:\n%s", lines.String())
}

func readReady(t *testing.T, file string) ready {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	var at ready
	must(t, json.Unmarshal(data, &at))
	return at
}

func identity() minter.Identity {
	return minter.Identity{AccountID: testAccount, AccountType: "service_automation", BusinessID: testBusiness,
		ExecutionID: "execution-1"}
}

func (w *world) mint(id minter.Identity) minter.Key {
	w.t.Helper()
	key, err := w.minter.Mint(w.t.Context(), id, time.Hour)
	must(w.t, err)
	return key
}

func (w *world) headersFor(key minter.Key) http.Header {
	h := http.Header{}
	h.Set(minter.HeaderKey, key.Token.Reveal())
	h.Set(minter.HeaderBusiness, key.Identity.BusinessID)
	h.Set(minter.HeaderUser, key.Identity.AccountID)
	return h
}

// The people of a business, with their levels.
const (
	admin        = "1b4e28ba-2fa1-41d2-883f-0016d3cca427" // remove
	editor       = "2c5ea4c0-4067-41fe-8d5f-0b9d3c9a1f11" // write
	viewer       = "3d6f0a82-5b1c-4c3e-9a67-5d1f0a7c2e22" // read
	unprivileged = "4e7f1b93-6c2d-4d4f-8b78-6e2f1b8d3f33" // none
)

// person returns the headers of an employee.
func (w *world) person(id string) http.Header { return w.signed(id, policy.Employee) }

// signed returns the headers of an account with a signed key.
func (w *world) signed(id, accountType string) http.Header {
	w.t.Helper()
	return w.headersFor(w.mint(minter.Identity{AccountID: id, AccountType: accountType, BusinessID: testBusiness,
		ExecutionID: "execution-2"}))
}

// stored returns the headers of an account with a stored key.
func stored(id, token string) http.Header {
	h := http.Header{}
	h.Set(minter.HeaderKey, token)
	h.Set(minter.HeaderBusiness, testBusiness)
	h.Set(minter.HeaderUser, id)
	return h
}

// integrationAccount creates an integration account, and returns its ID and the headers of its primary key.
func (w *world) integrationAccount(body string) (id string, headers http.Header) {
	w.t.Helper()
	created := w.want(201, w.person(admin), "POST", "/service-accounts", body)
	id = text(created, "id")
	return id, stored(id, w.tokens(id)["primary"])
}

// tokens returns the tokens of an account by kind.
func (w *world) tokens(id string) map[string]string {
	w.t.Helper()
	tokens := map[string]string{}
	for _, token := range list(w.want(200, w.person(viewer), "GET", "/service-accounts/"+id+"/tokens", ""), "results") {
		tokens[token["kind"].(string)] = token["token"].(string)
	}
	return tokens
}

// want makes a call and requires the status.
func (w *world) want(status int, headers http.Header, method, path, body string) answer {
	w.t.Helper()
	got := w.callAs(headers, method, path, body)
	if got.status != status {
		w.t.Fatalf("%s %s: got %d %v, want %d", method, path, got.status, got.body, status)
	}
	return got
}

// refused makes a call and requires a refusal with its code and, if policy is not empty, its policy.
func (w *world) refused(status int, code, policy string, headers http.Header, method, path, body string) {
	w.t.Helper()
	got := w.callAs(headers, method, path, body)
	if detail, _ := got.body["detail"].(string); got.status != status || got.body["code"] != code || detail == "" ||
		policy != "" && got.body["policy"] != policy {
		w.t.Errorf("%s %s: got %d %v, want %d %s %s", method, path, got.status, got.body, status, code, policy)
	}
}

// text returns a field of an answer.
func text(a answer, name string) string { s, _ := a.body[name].(string); return s }

// list returns a field of an answer that is a list of objects.
func list(a answer, name string) (objects []map[string]any) {
	values, _ := a.body[name].([]any)
	for _, v := range values {
		objects = append(objects, v.(map[string]any))
	}
	return objects
}

// column returns one field of each result of a page.
func column(a answer, name string) []string {
	values := []string{}
	for _, object := range list(a, "results") {
		values = append(values, object[name].(string))
	}
	return values
}

// answer is a response with its JSON decoded.
type answer struct {
	status int
	header http.Header
	body   map[string]any
}

func (w *world) call(method, path, body string) answer {
	w.t.Helper()
	return w.callAs(w.headers, method, path, body)
}

func (w *world) callAs(headers http.Header, method, path, body string) answer {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), method, w.root+path, strings.NewReader(body))
	must(w.t, err)
	if headers != nil {
		request.Header = headers.Clone()
	}
	response, err := http.DefaultClient.Do(request)
	must(w.t, err)
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	must(w.t, err)
	describe(w.t).check(w.t, request, body, response.StatusCode, response.Header, data)
	a := answer{status: response.StatusCode, header: response.Header}
	if len(data) > 0 {
		if err := json.Unmarshal(data, &a.body); err != nil {
			w.t.Fatalf("%s %s: not a JSON object: %s", method, path, data)
		}
	}
	return a
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
