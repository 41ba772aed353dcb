package telemetry

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// redactInPython redacts each case on standard input, one line of JSON each, as a step's process does.
const redactInPython = `
import json, sys
from kizen_runtime.redact import Redactor
for line in sys.stdin:
    case = json.loads(line)
    redact = Redactor(case["Secrets"])
    print(json.dumps([redact(case["Text"]), redact.name(case["Text"], 1 << 30)]))
`

// A step's process redacts first, and the sidecar redacts its output again, so both must leave the same text.
func TestGoAndPythonRedactAlike(t *testing.T) {
	cases := mutations(t, 6000)
	var input, refused bytes.Buffer
	encoder := json.NewEncoder(&input)
	for _, c := range cases {
		if err := encoder.Encode(c); err != nil {
			t.Fatal(err)
		}
	}
	harness, err := filepath.Abs("../runner/python")
	if err != nil {
		t.Fatal(err)
	}
	python := exec.Command("../.ci/python", "-c", redactInPython)
	python.Env = append(python.Environ(), "PYTHONPATH="+harness, "PYTHONDONTWRITEBYTECODE=1")
	python.Stdin, python.Stderr = &input, &refused
	output, err := python.Output()
	if err != nil {
		t.Fatalf("python: %v: %s", err, refused.String())
	}
	lines := bufio.NewScanner(bytes.NewReader(output))
	lines.Buffer(nil, 1<<24)
	changed := 0
	for _, c := range cases {
		var want []string
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &want) != nil {
			t.Fatalf("python answered with %q", lines.Text())
		}
		m := NewMask(c.Secrets...)
		for i, got := range []string{m.Text(c.Text), m.Name(c.Text)} {
			if got != want[i] {
				t.Errorf("%q without %q is %q, and %q in Python", c.Text, c.Secrets, got, want[i])
			}
		}
		if want[0] != c.Text {
			changed++
		}
		for _, secret := range c.Secrets {
			if utf8.RuneCountInString(secret) >= identifying && strings.Contains(want[0], secret) {
				t.Errorf("%q without %q is %q", c.Text, c.Secrets, want[0])
			}
		}
		if t.Failed() {
			break
		}
	}
	if changed < len(cases)/2 {
		t.Errorf("of %d texts %d had a secret", len(cases), changed)
	}
}

// mutations returns texts that combine texts of the corpus, its secrets in many forms, and structural characters.
func mutations(t *testing.T, count int) []redactionCase {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string) string { return from[random.IntN(len(from))] }
	corpus := readRedaction(t)
	var secrets, pieces []string
	for _, c := range corpus.Texts {
		secrets = append(secrets, c.Secrets...)
		pieces = append(pieces, c.Text)
	}
	glue := strings.Split(`"|\|%|{|}|[|]|:|, |/|?|&|=|-|.|1|4|a|é|日|'|\n|\u00|%2|%25|://|File "/x/|line |`+" |\n|\u2019|_|n|u|\\\\|@", "|")
	recodings := []func(string) string{
		func(s string) string { return s },
		strings.ToUpper,
		url.QueryEscape,
		url.PathEscape,
		func(s string) string { quoted, _ := json.Marshal(s); return string(quoted) },
		func(s string) string { quoted, _ := json.Marshal(s); return strings.Trim(string(quoted), `"`) },
		func(s string) string { return hex.EncodeToString([]byte(s)) },
		func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		func(s string) string { return base64.URLEncoding.EncodeToString([]byte("u:" + s)) },
	}
	cases := make([]redactionCase, count)
	for i := range cases {
		c := &cases[i]
		for range 1 + random.IntN(4) {
			c.Secrets = append(c.Secrets, pick(secrets))
		}
		if random.IntN(50) == 0 { // more than Python searches for one by one
			for range 40 {
				c.Secrets = append(c.Secrets, pick(secrets))
			}
		}
		var text strings.Builder
		for range 1 + random.IntN(12) {
			piece := pick([]string{pick(glue), pick(glue), pick(c.Secrets), pick(c.Secrets), pick(secrets), pick(pieces)})
			for random.IntN(2) == 0 {
				piece = recodings[random.IntN(len(recodings))](piece)
			}
			if random.IntN(8) == 0 && piece != "" {
				piece = piece[random.IntN(len(piece)):]
			}
			text.WriteString(piece)
		}
		c.Text = strings.ToValidUTF8(text.String(), "")
		if !utf8.ValidString(c.Text) {
			t.Fatalf("%q", c.Text)
		}
	}
	return cases
}
