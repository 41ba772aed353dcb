// Package request reads what callers send to have a step run: the body of POST /api/coderunner/run, and the same with the
// fields of POST /executions.
package request

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/kizen/kizen-sidecar/runner"
)

// Body is a request as it is sent. Fields that a plain run does not have are empty there.
type Body struct {
	Runtime     string          `json:"runtime"`
	UserScript  string          `json:"user_script"`
	Inputs      json.RawMessage `json:"inputs,omitempty"`       // {"n": {"t": "n", "v": "21"}}, or null
	OutputTypes json.RawMessage `json:"output_types,omitempty"` // {"doubled": "n"}, or null
	Secrets     []string        `json:"secrets,omitempty"`      // names of those the step is granted

	ExecutionID string `json:"execution_id,omitempty"`
	BusinessID  string `json:"business_id,omitempty"`
	UserID      string `json:"user_id,omitempty"`
	AccountType string `json:"account_type,omitempty"`
	// Name is what people call the step.
	Name string `json:"name,omitempty"`
	// TimeoutMS replaces the default limit of the step's time, in milliseconds.
	TimeoutMS int64 `json:"timeout_ms,omitempty"`
	// CallbackURL is told the result.
	CallbackURL string `json:"callback_url,omitempty"`
	// Traceparent is the W3C trace context that the execution belongs to.
	Traceparent string `json:"traceparent,omitempty"`
}

// identifier is what an id may look like: it travels in a header, in a claim and in the name of a Redis key.
var identifier = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)

// ValidID reports whether an id can be one.
func ValidID(id string) bool { return identifier.MatchString(id) }

// Decode reads a body, refusing fields that there are not. Mistakes are *runner.FieldErrors.
func Decode(data []byte) (Body, error) {
	var body Body
	var refused runner.FieldErrors
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&body)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is more after the first JSON document")
		}
	}
	var mistyped *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mistyped) && mistyped.Field != "":
		refused.Add(fmt.Sprintf("must be a %s, not %s", mistyped.Type, mistyped.Value), mistyped.Field)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		refused.Add("the body is empty or cut off; send one JSON object")
	case err != nil:
		refused.Add("the body is not the JSON object that is expected: " + err.Error())
	}
	return body, refused.Err()
}

// Secrets gives the secrets of a business.
type Secrets interface {
	Secret(businessID, name string) (runner.Secret, bool)
}

// Job is what a body asks the runner to do, and under which limits; those that it does not name are the defaults. A secret
// that is asked for and not there is refused. Mistakes are *runner.FieldErrors, all together.
func (b Body) Job(businessID string, secrets Secrets, defaults runner.Limits) (runner.Execution, runner.Limits, error) {
	var refused runner.FieldErrors
	var job runner.Execution
	var err error
	job.Runtime, err = runner.ParseRuntime(b.Runtime)
	refused.Merge(err, "runtime")
	if b.UserScript == "" {
		refused.Add("This field is required.", "user_script")
	}
	job.Script, err = runner.NormaliseScript([]byte(b.UserScript))
	refused.Merge(err, "user_script")
	if given(b.Inputs) {
		job.Inputs, err = runner.DecodeWireInputs(b.Inputs)
		refused.Merge(err)
	}
	if given(b.OutputTypes) {
		job.Outputs, err = runner.DecodeOutputs(b.OutputTypes)
		refused.Merge(err)
	}
	job.Secrets = b.grant(businessID, secrets, &refused)
	job.Traceparent = b.Traceparent
	limits := defaults
	if b.TimeoutMS != 0 {
		limits.Wall, limits.CPU = b.timeout(&refused), 0
	}
	refused.Merge(b.checkCallback(), "callback_url")
	return job, limits, refused.Err()
}

func given(value json.RawMessage) bool {
	return len(value) > 0 && !bytes.Equal(bytes.TrimSpace(value), []byte("null"))
}

func (b Body) timeout(refused *runner.FieldErrors) time.Duration {
	timeout := time.Duration(b.TimeoutMS) * time.Millisecond
	if b.TimeoutMS < 0 || b.TimeoutMS > runner.MaxWall.Milliseconds() {
		refused.Add(fmt.Sprintf("must be from 1 to %d", runner.MaxWall.Milliseconds()), "timeout_ms")
	}
	return timeout
}

// grant gives the step what it asks for by name.
func (b Body) grant(businessID string, secrets Secrets, refused *runner.FieldErrors) map[string]runner.Secret {
	granted := map[string]runner.Secret{}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(b.Secrets))) {
		secret, ok := secrets.Secret(businessID, name)
		if !ok {
			refused.Add(fmt.Sprintf("secret %q does not exist", name), "secrets")
			continue
		}
		granted[name] = secret
	}
	return granted
}

// checkCallback accepts an absolute URL without credentials. Where it may lead is decided when it is dialled.
func (b Body) checkCallback() error {
	if b.CallbackURL == "" {
		return nil
	}
	target, err := url.Parse(b.CallbackURL)
	if err != nil || target.Host == "" || target.User != nil || (target.Scheme != "https" && target.Scheme != "http") {
		return errors.New("must be an http or https URL without a user in it")
	}
	return nil
}
