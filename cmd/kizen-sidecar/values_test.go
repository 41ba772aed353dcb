package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// describeInputs logs each supplied input, sorted, with its class.
const describeInputs = "for name, value in sorted(vars(inputs).items()): outputs.log(f'{name} {type(value).__name__} {value!r}')"

// clientInputs are inputs in the forms that clients send, other than the platform's.
const clientInputs = `{
	"empty_number": {"t": "n", "v": ""}, "empty_list": {"t": "l", "v": ""}, "empty_file": {"t": "f", "v": ""},
	"flag": {"t": "b", "v": "True"}, "no": {"t": "b", "v": "FALSE"},
	"list": {"t": "l", "v": "[{\"t\": \"n\", \"v\": \"1\"}, 2, \"a\"]"}, "array": {"t": "a[n]", "v": "[1, 2]"},
	"number": {"t": "n", "v": "21"}, "text": {"t": "s", "v": 21}, "truth": {"t": "s", "v": true}, "empty_text": {"t": "s", "v": ""}}`

var clientInputsLogged = []string{
	"array list [1, 2]", "empty_text str ''", "flag bool True", "list list [1, 2, 'a']", "no bool False", "number int 21",
	"text str '21'", "truth str 'true'",
}

// TestInputsOfExistingClientsAreRead: inputs as existing clients write them reach Python with the same types and values
// over HTTP and from a file.
func TestInputsOfExistingClientsAreRead(t *testing.T) {
	s := startServe(t)
	got := s.ask("POST", "/api/coderunner/run", script(describeInputs).with("inputs", json.RawMessage(clientInputs)))
	if logs := got.document(t).Logs; got.status != http.StatusOK ||
		strings.Join(logs, "\n") != strings.Join(clientInputsLogged, "\n") {
		t.Errorf("over HTTP: %d %q", got.status, logs)
	}
	got = s.ask("POST", "/api/coderunner/run",
		script("pass").with("inputs", json.RawMessage(`{"f": {"t": "f", "v": "7d444840-9dc0-11d1-b245-5ffdce74fad2"}}`)))
	if got.status != http.StatusBadRequest ||
		!strings.Contains(got.body, "send the file's object with its presigned url") {
		t.Errorf("a file that is only an id: %d %s", got.status, got.body)
	}

	dir := t.TempDir()
	for name, text := range map[string]string{"inputs.json": clientInputs, "script.py": describeInputs} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ran := sidecar(t, "", nil, "run", "--json", "--script", filepath.Join(dir, "script.py"), "--inputs-file",
		filepath.Join(dir, "inputs.json"), "--input", "late=:number")
	var result document
	if err := json.Unmarshal([]byte(ran.stdout), &result); err != nil ||
		strings.Join(result.Logs, "\n") != strings.Join(clientInputsLogged, "\n") {
		t.Errorf("from a file: %q, %v\n%s", result.Logs, err, ran.stderr)
	}
}

// TestAStepOfAPluginReadsItsSecretsUnderThePluginsName: a step in a plugin's folder reads secrets with the plugin's
// prefix, and a wrong name gives an error that says so. The folder's files, the flags and Python's secrets meet.
func TestAStepOfAPluginReadsItsSecretsUnderThePluginsName(t *testing.T) {
	dir := t.TempDir()
	step := filepath.Join(dir, "steps", "sync")
	if err := os.MkdirAll(step, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"kizen.json":             `{"name": "My plugin", "api_name": "my_plugin"}`,
		"steps/sync/config.json": `{"name": "Sync", "api_name": "sync", "secrets": ["api_key"]}`,
		"steps/sync/script.py":   "outputs.log(sorted(secrets))\noutputs.log(len(secrets['my_plugin__api_key']))\nsecrets['api_key']",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"api_key", "my_plugin__api_key"} {
		got := sidecar(t, "", nil, "run", "--json", step, "--secret", name+"=s3cr3t-value")
		var result document
		if err := json.Unmarshal([]byte(got.stdout), &result); err != nil || result.Error == nil {
			t.Fatalf("%v\n%s\n%s", err, got.stdout, got.stderr)
		}
		want := "KeyError: secret 'api_key' was not granted; granted: my_plugin__api_key; this step reads it as secrets['my_plugin__api_key']"
		if strings.Join(result.Logs, "|") != "['my_plugin__api_key']|12" || result.Error.Error != want {
			t.Errorf("supplied as %s: logs %q, error %s", name, result.Logs, result.Error.Error)
		}
	}
}
