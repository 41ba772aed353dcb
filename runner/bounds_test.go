package runner_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/runner"
)

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// nestedLists returns an input of nested lists around n elements.
func nestedLists(levels, n int, element string) []byte {
	inner := strings.Repeat(element+",", n-1) + element
	return []byte(`{"x":` + strings.Repeat(`{"t":"l","v":[`, levels) + inner + strings.Repeat(`]}`, levels) + `}`)
}

func TestOversizedDocumentsAreRefusedBeforeDecoding(t *testing.T) {
	members := make([]string, 40_000)
	for i := range members {
		members[i] = fmt.Sprintf(`"n%d":"n"`, i)
	}
	manyNames := []byte("{" + strings.Join(members, ",") + "}")
	inputs := func(data []byte) error { _, err := runner.DecodeWireInputs(data); return err }
	bare := func(data []byte) error { _, err := runner.DecodeInputs(data, nil); return err }
	outputs := func(data []byte) error { _, err := runner.DecodeOutputs(data); return err }
	for name, c := range map[string]struct {
		data []byte
		read func([]byte) error
		says string
	}{
		"800,000 objects in 30 lists": {nestedLists(30, 800_000, "{}"), inputs,
			"its lists have more than 100000 elements together"},
		"800,000 objects in bare lists": {nestedLists(30, 800_000, "{}"), bare,
			"its lists have more than 100000 elements together"},
		"lists that nest": {[]byte(`{"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + "}"), bare,
			"it nests deeper than"},
		"objects that nest": {[]byte(strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000)), inputs,
			"it nests deeper than"},
		"40,000 inputs":       {manyNames, inputs, "more than 1000 members"},
		"40,000 output types": {manyNames, outputs, "more than 1000 members"},
		"an object of 40,000 members": {[]byte(`{"x":{"t":"f","v":` + string(manyNames) + `}}`), inputs,
			"more than 1000 members"},
		"a list as text": {wireDocument("l", mustJSON(t, "["+strings.Repeat("{},", 200_000)+"{}]")), inputs,
			"more than 100000 elements"},
	} {
		var err error
		used := allocated(func() { err = c.read(c.data) })
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %.300v", name, err)
		}
		if limit := uint64(8*len(c.data) + 64<<10); used > limit {
			t.Errorf("%s: refusing %d bytes took %d bytes of memory", name, len(c.data), used)
		}
	}
}

func mustJSON(t *testing.T, v any) json.RawMessage {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestErrorsAreBoundedInNumberAndSize(t *testing.T) {
	data := nestedLists(60, 90_000, `"`+strings.Repeat("x", 20)+`"`)
	var err error
	used := allocated(func() { _, err = runner.DecodeWireInputs(data) })
	answer := marshal(t, err)
	if len(answer) > 256<<10 || !strings.Contains(answer, "there are more errors than these 100") {
		t.Errorf("the answer has %d bytes: %.200s", len(answer), answer)
	}
	if limit := uint64(20 * len(data)); used > limit {
		t.Errorf("refusing %d bytes took %d bytes of memory", len(data), used)
	}
	_, err = runner.DecodeWireInputs([]byte(`{"` + strings.Repeat("n", 1<<20) + `": {"t": "` + strings.Repeat("t", 1<<20) +
		`", "v": 1}}`))
	if answer := marshal(t, err); len(answer) > 4<<10 {
		t.Errorf("a long name and a long type are answered with %d bytes", len(answer))
	}
}

// TestReadingIsLinear compares the memory for reading n and 4n: copied paths or linear searches would grow faster.
func TestReadingIsLinear(t *testing.T) {
	outputTypes := func(n int) []byte {
		members := make([]string, n)
		for i := range members {
			members[i] = fmt.Sprintf(`"name_%04d":"n"`, i)
		}
		return []byte("{" + strings.Join(members, ",") + "}")
	}
	for name, read := range map[string]func(n int){
		"lists":        func(n int) { _, _ = runner.DecodeWireInputs(nestedLists(50, 20*n, `{"t":"n","v":"1"}`)) },
		"mistakes":     func(n int) { _, _ = runner.DecodeWireInputs(nestedLists(50, 20*n, `{}`)) },
		"output types": func(n int) { _, _ = runner.DecodeOutputs(outputTypes(n)) },
	} {
		small, large := allocated(func() { read(250) }), allocated(func() { read(1000) })
		if large > 8*small {
			t.Errorf("%s: %d bytes for 250, %d for 1000", name, small, large)
		}
	}
}
