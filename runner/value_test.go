package runner_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/runner"
)

const (
	someUUID  = "7d444840-9dc0-11d1-b245-5ffdce74fad2"
	optionOf  = "o<c9bf9e57-1685-4c89-bafb-ff5af830be8a,11111111-1111-4111-8111-111111111111>"
	entityOf  = "e<c9bf9e57-1685-4c89-bafb-ff5af830be8a>"
	presigned = `{"url":"https://files.example.com/a?sig=1","name":"a","size":1,"content_type":"text/plain"}`
)

func TestWireValuesAreBroughtIntoOneForm(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"t":"s","v":"{\"keep\": 'as is'}\n\ttab"}`, ""},
		{`{"t":"em","v":"ada@example.com"}`, ""},
		{`{"t":"n","v":21}`, `{"t":"n","v":"21"}`},
		{`{"t":"n","v":"21"}`, ""},
		{`{"t":"n","v":"21.0"}`, ""},
		{`{"t":"n","v":2.50}`, `{"t":"n","v":"2.50"}`},
		{`{"t":"n","v":123456789012345678901234567890}`, `{"t":"n","v":"123456789012345678901234567890"}`},
		{`{"t":"n","v":-1.5e-7}`, `{"t":"n","v":"-1.5e-7"}`},
		{`{"t":"n","v":" 7 "}`, `{"t":"n","v":"7"}`},
		{`{"t":"b","v":true}`, ""},
		{`{"t":"b","v":"false"}`, `{"t":"b","v":false}`},
		{`{"t":"d","v":"2024-02-29"}`, ""},
		{`{"t":"dt","v":"2026-01-01 12:00:00Z"}`, `{"t":"dt","v":"2026-01-01T12:00:00+00:00"}`},
		{`{"t":"dt","v":"2026-01-01T12:00"}`, `{"t":"dt","v":"2026-01-01T12:00:00"}`},
		{`{"t":"dt","v":"2026-01-01T12:00:00.123456789+0530"}`, `{"t":"dt","v":"2026-01-01T12:00:00.123456+05:30"}`},
		{`{"t":"dt","v":"2026-01-01T12:00:00-03"}`, `{"t":"dt","v":"2026-01-01T12:00:00-03:00"}`},
		{`{"t":"p","v":"+13125550142"}`, ""},
		{`{"t":"u","v":"7D444840-9DC0-11D1-B245-5FFDCE74FAD2"}`, `{"t":"u","v":"` + someUUID + `"}`},
		{`{"t":"e","v":"` + someUUID + `"}`, ""},
		{`{"t":"` + entityOf + `","v":"` + someUUID + `"}`, ""},
		{`{"t":"f","v":` + presigned + `}`, ""},
		{`{"t":"f","v":{"id":"` + someUUID + `","url":"https://x"}}`, ""},
		{`{"t":"` + optionOf + `","v":{"id":"` + someUUID + `","name":"Gold","order":2,"code":"gold"}}`, ""},
		{`{"t":"` + optionOf + `","v":"` + someUUID + `"}`, `{"t":"` + optionOf + `","v":{"id":"` + someUUID + `"}}`},
		{`{"t":"` + optionOf + `","v":{"id":"` + someUUID +
			`","name":"Won","order":1,"status":"won","percentage_chance_to_close":100}}`, ""},
		{`{"t":"l","v":[{"t":"s","v":"x"},{"t":"n","v":3},{"t":"l","v":[]}]}`,
			`{"t":"l","v":[{"t":"s","v":"x"},{"t":"n","v":"3"},{"t":"l","v":[]}]}`},
		{`{"t":"a[u]","v":["` + someUUID + `",null]}`, ""},
		{`{"t":"a[a[n]]","v":[[1],["2.0"]]}`, `{"t":"a[a[n]]","v":[["1"],["2.0"]]}`},
		{`{"t":"a[` + optionOf + `]","v":[{"id":"` + someUUID + `"}]}`, ""},
		{`{"t":"s","v":null}`, ""},
		{`{"t":"l","v":null}`, ""},
	} {
		inputs, err := runner.DecodeWireInputs([]byte(`{"x":` + c.in + `}`))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if c.want == "" {
			c.want = c.in
		}
		if got := marshal(t, inputs["x"]); !sameJSON(t, got, c.want) {
			t.Errorf("%s became %s, want %s", c.in, got, c.want)
		}
	}
}

