package execution

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/kizen/kizen-sidecar/runner"
)

// Body is a request in its wire form. Absent fields are zero.
type Body struct {
	Runtime     string
	UserScript  string
	Inputs      object   // {"n": {"t": "n", "v": "21"}}, or null
	OutputTypes object   // {"doubled": "n"}, or null
	Secrets     []string // names of the secrets to grant to the step

	ExecutionID string
	BusinessID  string
	UserID      string
	AccountType string
	// Name is the human-readable name of the step.
	Name string
	// TimeoutMS, if not nil, overrides the default time limit of the step, in milliseconds.
	TimeoutMS *int64
	// CallbackURL receives the result.
	CallbackURL string
	// Traceparent is the W3C trace context that the execution belongs to.
	Traceparent string
}

// fields returns pointers to the fields of b, by their names on the wire.
func (b *Body) fields() map[string]any {
	return map[string]any{
		"runtime": &b.Runtime, "user_script": &b.UserScript, "inputs": &b.Inputs, "output_types": &b.OutputTypes,
		"secrets":      &b.Secrets,
		"execution_id": &b.ExecutionID, "business_id": &b.BusinessID, "user_id": &b.UserID, "account_type": &b.AccountType,
		"name": &b.Name, "timeout_ms": &b.TimeoutMS, "callback_url": &b.CallbackURL, "traceparent": &b.Traceparent,
	}
}

// object is a JSON object that is decoded later; nil if null or absent.
type object json.RawMessage

// UnmarshalJSON implements json.Unmarshaler.
func (o *object) UnmarshalJSON(data []byte) error {
	switch data[0] {
	case '{':
		*o = bytes.Clone(data)
		return nil
	case 'n':
		return nil
	}
	return errors.New("no object")
}

// DecodeBody decodes a body. It rejects unknown and repeated fields and values of a wrong kind. It returns all errors
// together as *runner.FieldErrors, and the fields that it could decode.
func DecodeBody(data []byte) (Body, error) {
	var body Body
	var refused runner.FieldErrors
	into, given := body.fields(), map[string]bool{}
	err := eachField(data, func(name string, value json.RawMessage) bool {
		target, known := into[name]
		var err error
		switch {
		case !known:
			err = errors.New("unknown field")
		case given[name]:
			err = errors.New("is given twice")
		default:
			given[name] = true
			err = readField(value, target)
		}
		enough := err != nil && refused.Full()
		if err != nil {
			refused.Add(err.Error(), name)
		}
		return !enough
	})
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		refused.Add("the body is empty or cut off; send one JSON object")
	case err != nil:
		refused.Add("the body must be one JSON object: " + err.Error())
	}
	return body, refused.Err()
}

// readField decodes one field. It checks the length of a list of names before it decodes the list. Objects are decoded
// later, with their own limits.
func readField(value json.RawMessage, target any) error {
	if _, names := target.(*[]string); names {
		if err := runner.CheckJSON(value, runner.MaxNames); err != nil {
			return fmt.Errorf("must be %s: %w", kindOf(target), err)
		}
	}
	if json.Unmarshal(value, target) != nil {
		return errors.New("must be " + kindOf(target))
	}
	return nil
}

// kindOf returns the kind that the value of a field must have.
func kindOf(target any) string {
	switch target.(type) {
	case *string:
		return "a string"
	case *[]string:
		return "a list of strings"
	case *object:
		return "an object, or null"
	}
	return "a whole number"
}

// eachField calls field for each field of a JSON object until field returns false. data must contain nothing else.
func eachField(data []byte, field func(name string, value json.RawMessage) bool) error {
	if !utf8.Valid(data) {
		return errors.New("it is not UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if first, err := decoder.Token(); err != nil {
		return err
	} else if first != json.Delim('{') {
		return errors.New("it is another JSON value")
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return err
		}
		if !field(name.(string), value) { // the names of an object are strings
			return nil
		}
	}
	if _, err := decoder.Token(); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more data follows it")
	}
	return nil
}

// Secrets returns the secrets of a business.
type Secrets interface {
	Secret(businessID, name string) (runner.Secret, bool)
}

// Job returns the runner's execution for a body, and its limits; unset limits take their defaults. It rejects unknown
// secrets. It returns all errors together as *runner.FieldErrors.
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
	if b.Inputs != nil {
		job.Inputs, err = runner.DecodeWireInputs(b.Inputs)
		refused.Merge(err)
	}
	if b.OutputTypes != nil {
		job.Outputs, err = runner.DecodeOutputs(b.OutputTypes)
		refused.Merge(err)
	}
	job.Secrets = b.grant(businessID, secrets, &refused)
	job.Traceparent = b.Traceparent
	limits := defaults
	if b.TimeoutMS != nil {
		limits.Wall, limits.CPU = timeout(*b.TimeoutMS, &refused), 0
	}
	refused.Merge(b.checkCallback(), "callback_url")
	b.checkSizes(&refused)
	return job, limits, refused.Err()
}

// The maximal sizes in bytes of texts that are kept, logged and sent on. MaxTraceparent is that of a W3C trace context,
// which has 55 bytes today.
const (
	maxName        = 1024
	maxCallback    = 2 << 10
	MaxTraceparent = 256
)

func (b Body) checkSizes(refused *runner.FieldErrors) {
	for _, field := range []struct {
		name, value string
		most        int
	}{{"name", b.Name, maxName}, {"callback_url", b.CallbackURL, maxCallback}, {"traceparent", b.Traceparent, MaxTraceparent}} {
		if len(field.value) > field.most {
			refused.Add(fmt.Sprintf("is longer than %d bytes", field.most), field.name)
		}
	}
}

// timeout returns the time limit of a body.
func timeout(ms int64, refused *runner.FieldErrors) time.Duration {
	if ms < 1 || ms > runner.MaxWall.Milliseconds() {
		refused.Add(fmt.Sprintf("must be from 1 to %d", runner.MaxWall.Milliseconds()), "timeout_ms")
	}
	return time.Duration(ms) * time.Millisecond
}

// grant returns the secrets that the body names.
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

// checkCallback accepts an absolute URL without credentials. The IP address is checked when it is dialled.
func (b Body) checkCallback() error {
	if b.CallbackURL == "" {
		return nil
	}
	target, err := url.Parse(b.CallbackURL)
	if err != nil || target.Host == "" || target.User != nil || (target.Scheme != "https" && target.Scheme != "http") {
		return errors.New("must be an http or https URL without a user name")
	}
	return nil
}
