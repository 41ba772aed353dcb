package runner_test

import (
	"errors"
	"testing"

	"github.com/kizen/kizen-sidecar/runner"
)

var declared = []runner.Parameter{{Name: "n", Type: "n", Required: true}, {Name: "day", Type: "d"},
	{Name: "tags", Type: "l"}, {Name: "flag", Type: "b"}}

func TestTypedBareAndWireInputsMeanTheSame(t *testing.T) {
	for _, text := range []string{
		`{"n": 21, "day": "2026-05-06", "tags": ["a", 1], "flag": "true", "free": 2.5}`,
		`{"n": {"type": "number", "value": 21}, "day": {"type": "date", "value": "2026-05-06"}, "tags": {"type": "list", "value": ["a", 1]}, "flag": {"value": true}, "free": {"type": "n", "value": "2.5"}}`,
		`{"n": {"t": "n", "v": "21"}, "day": {"t": "d", "v": "2026-05-06"}, "tags": {"t": "l", "v": [{"t": "s", "v": "a"}, {"t": "n", "v": 1}]}, "flag": {"t": "b", "v": "true"}, "free": {"t": "n", "v": 2.5}}`,
	} {
		inputs, err := runner.DecodeInputs([]byte(text), declared)
		if err != nil {
			t.Fatal(err)
		}
		want := `{"n":{"t":"n","v":"21"},"day":{"t":"d","v":"2026-05-06"},"tags":{"t":"l","v":[{"t":"s","v":"a"},{"t":"n","v":"1"}]},"flag":{"t":"b","v":true},"free":{"t":"n","v":"2.5"}}`
		if got := marshal(t, inputs); !sameJSON(t, got, want) {
			t.Errorf("%s became %s, want %s", text, got, want)
		}
	}
}

func TestTheTypeOfAWireValueWinsOverTheDeclaredOne(t *testing.T) {
	inputs, err := runner.DecodeInputs([]byte(`{"n": {"t": "s", "v": "not a number"}}`), declared)
	if err != nil || inputs["n"].Type != "s" {
		t.Errorf("got %v, %v", inputs, err)
	}
}