func TestWireValuesThatDoNotFitAreRefusedByField(t *testing.T) {
	deep := strings.Repeat(`{"t":"l","v":[`, 100) + strings.Repeat(`]}`, 100)
	for _, c := range []struct{ in, want string }{
		{`{"t":"mail","v":"x"}`, `{"t":["Invalid Kizen type 'mail'"]}`},
		{`{"t":"number","v":1}`, `{"t":["Invalid Kizen type 'number'"]}`},
		{`{"t":"a[","v":[]}`, `{"t":["Invalid Kizen type 'a['"]}`},
		{`{"t":"a[x]","v":[]}`, `{"t":["Invalid Kizen type 'a[x]'"]}`},
		{`{"t":"e<>","v":null}`, `{"t":["Invalid Kizen type 'e<>'"]}`},
		{`{"t":"o<a>","v":null}`, `{"t":["Invalid Kizen type 'o<a>'"]}`},
		{`{"t":"","v":1}`, `{"t":["Invalid Kizen type ''"]}`},
		{`{"t":7,"v":1}`, `{"t":["must be the code of a data type"]}`},
		{`{"t":"n"}`, `{"v":["this field is required"]}`},
		{`21`, `["must be {\"t\": code, \"v\": value}"]`},
		{`{"t":"n","v":"12a"}`, `{"v":["must be a number, not \"12a\""]}`},
		{`{"t":"n","v":"NaN"}`, `{"v":["must be a number, not \"NaN\""]}`},
		{`{"t":"n","v":"1e999"}`, `{"v":["must be a number within the range of a float, not \"1e999\""]}`},
		{`{"t":"n","v":true}`, `{"v":["must be a number, not true"]}`},
		{`{"t":"b","v":"yes"}`, `{"v":["must be true or false, not \"yes\""]}`},
		{`{"t":"b","v":1}`, `{"v":["must be true or false, not the number 1"]}`},
		{`{"t":"s","v":[1]}`, `{"v":["must be a string, not a list"]}`},
		{`{"t":"d","v":"2024/02/29"}`, `{"v":["must be a date as YYYY-MM-DD, not \"2024/02/29\""]}`},
		{`{"t":"d","v":"2023-02-29"}`, `{"v":["must be a date as YYYY-MM-DD, not \"2023-02-29\""]}`},
		{`{"t":"d","v":"0000-01-01"}`, `{"v":["must be a date as YYYY-MM-DD, not \"0000-01-01\""]}`},
		{`{"t":"dt","v":"2026-01-01T25:00:00"}`,
			`{"v":["must be a datetime in ISO 8601, like 2026-01-01T12:00:00Z, not \"2026-01-01T25:00:00\""]}`},
		{`{"t":"dt","v":"2026-01-01T12:00:00+25:00"}`,
			`{"v":["must be a datetime in ISO 8601, like 2026-01-01T12:00:00Z, not \"2026-01-01T12:00:00+25:00\""]}`},
		{`{"t":"p","v":"555 0142"}`, `{"v":["must be a phone number in E.164, like +13125550142, not \"555 0142\""]}`},
		{`{"t":"u","v":"7d44"}`, `{"v":["must be a UUID, not \"7d44\""]}`},
		{`{"t":"` + entityOf + `","v":["` + someUUID + `"]}`, `{"v":["must be a string, not a list"]}`},
		{`{"t":"f","v":{"name":[1]}}`, `{"v":{"url":["must be the file's presigned URL"],"name":["must be a string"]}}`},
		{`{"t":"` + optionOf + `","v":{"id":"x","status":"lukewarm"}}`,
			`{"v":{"id":["must be the option's UUID"],"status":["must be open, won or lost"]}}`},
		{`{"t":"l","v":[{"t":"s","v":"x"},3,{"t":"mail","v":""}]}`,
			`{"v":{"1":["must be {\"t\": code, \"v\": value}"],"2":{"t":["Invalid Kizen type 'mail'"]}}}`},
		{`{"t":"l","v":"x"}`, `{"v":["must be a list, not \"x\""]}`},
		{`{"t":"a[n]","v":[1,"x"]}`, `{"v":{"1":["must be a number, not \"x\""]}}`},
		{deep, ""},
	} {
		_, err := runner.DecodeWireInputs([]byte(`{"x":` + c.in + `}`))
		if err == nil {
			t.Errorf("%.80s was accepted", c.in)
			continue
		}
		if want := `{"inputs":{"x":` + c.want + `}}`; c.want != "" && !sameJSON(t, marshal(t, err), want) {
			t.Errorf("%s was refused with %s, want %s", c.in, marshal(t, err), want)
		}
	}
}

func TestHumanNamesResolveToCodes(t *testing.T) {
	for name, want := range map[string]runner.Type{
		"text": "s", "string": "s", "email": "s", "number": "n", "integer": "n", "boolean": "b", "date": "d",
		"datetime": "dt", "phone": "p", "phonenumber": "p", "phone_number": "p", "uuid": "u", "file": "f", "list": "l",
		"employee": "e", "Number": "n", " n ": "n", "em": "em", "dt": "dt", "a[n]": "a[n]", "a[a[e]]": "a[a[e]]",
		entityOf: entityOf, optionOf: optionOf,
	} {
		if got, err := runner.ParseType(name); err != nil || got != want {
			t.Errorf("%q became %q, %v; want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"", "mail", "a[number]", "e<a b>", "o<a,b", "a[n]]",
		strings.Repeat("a[", 100) + "n" + strings.Repeat("]", 100)} {
		if got, err := runner.ParseType(name); err == nil {
			t.Errorf("%.40q became %q", name, got)
		}
	}
}

func FuzzDecodedInputsAreStable(f *testing.F) {
	f.Add(`{"x":{"t":"n","v":"21"},"y":2.5,"z":{"type":"list","value":[1,"a",null]}}`)
	f.Add(`{"x":{"t":"dt","v":"2026-01-01 12:00:00,5Z"}}`)
	f.Add(`{"x":{"t":"a[a[b]]","v":[["true"]]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		inputs, err := runner.DecodeInputs([]byte(text), nil)
		if err != nil {
			marshal(t, err)
			return
		}
		once := marshal(t, inputs)
		again, err := runner.DecodeWireInputs([]byte(once))
		if err != nil {
			t.Fatalf("%s is not what it was decoded from: %v", once, err)
		}
		if twice := marshal(t, again); !sameJSON(t, once, twice) {
			t.Fatalf("%s became %s", once, twice)
		}
	})
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func sameJSON(t testing.TB, a, b string) bool {
	t.Helper()
	return canonical(t, a) == canonical(t, b)
}

// canonical rewrites JSON with sorted keys and unchanged numbers.
func canonical(t testing.TB, text string) string {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var v any
	if err := decoder.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return marshal(t, v)
}
