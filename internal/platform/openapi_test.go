package platform

import (
	"bytes"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	openapi "github.com/pb33f/libopenapi-validator/config"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"

	"github.com/kizen/kizen-sidecar/internal/redisconn"
	"github.com/kizen/kizen-sidecar/minter"
	"github.com/kizen/kizen-sidecar/policy"
)

// apiDescription is the API's description, parsed by a third-party library. In strict mode, the library rejects
// everything that is not described.
var apiDescription = sync.OnceValues(func() (described, error) {
	text, err := openAPIDocument()
	if err != nil {
		return described{}, err
	}
	document, err := libopenapi.NewDocument(text)
	if err != nil {
		return described{}, err
	}
	model, err := document.BuildV3Model()
	if err != nil {
		return described{}, err
	}
	v, errs := validator.NewValidator(document, openapi.WithStrictMode(), openapi.WithStrictServerMatching(),
		openapi.WithFormatAssertions(),
		// Every response has the first of these headers. The platform ignores the others.
		openapi.WithStrictIgnoredHeadersExtra(minter.HeaderAccount, "X-Http-Method-Override", "X-Http-Method",
			"X-Method-Override", "X-Original-Url"))
	if len(errs) > 0 {
		return described{}, errs[0]
	}
	return described{&model.Model, v}, nil
})

type described struct {
	model     *v3.Document
	validator validator.Validator
}

func describe(t *testing.T) described {
	t.Helper()
	d, err := apiDescription()
	must(t, err)
	return d
}

// check validates a response, and the request if it succeeded, against the description. All calls of all tests are
// checked.
func (d described) check(t *testing.T, request *http.Request, body string, status int, header http.Header,
	answer []byte) {
	t.Helper()
	if status == http.StatusMethodNotAllowed || request.URL.Path == "/openapi.json" || !d.knows(request) {
		return // another test validates the description itself
	}
	sent := request.Clone(request.Context())
	sent.Body = io.NopCloser(strings.NewReader(body))
	if body != "" {
		sent.Header.Set("Content-Type", "application/json")
	}
	response := &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(bytes.NewReader(answer)),
		Request: sent}
	answered, errs := d.validator.ValidateHttpResponse(sent, response)
	if status < 300 && answered {
		_, errs = d.validator.ValidateHttpRequest(sent)
	}
	for _, err := range errs {
		t.Errorf("%s %s, answered with %d, does not match openapi.yaml: %s: %s: %v\n%s",
			request.Method, request.URL, status, err.Message, err.Reason, err.SchemaValidationErrors, answer)
	}
}

// knows reports whether a path of the description matches a request. Other requests are tests of unknown paths.
func (d described) knows(request *http.Request) bool {
	for route := range d.routes() {
		_, path, _ := strings.Cut(route, " ")
		if ok, _ := regexp.MatchString("^"+parameter.ReplaceAllString(regexp.QuoteMeta(path), `[^/]+`)+"$", request.URL.EscapedPath()); ok {
			return true
		}
	}
	return false
}

var parameter = regexp.MustCompile(`\\\{[^/]*\\\}`)

// routes returns the operation IDs by "METHOD /whole/path".
func (d described) routes() map[string]string {
	routes := map[string]string{}
	for path, item := range d.model.Paths.PathItems.FromOldest() {
		root := d.model.Servers[0].URL
		if len(item.Servers) > 0 {
			root = strings.TrimSuffix(item.Servers[0].URL, "/")
		}
		for method, operation := range item.GetOperations().FromOldest() {
			routes[strings.ToUpper(method)+" "+root+path] = operation.OperationId
		}
	}
	return routes
}

