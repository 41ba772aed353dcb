package execution

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kizen/kizen-sidecar/client"
	"github.com/kizen/kizen-sidecar/runner"
)

var noSecrets SecretsByBusiness

func TestRequestsOfExistingClientsAreRead(t *testing.T) {
	body, err := DecodeBody([]byte(`{"runtime": "python-3-13", "user_script": "outputs.doubled = inputs.n * 2",
		"inputs": {"n": {"t": "n", "v": "21"}}, "output_types": {"doubled": "n"}, "secrets": ["MY_KEY"]}`))
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := ParseSecrets([]byte(`{"b1": {"MY_KEY": "x", "OTHER": "y"}, "b2": {"MY_KEY": "z"}}`))
	if err != nil {
		t.Fatal(err)
	}
	job, limits, err := body.Job("b1", secrets, runner.Limits{Wall: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if job.Runtime != runner.Python313 || string(job.Script) != "outputs.doubled = inputs.n * 2" ||
		limits.Wall != time.Second {
		t.Errorf("job %+v, limits %+v", job, limits)
	}
	if job.Inputs["n"].Type != "n" || job.Outputs[0].Name != "doubled" || len(job.Secrets) != 1 ||
		job.Secrets["MY_KEY"].Reveal() != "x" {
		t.Errorf("job %+v", job)
	}
}

func TestNullAndAbsentMeanNone(t *testing.T) {
	for _, text := range []string{
		`{"runtime": "python-3-13", "user_script": "pass", "inputs": null, "output_types": null}`,
		`{"user_script": "pass"}`,
		`{"user_script": "pass", "runtime": null, "secrets": null, "timeout_ms": null, "callback_url": null}`,
	} {
		body, err := DecodeBody([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if job, limits, err := body.Job("b1", noSecrets, runner.Limits{Wall: time.Second}); err != nil ||
			len(job.Inputs) != 0 || len(job.Outputs) != 0 || limits.Wall != time.Second {
			t.Errorf("%s: %+v, %v, %v", text, job, limits, err)
		}
	}
}

func TestRefusedRequestsAreKeyedByField(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"unknown type": {`{"runtime": "python-3-13", "user_script": "pass", "inputs": {"x": {"t": "mail", "v": "a"}}}`,
			`{"inputs":{"x":{"t":["Invalid Kizen type 'mail'"]}}}`},
		"unknown runtime": {`{"runtime": "python-2-7", "user_script": "pass"}`, `{"runtime":["unknown runtime`},
		"unknown secret": {`{"user_script": "pass", "secrets": ["NOPE"]}`,
			`{"secrets":["secret \"NOPE\" does not exist"]}`},
		"no script": {`{"runtime": "python-3-13"}`, `{"user_script":["This field is required."]}`},
		"too many secrets": {`{"user_script": "pass", "secrets": [` + strings.Repeat(`"A",`, 500_000) + `"A"]}`,
			`{"secrets":["must be a list of strings: its lists have more than 1000 elements together"]}`},
		"mistyped field": {`{"runtime": 3, "user_script": "pass"}`, `{"runtime":["must be a string"]}`},
		"mistyped fields": {`{"user_script": [], "inputs": 7, "output_types": "n", "secrets": "A", "timeout_ms": 1.5}`,
			`{"inputs":["must be an object, or null"],"output_types":["must be an object, or null"],"secrets":["must be a list of strings"],"timeout_ms":["must be a whole number"],"user_script":["must be a string"]}`},
		"unknown field": {`{"user_script": "pass", "frobnicate": 1}`, `{"frobnicate":["unknown field"]}`},
		"another case":  {`{"user_script": "pass", "Business_ID": "b2"}`, `{"Business_ID":["unknown field"]}`},
		"a field twice": {`{"user_script": "pass", "business_id": "b1", "business_id": "b2"}`,
			`{"business_id":["is given twice"]}`},
		"an array": {`[]`,
			`{"non_field_errors":["the body must be one JSON object: it is another JSON value"]}`},
		"null":    {`null`, `{"non_field_errors":["the body must be one`},
		"cut off": {`{"user_script": "pass"`, `{"non_field_errors":["the body is empty or cut off`},
		"not UTF-8": {"{\"user_script\": \"x = '\xff'\"}",
			`{"non_field_errors":["the body must be one JSON object: it is not UTF-8"]}`},
		"too deep": {`{"inputs": ` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`,
			`{"non_field_errors":[`},
		"zero time":        {`{"user_script": "pass", "timeout_ms": 0}`, `{"timeout_ms":["must be from 1 to 55000"]}`},
		"not JSON":         {`nonsense`, `{"non_field_errors":[`},
		"empty":            {``, `{"non_field_errors":["the body is empty`},
		"two documents":    {`{"user_script": "pass"} {}`, `{"non_field_errors":[`},
		"time over 55 s":   {`{"user_script": "pass", "timeout_ms": 55001}`, `{"timeout_ms":["must be from 1 to 55000"]}`},
		"negative time":    {`{"user_script": "pass", "timeout_ms": -1}`, `{"timeout_ms":[`},
		"callback scheme":  {`{"user_script": "pass", "callback_url": "file:///etc/passwd"}`, `{"callback_url":[`},
		"callback user":    {`{"user_script": "pass", "callback_url": "https://a:b@example.com/"}`, `{"callback_url":[`},
		"inputs no object": {`{"user_script": "pass", "inputs": [1]}`, `{"inputs":[`},
	} {
		t.Run(name, func(t *testing.T) {
			body, err := DecodeBody([]byte(c.body))
			if err == nil {
				_, _, err = body.Job("b1", noSecrets, runner.Limits{})
			}
			got, _ := json.Marshal(err)
			if err == nil || !strings.HasPrefix(string(got), c.want) {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestASecretOfAnotherBusinessDoesNotExist(t *testing.T) {
	secrets, err := ParseSecrets([]byte(`{"b2": {"MY_KEY": "z"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := (Body{UserScript: "pass", Secrets: []string{"MY_KEY"}}).Job("b1", secrets, runner.Limits{}); err == nil {
		t.Error("granted")
	}
}

func TestABrokenSecretsFileIsNotQuoted(t *testing.T) {
	for _, text := range []string{`{"b1": {"NAME": "hunter2"`, `{"b1": {"NAME": 7}, "x": "hunter2"}`,
		`{"b1": {"NAME": ""}}`} {
		if _, err := ParseSecrets([]byte(text)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestDecodeBodyStopsAfterManyUnknownFields(t *testing.T) {
	var body strings.Builder
	body.WriteString(`{"user_script": "pass"`)
	for i := range 300_000 {
		fmt.Fprintf(&body, `, "unknown%d": [1]`, i)
	}
	body.WriteString("}")
	data := []byte(body.String())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := DecodeBody(data)
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("%d bytes of memory were taken for a body of %d", used, len(data))
	}
	answer, encoding := json.Marshal(err)
	if err == nil || encoding != nil || len(answer) > 16<<10 ||
		!strings.Contains(string(answer), `"unknown99":["unknown field"]`) {
		t.Errorf("%v %.200s", encoding, answer)
	}
}

// TestTheClientSendsTheFieldsThatAreRead compares the request of package client with the fields that DecodeBody reads.
func TestTheClientSendsTheFieldsThatAreRead(t *testing.T) {
	var sent []string
	request := reflect.TypeFor[client.Request]()
	for i := range request.NumField() {
		name, _, _ := strings.Cut(request.Field(i).Tag.Get("json"), ",")
		sent = append(sent, name)
	}
	slices.Sort(sent)
	if read := slices.Sorted(maps.Keys(new(Body).fields())); !slices.Equal(sent, read) {
		t.Errorf("the client sends %v, the server reads %v", sent, read)
	}
}

func TestTextsThatAreKeptHaveAMaximalLength(t *testing.T) {
	for length, fits := range map[int]bool{maxName: true, maxName + 1: false} {
		body := Body{UserScript: "pass", Name: strings.Repeat("x", length)}
		_, _, err := body.Job("b1", noSecrets, runner.Limits{Wall: time.Second})
		if fits != (err == nil) || err != nil && !strings.Contains(err.Error(), "longer than 1024 bytes") {
			t.Errorf("a name of %d bytes: %v", length, err)
		}
	}
	body := Body{UserScript: "pass", Traceparent: strings.Repeat("x", MaxTraceparent+1),
		CallbackURL: "https://example.com/" + strings.Repeat("x", maxCallback)}
	_, _, err := body.Job("b1", noSecrets, runner.Limits{Wall: time.Second})
	if err == nil || !strings.Contains(err.Error(), "traceparent") || !strings.Contains(err.Error(), "callback_url") {
		t.Errorf("long traceparent and callback_url: %v", err)
	}
}
