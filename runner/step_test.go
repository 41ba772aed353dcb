package runner_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/runner"
)

func writeStep(t *testing.T, config, script string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"config.json": config, "script.py": script} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAStepFolderIsRead(t *testing.T) {
	step, err := runner.LoadStep(writeStep(t, `{
		"name": "Double", "api_name": "double", "runtime": "python 3.13", "secrets": ["token"], "script": "not read",
		"script_alias": {"doubled": "other"}, "unknown": 1,
		"inputs": [{"name": "n", "data_type": "number", "required": true}, {"name": "who", "data_type": "employee"}],
		"outputs": [{"name": "z", "data_type": "number"}, {"name": "a", "data_type": "email"}]}`, "\xef\xbb\xbfoutputs.z = 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := runner.Step{
		Name: "Double", APIName: "double", Runtime: runner.Python313, Secrets: []string{"token"},
		Inputs:  []runner.Parameter{{Name: "n", Type: "n", Required: true}, {Name: "who", Type: "e"}},
		Outputs: runner.Outputs{{Name: "z", Type: "n"}, {Name: "a", Type: "s"}},
		Script:  []byte("outputs.z = 1\n"),
	}
	if !reflect.DeepEqual(step, want) {
		t.Errorf("got %+v, want %+v", step, want)
	}
}

func TestAMissingRuntimeIsPython312(t *testing.T) {
	if step, err := runner.LoadStep(writeStep(t, `{}`, "pass")); err != nil || step.Runtime != runner.Python312 ||
		step.Secrets != nil {
		t.Errorf("got %+v, %v", step, err)
	}
}

func TestABadStepFolderSaysWhichFileAndField(t *testing.T) {
	for _, c := range []struct{ config, script, want string }{
		{"", "pass", "has no config.json"},
		{"{}", "", "has no script.py"},
		{"{\n\n\"a\": }", "pass", "config.json: is not JSON: line 3"},
		{`[]`, "pass", "config.json: must be a JSON object"},
		{`{"runtime": "python-3-9"}`, "pass",
			`config.json.runtime: unknown runtime "python-3-9"; use one of python-3-12, python-3-13`},
		{`{"secrets": "x"}`, "pass", "config.json.secrets: must be a list, not string"},
		{`{"inputs": [{"name": "a", "data_type": "mail"}]}`, "pass",
			"config.json.inputs.a.data_type: Invalid Kizen type 'mail'"},
		{`{"inputs": [{"data_type": "string"}]}`, "pass", "config.json.inputs.0.name:"},
		{`{"inputs": [{"name": "a", "data_type": "s"}, {"name": "a", "data_type": "s"}]}`, "pass",
			"config.json.inputs.a.name: is declared twice"},
		{`{"outputs": [{"name": "log", "data_type": "s"}]}`, "pass", "config.json.outputs.log.name:"},
		{`{}`, "x = '\xff'", "script.py: the script is not UTF-8"},
	} {
		_, err := runner.LoadStep(writeStep(t, c.config, c.script))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s gave %v, want it to contain %q", c.config, err, c.want)
		}
	}
}

func TestEveryMistakeOfAStepIsReportedAtOnce(t *testing.T) {
	_, err := runner.LoadStep(writeStep(t,
		`{"runtime": "ruby", "inputs": [{"name": "a", "data_type": "x"}], "outputs": [{"name": "b", "data_type": "y"}]}`,
		"\xff"))
	var fields *runner.FieldErrors
	if !errors.As(err, &fields) || len(fields.Lines()) != 4 {
		t.Errorf("got %v", err)
	}
}

