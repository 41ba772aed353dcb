package serve

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	openapi "github.com/pb33f/libopenapi-validator/config"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"

	"github.com/kizen/kizen-sidecar/internal/outcomes"
)

// description is the API's description, read by a library in strict mode, which rejects anything not described.
type description struct {
	model     *v3.Document
	validator validator.Validator
	// keyed is for responses keyed by names that a schema cannot list.
	keyed validator.Validator
}

var readDescription = sync.OnceValues(func() (description, error) {
	text, err := openAPI()
	if err != nil {
		return description{}, err
	}
	document, err := libopenapi.NewDocument(text)
	if err != nil {
		return description{}, err
	}
	model, err := document.BuildV3Model()
	if err != nil {
		return description{}, err
	}
	v, errs := validator.NewValidator(document, openapi.WithStrictMode(), openapi.WithFormatAssertions(),
		openapi.WithStrictIgnorePaths("$.body.inputs.*"), // names chosen by the step; the schema describes their values
		openapi.WithStrictIgnoredHeadersExtra("Authorization", "Traceparent", "Sec-Fetch-Site", "Cache-Control",
			"X-Accel-Buffering", "WWW-Authenticate", "Connection"))
	if len(errs) > 0 {
		return description{}, errs[0]
	}
	keyed, errs := validator.NewValidator(document, openapi.WithFormatAssertions())
	if len(errs) > 0 {
		return description{}, errs[0]
	}
	return description{&model.Model, v, keyed}, nil
})

// checkDescribed checks a response against the description, and also the request if it was valid.
func checkDescribed(t *testing.T, sent *http.Request, body string, response *http.Response, answer []byte) {
	t.Helper()
	d, err := readDescription()
	if err != nil {
		t.Fatal(err)
	}
	request := sent.Clone(sent.Context())
	request.Body = io.NopCloser(strings.NewReader(body))
	copied := *response
	copied.Body = io.NopCloser(bytes.NewReader(answer))
	judge := d.validator
	if response.StatusCode == http.StatusBadRequest {
		judge = d.keyed
	}
	ok, errs := judge.ValidateHttpResponse(request, &copied)
	if response.StatusCode < 300 && ok {
		_, errs = d.validator.ValidateHttpRequest(request)
	}
	for _, err := range errs {
		t.Errorf("%s %s, answered with %d, does not match openapi.yaml: %s: %s: %v\n%s",
			sent.Method, sent.URL, response.StatusCode, err.Message, err.Reason, err.SchemaValidationErrors, answer)
	}
}

func TestEveryRouteIsDescribedAndEveryDescriptionIsServed(t *testing.T) {
	d, err := readDescription()
	if err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{}
	for path, item := range d.model.Paths.PathItems.FromOldest() {
		for method := range item.GetOperations().FromOldest() {
			described[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, r := range NewServer(Config{UI: true}).routes() {
		name := r.method + " " + regexp.MustCompile(`:(\w+)`).ReplaceAllString(r.path, "{$1}")
		if !described[name] {
			t.Errorf("%s is served but not described", name)
		}
		delete(described, name)
	}
	for name := range described {
		t.Errorf("%s is described but not served", name)
	}
}

func TestTheDescriptionListsEveryOutcome(t *testing.T) {
	var described struct {
		Components struct {
			Schemas struct {
				Execution struct {
					Properties struct {
						Outcome struct{ Enum []outcomes.Outcome } `json:"outcome"`
					} `json:"properties"`
				}
			} `json:"schemas"`
		} `json:"components"`
	}
	text, err := openAPI()
	if err == nil {
		err = json.Unmarshal(text, &described)
	}
	if err != nil {
		t.Fatal(err)
	}
	if listed := described.Components.Schemas.Execution.Properties.Outcome.Enum; !slices.Equal(listed, outcomes.All()) {
		t.Errorf("described %v, the outcomes are %v", listed, outcomes.All())
	}
}

// TestThePageOfServeListsEveryOutcome compares the table of docs/serve.md with the outcomes.
func TestThePageOfServeListsEveryOutcome(t *testing.T) {
	page, err := os.ReadFile("../../docs/serve.md")
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	for _, o := range outcomes.All() {
		again := "no"
		if o.Retryable() {
			again = "yes"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %d | %d | %s |\n", o, strings.TrimSuffix(o.Sentence(), "."), o.Status(),
			o.ExitCode(), again)
	}
	if !strings.Contains(string(page), table.String()) {
		t.Errorf("docs/serve.md lacks the table\n%s", table.String())
	}
}
