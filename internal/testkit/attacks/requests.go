package attacks

import (
	"fmt"
	"strings"
)

// Request is a body of POST /api/coderunner/run that is, or once was, far more expensive to refuse than its size
// suggests.
type Request struct {
	Name string
	Body string
	// Says is part of the response, which is a 400 of less than 64 KiB.
	Says string
}

// Requests returns all such bodies.
func Requests() []Request {
	field := func(name, value string) string {
		return `{"runtime": "python-3-13", "user_script": "pass", "` + name + `": ` + value + `}`
	}
	many := func(count int, format string) string {
		var all strings.Builder
		for i := range count {
			if i > 0 {
				all.WriteByte(',')
			}
			fmt.Fprintf(&all, format, i)
		}
		return all.String()
	}
	lists := strings.Repeat(`{"t":"l","v":[`, 30) + strings.Repeat("{},", 800_000) + "{}" + strings.Repeat(`]}`, 30)
	deep := strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	return []Request{
		{"30 nested lists around 800,000 objects", field("inputs", `{"x": `+lists+`}`),
			"its lists have more than 100000 elements together"},
		{"40,000 output types", field("output_types", "{"+many(40_000, `"n%d": "n"`)+"}"), "more than 1000 members"},
		{"40,000 inputs", field("inputs", "{"+many(40_000, `"n%d": {"t": "n", "v": 1}`)+"}"), "more than 1000 members"},
		{"700,000 names of secrets", field("secrets", "["+many(700_000, `"S%d"`)+"]"),
			"its lists have more than 1000 elements together"},
		{"names of secrets nested 100,000 deep", field("secrets", deep), ""},
		{"inputs nested 100,000 deep", field("inputs", `{"x": `+deep+`}`), ""},
		{"an unknown field nested 100,000 deep", field("unknown", deep), ""},
		{"300,000 unknown fields", `{"user_script": "pass", ` + many(300_000, `"unknown%d": [1]`) + "}",
			"there are more errors than these 100"},
		{"one field 300,000 times", `{"user_script": "pass"` + strings.Repeat(`, "runtime": "python-3-13"`, 300_000) + "}",
			"is given twice"},
		{"300,000 wrong inputs", field("inputs", `{"x": {"t": "l", "v": [`+many(90_000, `{"t": "x%d"}`)+`]}}`),
			"Invalid Kizen type"},
		{"a number of a million digits", field("timeout_ms", strings.Repeat("9", 1_000_000)), "must be a whole number"},
		{"a list as JSON text of 800,000 elements",
			field("inputs", `{"x": {"t": "l", "v": "[`+strings.Repeat("1,", 800_000)+`1]"}}`), "100000 elements together"},
		{"a name of an input of a megabyte", field("inputs", `{"`+strings.Repeat("x", 1<<20)+`": {"t": "n", "v": "y"}}`), ""},
		{"half a surrogate pair", field("inputs", `{"x": {"t": "s", "v": "\ud800"}}`), "half of a surrogate pair"},
	}
}

// ExpensiveStep is a step within every limit that would use far more memory than its request or its result has bytes,
// if the sidecar kept values decoded. It succeeds.
type ExpensiveStep struct {
	Name, Source string
	// Inputs and OutputTypes are JSON documents.
	Inputs, OutputTypes string
}

// ExpensiveSteps returns all such steps.
func ExpensiveSteps() []ExpensiveStep {
	lists := `{"x":{"t":"l","v":[` + strings.Repeat(`{"t":"l","v":[]},`, 48_999) + `{"t":"l","v":[]}]}}`
	return []ExpensiveStep{
		{"an output of 90,000 empty lists", "outputs.l = [[] for _ in range(90_000)]", "{}", `{"l":"l"}`},
		{"an input of 49,000 empty lists", "pass", lists, "{}"},
		{"100,000 empty messages", "for _ in range(100_000): outputs.log('')", "{}", "{}"},
	}
}