func TestBadInputsFilesAreRefusedByField(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"n": "abc"}`, `{"inputs":{"n":["must be a number, not \"abc\""]}}`},
		{`{"n": {"type": "numbr", "value": 1}, "day": "1/2/2026"}`,
			`{"inputs":{"n":{"type":["Invalid Kizen type 'numbr'"]},"day":["must be a date as YYYY-MM-DD, not \"1/2/2026\""]}}`},
		{`{"x": {"a": 1}}`, `{"inputs":{"x":["an object needs its type: write {\"type\": ..., \"value\": ...}"]}}`},
		{`{"a-b": 1}`, `{"inputs":{"a-b":["\"a-b\" cannot be written as a Python attribute; use letters, digits and _"]}}`},
		{`{"__class__": 1}`, `{"inputs":{"__class__":["\"__class__\" cannot be used as a name"]}}`},
		{``, `{"inputs":["must be a JSON object of inputs: it is empty"]}`},
		{`{} {}`, `{"inputs":["must be a JSON object of inputs: there is more after the first value"]}`},
	} {
		_, err := runner.DecodeInputs([]byte(c.in), declared)
		if err == nil || !sameJSON(t, marshal(t, err), c.want) {
			t.Errorf("%s gave %v, want %s", c.in, err, c.want)
		}
	}
}

func TestInputsFromTheCommandLine(t *testing.T) {
	for arg, want := range map[string]string{
		"x=hello":                        `{"t":"s","v":"hello"}`,
		"x=21:number":                    `{"t":"n","v":"21"}`,
		"x=21:n":                         `{"t":"n","v":"21"}`,
		"n=21":                           `{"t":"n","v":"21"}`,
		"n=21:string":                    `{"t":"s","v":"21"}`,
		"x=":                             `{"t":"s","v":""}`,
		"x=a=b":                          `{"t":"s","v":"a=b"}`,
		"x=http://127.0.0.1:80/a":        `{"t":"s","v":"http://127.0.0.1:80/a"}`,
		"x=localhost:8080":               `{"t":"s","v":"localhost:8080"}`,
		"x=2026-01-01 12:00:00Z:dt":      `{"t":"dt","v":"2026-01-01T12:00:00+00:00"}`,
		"x=12:30:00":                     `{"t":"s","v":"12:30:00"}`,
		"x=note: this:string":            `{"t":"s","v":"note: this"}`,
		"x=note: this":                   `{"t":"s","v":"note: this"}`,
		`x=[1,"a"]:list`:                 `{"t":"l","v":[{"t":"n","v":"1"},{"t":"s","v":"a"}]}`,
		`tags=["a"]`:                     `{"t":"l","v":[{"t":"s","v":"a"}]}`,
		`x=[1,2]:a[n]`:                   `{"t":"a[n]","v":["1","2"]}`,
		"x=" + someUUID + ":" + optionOf: `{"t":"` + optionOf + `","v":{"id":"` + someUUID + `"}}`,
		"x=" + presigned + ":file":       `{"t":"f","v":` + presigned + `}`,
	} {
		_, value, _, err := runner.ParseInput(arg, declared)
		if err != nil || !sameJSON(t, marshal(t, value), want) {
			t.Errorf("%s became %s, %v; want %s", arg, marshal(t, value), err, want)
		}
	}
	for arg, want := range map[string]string{
		"x":           `{"inputs":["\"x\" is not name=value[:type]"]}`,
		"=1":          `{"inputs":["\"=1\" is not name=value[:type]"]}`,
		"x=1:mail":    `{"inputs":{"x":["Invalid Kizen type 'mail'; where the colon belongs to the value, write the type after it: x=1:mail:string"]}}`,
		"x=abc:n":     `{"inputs":{"x":["must be a number, not \"abc\""]}}`,
		"x=[1:list":   `{"inputs":{"x":["must be a list, and this text is no JSON: unexpected EOF"]}}`,
		"day=someday": `{"inputs":{"day":["must be a date as YYYY-MM-DD, not \"someday\""]}}`,
	} {
		_, _, _, err := runner.ParseInput(arg, declared)
		if err == nil || !sameJSON(t, marshal(t, err), want) {
			t.Errorf("%s gave %v, want %s", arg, err, want)
		}
	}
}

func TestRequiredInputsMustBeSuppliedAndNotNull(t *testing.T) {
	required := []runner.Parameter{{Name: "a", Type: "s", Required: true}, {Name: "b", Type: "s", Required: true},
		{Name: "c", Type: "s"}}
	err := runner.CheckInputs(required, runner.Inputs{"b": {Type: "s"}, "typo": {Type: "s", V: "x"}})
	want := `{"inputs":{"a":["is required but was not supplied"],"b":["is required and must not be null"],"typo":["is not an input of this step"]}}`
	if err == nil || !sameJSON(t, marshal(t, err), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	var fields *runner.FieldErrors
	if !errors.As(err, &fields) || fields.Lines()[0] != "inputs.a: is required but was not supplied" {
		t.Errorf("got %v", err)
	}
	if err := runner.CheckInputs(required, runner.Inputs{"a": {Type: "s", V: ""}, "b": {Type: "s", V: "x"}, "c": {Type: "s"}}); err != nil {
		t.Error(err)
	}
}

func TestOutputTypesKeepTheirOrder(t *testing.T) {
	outputs, err := runner.DecodeOutputs([]byte(`{"z": "number", "a": {"type": "string"}, "m": "dt"}`))
	if err != nil || len(outputs) != 3 || outputs[0] != (runner.Parameter{Name: "z", Type: "n"}) ||
		outputs[1].Name != "a" || outputs[2].Type != "dt" {
		t.Errorf("got %v, %v", outputs, err)
	}
	if outputs, err := runner.DecodeOutputs([]byte(`null`)); err != nil || len(outputs) != 0 {
		t.Errorf("null gave %v, %v", outputs, err)
	}
	_, err = runner.DecodeOutputs([]byte(`{"a": "mail", "log": "string", "b": 3}`))
	want := `{"output_types":{"a":["Invalid Kizen type 'mail'"],"log":["\"log\" is the step's logging function; give the output another name"],"b":["must be the name of a data type"]}}`
	if err == nil || !sameJSON(t, marshal(t, err), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if output, err := runner.ParseOutput("doubled:number"); err != nil || output.Type != "n" {
		t.Errorf("got %v, %v", output, err)
	}
	if output, err := runner.ParseOutput("doubled"); err != nil || output.Type != "s" {
		t.Errorf("got %v, %v", output, err)
	}
}
