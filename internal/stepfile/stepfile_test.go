package stepfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/kizen/kizen-sidecar/runner"
)

// folder writes files, by name, into a new folder.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const config = `{"name": "Sync", "api_name": "sync", "runtime": "python-3-12", "secrets": ["api_key"],
	"inputs": [{"name": "who", "data_type": "string", "required": true}, {"name": "count", "data_type": "number"}],
	"outputs": [{"name": "total", "data_type": "number"}]}`

func TestFlagsAddToAFolder(t *testing.T) {
	dir := folder(t, map[string]string{
		"kizen.json": `{"name": "My plugin", "api_name": "my_plugin"}`, "step/config.json": config,
		"step/script.py": "pass\n",
		"inputs.json":    `{"who": "file", "count": 1}`, "outputs.json": `{"total": "string", "more": "date"}`,
		"secrets.json": `{"api_key": "file"}`,
	})
	source := Source{
		Step: filepath.Join(dir, "step"), InputsFile: filepath.Join(dir, "inputs.json"),
		OutputsFile: filepath.Join(dir, "outputs.json"),
		SecretsFile: filepath.Join(dir, "secrets.json"),
	}
	name, job, err := source.Load(strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	if name != "Sync" || job.Runtime != runner.Python312 || string(job.Script) != "pass\n" || len(job.Inputs) != 2 ||
		job.Secrets["my_plugin__api_key"].Reveal() != "file" {
		t.Errorf("%q %+v", name, job)
	}
	if len(job.Outputs) != 2 || job.Outputs[0].Name != "total" || job.Outputs[0].Type != "s" ||
		job.Outputs[1].Name != "more" {
		t.Errorf("a file of outputs must replace outputs of config.json, and add others: %+v", job.Outputs)
	}
	// Single flags take precedence over files. An input without a value is not supplied.
	source.Input, source.Secret, source.Runtime = []string{"who=flag", "count=:number"}, []string{"api_key=flag"},
		"python-3-13"
	source.DeclareOutput = []string{"more:number", "third"}
	if _, job, err = source.Load(strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	if _, there := job.Inputs["count"]; there || job.Runtime != runner.Python313 ||
		job.Secrets["my_plugin__api_key"].Reveal() != "flag" {
		t.Errorf("%+v", job)
	}
	if len(job.Outputs) != 3 || job.Outputs[1].Type != "n" || job.Outputs[2].Name != "third" {
		t.Errorf("%+v", job.Outputs)
	}
}

func TestAScriptIsReadFromAFileOrFromStandardInput(t *testing.T) {
	file := filepath.Join(folder(t, map[string]string{"a.py": "one"}), "a.py")
	for source, want := range map[origin]string{{file, "unread"}: "a.py: one", {"-", "two"}: "standard input: two"} {
		name, job, err := Source{Script: source.script, Input: []string{"any=1"}}.Load(strings.NewReader(source.stdin))
		if got := name + ": " + string(job.Script); err != nil || got != want || job.Runtime != scriptRuntime ||
			len(job.Inputs) != 1 {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if _, _, err := (Source{Script: "-"}).Load(iotest.ErrReader(io.ErrUnexpectedEOF)); !errors.Is(err,
		io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "standard input") {
		t.Errorf("%v", err)
	}
}

// origin is the source of a script.
type origin struct{ script, stdin string }

func TestAStepWithoutANameIsNamedAfterItsFolder(t *testing.T) {
	dir := folder(t, map[string]string{"sync/config.json": "{}", "sync/script.py": "pass"})
	t.Chdir(filepath.Join(dir, "sync"))
	for _, step := range []string{".", "../sync", filepath.Join(dir, "sync")} {
		if name, _, err := (Source{Step: step}).Load(strings.NewReader("")); err != nil || name != "sync" {
			t.Errorf("%s: %q, %v", step, name, err)
		}
	}
}

func TestEveryErrorIsOneLine(t *testing.T) {
	dir := folder(t, map[string]string{
		"step/config.json": `{"name": "x"}`, "step/script.py": "pass", "empty/x": "", "ok.py": "pass",
		"latin1.py":   "x = '\xe9'",
		"broken.json": `{"n": "not-for-the-log"`, "nested.json": `{"KEY": {"x": "not-for-the-log"}}`,
		"bad/config.json": "{\n oops}", "bad/script.py": "pass",
	})
	t.Chdir(dir)
	for want, source := range map[string]Source{
		"no step given; name its folder, or use --script FILE": {},
		"give either the step's folder or --script, not both":  {Step: "step", Script: "ok.py"},
		`no such folder "nowhere"; check the path`:             {Step: "nowhere"},
		`"ok.py" is a file; run it with --script`:              {Step: "ok.py"},
		"has no config.json":                                   {Step: "empty"},
		"config.json: is not JSON: line 2":                     {Step: "bad"},
		`no such script "none.py"`:                             {Script: "none.py"},
		"script latin1.py: ":                                   {Script: "latin1.py"},
		`runtime: unknown runtime "ruby"`:                      {Script: "ok.py", Runtime: "ruby"},
		"inputs: no such inputs file":                          {Script: "ok.py", InputsFile: "none.json"},
		"inputs: must be a JSON object":                        {Script: "ok.py", InputsFile: "broken.json"},
		"output_types: must be a JSON object":                  {Script: "ok.py", OutputsFile: "broken.json"},
		"output_types: no such outputs file":                   {Script: "ok.py", OutputsFile: "none.json"},
		"output_types.n: Invalid Kizen type 'mail'": {Script: "ok.py",
			DeclareOutput: []string{"n:mail"}},
		"inputs.n: Invalid Kizen type 'mail'":                            {Script: "ok.py", Input: []string{"n=1:mail"}},
		"no such secrets file":                                           {Script: "ok.py", SecretsFile: "none.json"},
		`secrets file "broken.json" is not a JSON object of strings`:     {Script: "ok.py", SecretsFile: "broken.json"},
		`secrets file "nested.json" is not a JSON object of strings`:     {Script: "ok.py", SecretsFile: "nested.json"},
		"a --secret has no name; write it NAME=VALUE":                    {Script: "ok.py", Secret: []string{"=value"}},
		`secret "KIZEN_NONE" has no value; set the environment variable`: {Script: "ok.py", Secret: []string{"KIZEN_NONE"}},
		`secret "KEY" is empty; give it a value, or leave it out`:        {Script: "ok.py", Secret: []string{"KEY="}},
	} {
		_, job, err := source.Load(strings.NewReader(""))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "not-for-the-log") ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want one line with %q", source, err, want)
		}
		if err != nil && len(job.Secrets) > 0 {
			t.Errorf("%+v: secrets are returned with an error", source)
		}
	}
}

func TestAllErrorsOfFieldsAreReportedTogether(t *testing.T) {
	dir := folder(t, map[string]string{"config.json": config, "script.py": "pass", "null.json": `{"who": null}`})
	for _, row := range []struct {
		source Source
		want   []string
	}{
		{
			Source{Input: []string{"count=three", "who=x"}, DeclareOutput: []string{"n:mail"}, Runtime: "ruby"},
			[]string{"inputs.count: ", "output_types.n: ", "runtime: ",
				`secrets: secret "api_key" is declared but was not supplied`},
		},
		{Source{Secret: []string{"api_key=x"}}, []string{"inputs.who: is required but was not supplied"}},
		{Source{Secret: []string{"api_key=x"}, InputsFile: filepath.Join(dir, "null.json")},
			[]string{"inputs.who: is required and must not be null"}},
		{Source{Secret: []string{"api_key=x"}, Input: []string{"who=x", "whom=y"}},
			[]string{"inputs.whom: is not an input of this step"}},
	} {
		source := row.source
		source.Step = dir
		_, _, err := source.Load(strings.NewReader(""))
		if _, ok := errors.AsType[*runner.FieldErrors](err); !ok {
			t.Errorf("%+v: %T %v", row.source, err, err)
			continue
		}
		for _, want := range row.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v, want %q", row.source, err, want)
			}
		}
	}
	// An invalid input must not also be reported as missing.
	_, _, err := Source{Step: dir, Secret: []string{"api_key=x"},
		InputsFile: filepath.Join(dir, "none.json")}.Load(strings.NewReader(""))
	if err == nil || strings.Contains(err.Error(), "who") {
		t.Errorf("%v", err)
	}
}

func TestASecretWithoutAValueIsReadFromTheEnvironment(t *testing.T) {
	t.Setenv("ACME_KEY", "open-sesame=")
	_, job, err := Source{Script: "-", Secret: []string{"ACME_KEY", "OTHER=a=b"}}.Load(strings.NewReader("pass"))
	if err != nil || job.Secrets["ACME_KEY"].Reveal() != "open-sesame=" || job.Secrets["OTHER"].Reveal() != "a=b" {
		t.Errorf("%d secrets, %v", len(job.Secrets), err)
	}
}