func TestRuntimeSpellings(t *testing.T) {
	for name, want := range map[string]runner.Runtime{
		"": runner.Python312, "python-3-12": runner.Python312, "python-3-13": runner.Python313,
		"python 3.13": runner.Python313,
		"python-3.13": runner.Python313, "python3.13": runner.Python313, " Python 3.12 ": runner.Python312,
	} {
		if got, err := runner.ParseRuntime(name); err != nil || got != want {
			t.Errorf("%q gave %q, %v; want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"python-3-9", "python-3-14", "python3", "node", "python-3-131", "3.13"} {
		var unknown *runner.UnknownRuntimeError
		if _, err := runner.ParseRuntime(name); !errors.As(err, &unknown) || !strings.Contains(err.Error(), name) {
			t.Errorf("%q gave %v", name, err)
		}
	}
}

func TestOnlyRevealShowsASecret(t *testing.T) {
	secret := runner.NewSecret("hush")
	type holder struct{ S runner.Secret }
	marshalled, err := json.Marshal(map[string]any{"s": secret, "h": holder{secret},
		"m": map[string]runner.Secret{"k": secret}})
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "s", secret, "h", holder{secret})
	for _, text := range []string{
		fmt.Sprint(secret), fmt.Sprintf("%v %+v %#v %s %q %x %d", secret, secret, secret, secret, secret, secret, secret),
		fmt.Sprintf("%v %+v %#v", holder{secret}, holder{secret}, &holder{secret}), string(marshalled), logged.String(),
	} {
		if strings.Contains(text, "hush") || strings.Contains(text, "68757368") || !strings.Contains(text, "[REDACTED]") {
			t.Errorf("got %s", text)
		}
	}
	if secret.Reveal() != "hush" {
		t.Error("Reveal does not reveal")
	}
}

func TestDeclaredSecretsAreGrantedUnderThePluginsName(t *testing.T) {
	supplied := map[string]runner.Secret{
		"acme__api_key": runner.NewSecret("1"), "token": runner.NewSecret("2"), "other": runner.NewSecret("3"),
		"xapi_key": runner.NewSecret("4"),
	}
	granted, err := runner.GrantSecrets("", []string{"api_key", "token"}, supplied)
	if got := runner.SecretNames(granted); err != nil || !reflect.DeepEqual(got, []string{"acme__api_key", "token"}) {
		t.Errorf("granted %v, %v", got, err)
	}
	_, err = runner.GrantSecrets("", []string{"missing", "token"}, supplied)
	if err == nil || marshal(t, err) != `{"secrets":["secret \"missing\" is declared but was not supplied"]}` {
		t.Errorf("got %v", err)
	}
	if granted, err := runner.GrantSecrets("", []string{}, supplied); err != nil || len(granted) != 0 {
		t.Errorf("a step that declares no secret was granted %v, %v", granted, err)
	}
	if granted, err := runner.GrantSecrets("", nil, supplied); err != nil || len(granted) != len(supplied) {
		t.Errorf("a step without declarations was granted %v, %v", granted, err)
	}
}

func TestAPluginsStepReadsSecretsUnderThePluginsName(t *testing.T) {
	supplied := map[string]runner.Secret{
		"token": runner.NewSecret("bare"), "acme__api_key": runner.NewSecret("1"), "api_key": runner.NewSecret("2"),
		"other__key": runner.NewSecret("3"),
	}
	granted, err := runner.GrantSecrets("acme", []string{"token", "api_key"}, supplied)
	if got := runner.SecretNames(granted); err != nil ||
		!reflect.DeepEqual(got, []string{"acme__api_key", "acme__token"}) {
		t.Errorf("granted %v, %v", got, err)
	}
	if granted["acme__api_key"].Reveal() != "1" || granted["acme__token"].Reveal() != "bare" {
		t.Error("the bare name won over the plugin's own")
	}
	if _, err := runner.GrantSecrets("acme", []string{"key"}, supplied); err == nil {
		t.Error("the secret of another plugin was granted")
	}
}

func TestThePluginOfAStepIsTheNearestAbove(t *testing.T) {
	root := t.TempDir()
	step := filepath.Join(root, "plugin", "code_steps", "sync")
	if err := os.MkdirAll(step, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("plugin/code_steps/sync/config.json", `{"name": "Sync", "secrets": ["api_key"]}`)
	write("plugin/code_steps/sync/script.py", "pass")
	write("kizen.json", `{"api_name": "further_up"}`)
	write("plugin/kizen.json", "\xef\xbb\xbf"+`{"api_name": "my_plugin", "name": "My plugin"}`)
	if loaded, err := runner.LoadStep(step); err != nil || loaded.Plugin != "my_plugin" {
		t.Errorf("got %q, %v", loaded.Plugin, err)
	}
	for text, want := range map[string]string{
		`{`: "kizen.json: is not JSON", `{}`: "kizen.json.api_name: must be the plugin's name",
		`{"api_name": 5}`: "kizen.json.api_name: must be a string",
	} {
		write("plugin/kizen.json", text)
		if _, err := runner.LoadStep(step); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	write("plugin/code_steps/sync/config.json", `{"name": "Sync"}`)
	if loaded, err := runner.LoadStep(step); err != nil || loaded.Plugin != "" {
		t.Errorf("a step without secrets: %q, %v", loaded.Plugin, err)
	}
}
