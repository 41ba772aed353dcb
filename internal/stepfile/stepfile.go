// Package stepfile reads a step from its folder or a script, with the inputs, outputs and secrets that a person gives.
package stepfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/runner"
)

// scriptRuntime is the runtime of a script without a config.json.
const scriptRuntime = runner.Python313

// Source describes the step to run. Its fields correspond to the flags of kizen-sidecar run.
type Source struct {
	Step          string
	Script        string
	Input         []string
	DeclareOutput []string
	InputsFile    string
	OutputsFile   string
	Secret        []string
	SecretsFile   string
	Runtime       string
}

// Load reads and checks everything that the flags name, before anything starts. It reports all errors of inputs,
// outputs, secrets and runtime together, as *runner.FieldErrors.
func (f Source) Load(stdin io.Reader) (name string, job runner.Execution, err error) {
	step, declared, err := f.step(stdin)
	if err != nil {
		return "", job, err
	}
	var refused runner.FieldErrors
	job = runner.Execution{
		Script:  step.Script,
		Runtime: f.runtime(step, &refused),
		Inputs:  f.inputs(step, declared, &refused),
		Outputs: f.outputs(step, &refused),
	}
	supplied, err := f.secrets()
	if err != nil {
		return "", job, err
	}
	granted, err := runner.GrantSecrets(step.Plugin, step.Secrets, supplied)
	refused.Merge(err)
	job.Secrets = granted
	if err := refused.Err(); err != nil {
		return "", job, err
	}
	return step.Name, job, nil
}

// step reads the folder or the script, and reports whether its inputs are declared.
func (f Source) step(stdin io.Reader) (step runner.Step, declared bool, err error) {
	switch {
	case f.Step != "" && f.Script != "":
		return step, false, errors.New("give either the step's folder or --script, not both")
	case f.Step != "":
		step, err = loadStep(f.Step)
		return step, true, err
	case f.Script == "":
		return step, false, errors.New("no step given; name its folder, or use --script FILE")
	}
	source, err := readScript(f.Script, stdin)
	if err != nil {
		return step, false, err
	}
	step = runner.Step{Name: filepath.Base(f.Script), Runtime: scriptRuntime}
	if f.Script == "-" {
		step.Name = "standard input"
	}
	step.Script, err = runner.NormaliseScript(source)
	if err != nil {
		return step, false, fmt.Errorf("script %s: %w", f.Script, err)
	}
	return step, false, nil
}

func loadStep(dir string) (runner.Step, error) {
	about, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return runner.Step{}, fmt.Errorf("no such folder %q; check the path", dir)
	case err == nil && about.Mode().IsRegular():
		return runner.Step{}, fmt.Errorf("%q is a file; run it with --script, or name the folder of a step", dir)
	}
	step, err := runner.LoadStep(dir)
	if err != nil {
		return runner.Step{}, err
	}
	if path, err := filepath.Abs(dir); step.Name == "" && err == nil {
		step.Name = filepath.Base(path)
	}
	return step, nil
}

func readScript(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		source, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("read the script from standard input: %w", err)
		}
		return source, nil
	}
	return wholefile.Read("script", name)
}

func (f Source) runtime(step runner.Step, refused *runner.FieldErrors) runner.Runtime {
	if f.Runtime == "" {
		return step.Runtime
	}
	runtime, err := runner.ParseRuntime(f.Runtime)
	refused.Merge(err, "runtime")
	return runtime
}

// inputs merges the inputs file with the single flags, which take precedence.
func (f Source) inputs(step runner.Step, declared bool, refused *runner.FieldErrors) runner.Inputs {
	inputs := runner.Inputs{}
	complete := true
	if f.InputsFile != "" {
		data, err := wholefile.Read("inputs file", f.InputsFile)
		if err == nil {
			inputs, err = runner.DecodeInputs(data, step.Inputs)
		}
		complete = err == nil
		refused.Merge(err, fieldOf(err, "inputs")...)
	}
	if inputs == nil {
		inputs = runner.Inputs{}
	}
	for _, argument := range f.Input {
		name, value, supplied, err := runner.ParseInput(argument, step.Inputs)
		switch {
		case err != nil:
			complete = false
			refused.Merge(err)
		case supplied:
			inputs[name] = value
		default:
			delete(inputs, name)
		}
	}
	if declared && complete {
		refused.Merge(runner.CheckInputs(step.Inputs, inputs))
	}
	return inputs
}

// fieldOf returns the field under which an error is reported that does not name its own field.
func fieldOf(err error, field string) []string {
	var fields *runner.FieldErrors
	if errors.As(err, &fields) {
		return nil
	}
	return []string{field}
}

// outputs adds the outputs file and the single flags to the declared outputs of the step. Single flags take precedence
// over the file, and the file over declarations.
func (f Source) outputs(step runner.Step, refused *runner.FieldErrors) runner.Outputs {
	outputs := slices.Clone(step.Outputs)
	if f.OutputsFile != "" {
		data, err := wholefile.Read("outputs file", f.OutputsFile)
		var declared runner.Outputs
		if err == nil {
			declared, err = runner.DecodeOutputs(data)
		}
		refused.Merge(err, fieldOf(err, "output_types")...)
		for _, output := range declared {
			outputs = declareOutput(outputs, output)
		}
	}
	for _, argument := range f.DeclareOutput {
		output, err := runner.ParseOutput(argument)
		if err != nil {
			refused.Merge(err)
			continue
		}
		outputs = declareOutput(outputs, output)
	}
	return outputs
}

// secrets reads the secrets file and the single flags, which take precedence.
func (f Source) secrets() (map[string]runner.Secret, error) {
	secrets := map[string]runner.Secret{}
	if f.SecretsFile != "" {
		data, err := wholefile.Read("secrets file", f.SecretsFile)
		if err != nil {
			return nil, err
		}
		var values map[string]string
		if json.Unmarshal(data, &values) != nil {
			// The decoder's message may quote a secret.
			return nil, fmt.Errorf("secrets file %q is not a JSON object of strings; write it like {\"name\": \"value\"}",
				f.SecretsFile)
		}
		for name, value := range values {
			secrets[name] = runner.NewSecret(value)
		}
	}
	for _, argument := range f.Secret {
		name, value, given := strings.Cut(argument, "=")
		if name == "" {
			return nil, errors.New("a --secret has no name; write it NAME=VALUE, or NAME to read the environment variable NAME")
		}
		if !given {
			value, given = os.LookupEnv(name)
			if !given {
				return nil, fmt.Errorf("secret %q has no value; set the environment variable %s, or use --secrets-file", name, name)
			}
		}
		secrets[name] = runner.NewSecret(value)
	}
	for _, name := range runner.SecretNames(secrets) {
		if secrets[name].Reveal() == "" {
			return nil, fmt.Errorf("secret %q is empty; give it a value, or leave it out", name)
		}
	}
	return secrets, nil
}

// declareOutput adds output, and replaces one with the same name.
func declareOutput(outputs runner.Outputs, output runner.Parameter) runner.Outputs {
	same := func(declared runner.Parameter) bool { return declared.Name == output.Name }
	if i := slices.IndexFunc(outputs, same); i >= 0 {
		outputs[i] = output
		return outputs
	}
	return append(outputs, output)
}