func TestEveryRouteIsDescribedAndEveryDescriptionIsServed(t *testing.T) {
	documented := describe(t).routes()
	store, err := redisconn.StartEmbedded()
	must(t, err)
	defer store.Close()
	client, err := redisconn.Open(redisconn.Config{Embedded: store})
	must(t, err)
	defer func() { _ = client.Close() }()
	keys, err := minter.GenerateKeySet()
	must(t, err)
	p, err := New(Config{Redis: client, Keys: keys, EmailDomain: "accounts.example.com",
		Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	served, heads := map[string]bool{}, map[string]bool{}
	for _, r := range p.routes().Routes() {
		path := regexp.MustCompile(`:(\w+)`).ReplaceAllString(r.Path, "{$1}")
		if path == "/verify" && r.Method != "GET" || path == "/verify/*path" {
			continue // one handler for every method and every path below
		}
		if r.Method == "HEAD" {
			heads[path] = true
			continue // the same handler as GET
		}
		served[r.Method+" "+path] = true
		if documented[r.Method+" "+path] == "" {
			t.Errorf("%s %s is served but not described", r.Method, path)
		}
	}
	for route := range documented {
		if method, path, _ := strings.Cut(route, " "); method == "GET" && path != "/verify" && !heads[path] {
			t.Errorf("%s does not support HEAD", path)
		}
		if !served[route] {
			t.Errorf("%s is described but not served", route)
		}
	}
}

func TestDescriptionIsValidOpenAPI31AndServedToAnyone(t *testing.T) {
	if ok, errs := describe(t).validator.ValidateDocument(); !ok {
		t.Errorf("openapi.yaml: %+v", errs)
	}
	w := start(t)
	w.root = strings.TrimSuffix(w.root, apiRoot)
	if got := w.callAs(nil, "GET", "/openapi.json", ""); got.status != 200 || got.body["openapi"] != "3.1.0" {
		t.Errorf("%d, openapi %v", got.status, got.body["openapi"])
	}
}

// TestOperationsOfPoliciesAndOfTheDescriptionAgree compares the two lists of calls: a managed call that
// operations.yaml omits would need no permission.
func TestOperationsOfPoliciesAndOfTheDescriptionAgree(t *testing.T) {
	engine, err := policy.ForPlatform()
	must(t, err)
	ids := describe(t).routes()
	for route, id := range ids {
		method, path, _ := strings.Cut(route, " ")
		within := engine.Operations(method, strings.TrimPrefix(path, apiRoot))
		managed := strings.Contains(path, "/service-accounts") || strings.Contains(path, "/integrations")
		if managed && !slices.Contains(within, "manage_service_accounts") {
			t.Errorf("%s needs no permission: it is in %v", route, within)
		}
		if len(within) > 0 && within[0] != id && id != "retrieve_permission_groups" {
			t.Errorf("%s is %s here and %s in operations.yaml", route, id, within[0])
		}
	}
	for _, id := range []string{"create_api_key", "import_business_config", "export_business_config"} {
		if !slices.Contains(slices.Collect(maps.Values(ids)), id) {
			t.Errorf("%s is not served", id)
		}
	}
}

// TestTheCheckAgainstTheDescriptionCanFail ensures that the check, which all tests share, can fail.
func TestTheCheckAgainstTheDescriptionCanFail(t *testing.T) {
	d := describe(t)
	good := `{"count":0,"next":null,"previous":null,"results":[],"performed_by":{"id":"a","name":"b","account_type":"employee"}}`
	for name, c := range map[string]struct {
		status int
		body   string
		fits   bool
	}{
		"as described":             {200, good, true},
		"a field is missing":       {200, strings.Replace(good, `"count":0,`, "", 1), false},
		"an extra field":           {200, strings.Replace(good, `{"count"`, `{"secret":"x","count"`, 1), false},
		"an invalid result":        {200, strings.Replace(good, `[]`, `[{"id":"x"}]`, 1), false},
		"an undocumented status":   {418, `{"detail":"x","code":"y"}`, false},
		"a refusal without detail": {403, `{"code":"y"}`, false},
	} {
		request, err := http.NewRequestWithContext(t.Context(), "GET", "http://127.0.0.1/api/custom-objects", nil)
		must(t, err)
		ok, errs := d.validator.ValidateHttpResponse(request, &http.Response{
			StatusCode: c.status, Header: http.Header{"Content-Type": {"application/json"}},
			Body: io.NopCloser(strings.NewReader(c.body)), Request: request,
		})
		if ok != c.fits {
			t.Errorf("%s: %v %v", name, ok, errs)
		}
	}
}

func TestKeysAreServedWithCacheHeadersAndVerified(t *testing.T) {
	w := start(t)
	w.root = strings.TrimSuffix(w.root, apiRoot)
	keys := w.callAs(nil, "GET", "/.well-known/jwks.json", "")
	if keys.status != 200 || keys.header.Get("Cache-Control") != "public, max-age=300" || keys.header.Get("ETag") == "" ||
		len(list(keys, "keys")) == 0 {
		t.Errorf("jwks: %d %v %v", keys.status, keys.header, keys.body)
	}
	unchanged := w.callAs(http.Header{"If-None-Match": {keys.header.Get("ETag")}}, "GET", "/.well-known/jwks.json", "")
	if unchanged.status != 304 {
		t.Errorf("jwks with its ETag: %d", unchanged.status)
	}
	if got := w.call("GET", "/verify", ""); got.status != 200 || got.header.Get(minter.HeaderAccount) != testAccount ||
		got.header.Get(minter.HeaderExecution) != "execution-1" {
		t.Errorf("verify: %d %v", got.status, got.header)
	}
	if got := w.callAs(nil, "GET", "/verify", ""); got.status != 401 || got.body["error"] != minter.CodeMissing {
		t.Errorf("verify without a key: %d %v", got.status, got.body)
	}
}
