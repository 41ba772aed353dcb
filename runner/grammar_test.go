package runner_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/kizen/kizen-sidecar/runner"
)

// grammarTable is testdata/values.json, which the harness's tests read too.
type grammarTable struct {
	Inputs, Outputs []struct {
		T       string          `json:"t"`
		V       json.RawMessage `json:"v"`
		Normal  json.RawMessage `json:"normal"`
		Refused bool            `json:"refused"`
		Python  string          `json:"python"`
	}
}

func readGrammar(t *testing.T) grammarTable {
	t.Helper()
	data, err := os.ReadFile("testdata/values.json")
	if err != nil {
		t.Fatal(err)
	}
	var table grammarTable
	if err := json.Unmarshal(data, &table); err != nil {
		t.Fatal(err)
	}
	if len(table.Inputs) < 100 || len(table.Outputs) < 100 {
		t.Fatalf("the table has %d inputs and %d outputs", len(table.Inputs), len(table.Outputs))
	}
	return table
}

// wireDocument returns the inputs document of one value x.
func wireDocument(code string, v json.RawMessage) []byte {
	t, _ := json.Marshal(code)
	return []byte(`{"x":{"t":` + string(t) + `,"v":` + string(v) + `}}`)
}

func TestInputsFollowTheGrammar(t *testing.T) {
	for _, row := range readGrammar(t).Inputs {
		inputs, err := runner.DecodeWireInputs(wireDocument(row.T, row.V))
		value, supplied := inputs["x"]
		if row.Refused {
			if err == nil && !(string(row.V) == `""` && !supplied) {
				t.Errorf("%s %.200s was accepted as %.200s", row.T, row.V, marshal(t, value.V))
			}
			continue
		}
		if err != nil {
			t.Errorf("%s %.200s was refused: %v", row.T, row.V, err)
			continue
		}
		checkNormal(t, row.T, value, row.Normal)
	}
}

func TestEveryOutputIsAnInputToo(t *testing.T) {
	for _, row := range readGrammar(t).Outputs {
		if row.Refused {
			continue
		}
		inputs, err := runner.DecodeWireInputs(wireDocument(row.T, row.Normal))
		if err != nil {
			t.Errorf("%s %s, written as %.200s, was refused: %v", row.T, row.Python, row.Normal, err)
			continue
		}
		checkNormal(t, row.T, inputs["x"], row.Normal)
	}
}

// checkNormal compares a value with its normal form, and that form with the result of reading it again.
func checkNormal(t *testing.T, code string, value runner.Value, normal json.RawMessage) {
	t.Helper()
	if got := marshal(t, value.V); !sameJSON(t, got, string(normal)) {
		t.Errorf("%s became %.200s, want %.200s", code, got, normal)
	}
	again, err := runner.DecodeWireInputs(wireDocument(code, normal))
	if err != nil || !sameJSON(t, marshal(t, again["x"].V), string(normal)) {
		t.Errorf("%s %.200s is not its own normal form: %.200s, %v", code, normal, marshal(t, again["x"].V), err)
	}
}

func TestAnEmptyInputThatIsNoTextIsNotSupplied(t *testing.T) {
	for _, code := range []string{"n", "b", "d", "dt", "p", "u", "e", entityOf, optionOf, "f", "l", "a[n]"} {
		for _, v := range []string{`""`, `" "`} {
			inputs, err := runner.DecodeWireInputs(wireDocument(code, json.RawMessage(v)))
			if _, supplied := inputs["x"]; supplied || err != nil {
				t.Errorf("%s %s: %v, %v", code, v, inputs, err)
			}
		}
		bare, err := runner.DecodeInputs([]byte(`{"x": ""}`),
			[]runner.Parameter{{Name: "x", Type: runner.Type(code), Required: true}})
		if _, supplied := bare["x"]; supplied || err != nil {
			t.Errorf("%s, bare: %v, %v", code, bare, err)
		}
		if _, _, supplied, err := runner.ParseInput("x=:"+code, nil); supplied || err != nil {
			t.Errorf("%s on the command line: supplied %v, %v", code, supplied, err)
		}
	}
	for _, code := range []string{"s", "em"} {
		if inputs, err := runner.DecodeWireInputs(wireDocument(code, json.RawMessage(`""`))); err != nil ||
			inputs["x"].V != "" {
			t.Errorf("%s: %v, %v", code, inputs, err)
		}
	}
}

func TestAFileGivenAsAnIDIsRefusedWithAHint(t *testing.T) {
	_, err := runner.DecodeWireInputs(wireDocument("f", json.RawMessage(`"`+someUUID+`"`)))
	want := `inputs.x.v: is only the file's id "` + someUUID + `", which does not locate the file; ` +
		`send the file's object with its presigned url, {"url": ..., "name": ..., "size": ..., "content_type": ...}`
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestHalfASurrogatePairIsRefused(t *testing.T) {
	for _, text := range []string{`"a\ud800"`, `"\udc00"`, `"\ud800\ud800"`, `"\ud83dx"`, `"\ud83d\n"`, `"\\\ud83d"`} {
		if _, err := runner.DecodeWireInputs(wireDocument("s", json.RawMessage(text))); err == nil {
			t.Errorf("%s was accepted", text)
		}
	}
	for text, want := range map[string]string{`"\ud83d\ude00"`: "😀", `"\\ud800"`: `\ud800`, `"\u00e9"`: "é", `"\""`: `"`} {
		if inputs, err := runner.DecodeWireInputs(wireDocument("s", json.RawMessage(text))); err != nil ||
			inputs["x"].V != want {
			t.Errorf("%s became %v, %v", text, inputs["x"].V, err)
		}
	}
}
