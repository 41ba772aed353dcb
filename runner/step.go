package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"unicode/utf8"
)

// ScriptName is the file with a step's source, and its name in tracebacks.
const ScriptName = "script.py"

// ConfigName is the file with a step's declarations.
const ConfigName = "config.json"

// PluginName is the file with a plugin's name, in the plugin's folder; its steps are in folders below.
const PluginName = "kizen.json"

// Step is a Code Step in a folder.
type Step struct {
	Name    string
	APIName string
	Runtime Runtime
	// Secrets lists the declared names; nil if config.json has no such key.
	Secrets []string
	// Plugin is the api_name of the step's plugin; empty without a plugin, or if the step declares no secrets.
	Plugin  string
	Inputs  []Parameter
	Outputs Outputs
	Script  []byte
}

// LoadStep reads dir's config.json and script.py. It reports all errors of the declarations together as *FieldErrors,
// keyed by file and field; an unreadable file is a separate error.
func LoadStep(dir string) (Step, error) {
	config, err := readStepFile(dir, ConfigName)
	if err != nil {
		return Step{}, err
	}
	script, err := readStepFile(dir, ScriptName)
	if err != nil {
		return Step{}, err
	}
	step, err := parseConfig(config)
	var errs FieldErrors
	errs.Merge(err, ConfigName)
	step.Script, err = NormaliseScript(script)
	errs.Merge(err, ScriptName)
	if len(step.Secrets) > 0 {
		step.Plugin, err = findPlugin(dir)
		errs.Merge(err, PluginName)
	}
	if err := errs.Err(); err != nil {
		return Step{}, fmt.Errorf("step %s: %w", dir, err)
	}
	return step, nil
}

func readStepFile(dir, name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("step %s has no %s; a step is a folder with %s and %s", dir, name, ConfigName, ScriptName)
	}
	if err != nil {
		return nil, fmt.Errorf("read step: %w", err)
	}
	return data, nil
}

// findPlugin returns the api_name in the nearest kizen.json, in dir or a folder above it, or "".
func findPlugin(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, PluginName))
		if err == nil {
			return parsePlugin(data)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read the plugin's name: %w", err)
		}
		above := filepath.Dir(dir)
		if above == dir {
			return "", nil
		}
		dir = above
	}
}

func parsePlugin(data []byte) (string, error) {
	var plugin struct {
		APIName string `json:"api_name"`
	}
	var errs FieldErrors
	if err := json.Unmarshal(bytes.TrimPrefix(data, []byte(byteOrderMark)), &plugin); err != nil {
		addJSONError(&errs, data, err)
	} else if plugin.APIName == "" {
		errs.Add("must be the plugin's name: the step reads its secrets as {api_name}__{secret}", "api_name")
	}
	return plugin.APIName, errs.Err()
}

const byteOrderMark = "\xef\xbb\xbf"

// NormaliseScript checks that source is UTF-8 and removes a byte order mark.
func NormaliseScript(source []byte) ([]byte, error) {
	source = bytes.TrimPrefix(source, []byte(byteOrderMark))
	if !utf8.Valid(source) {
		return nil, errors.New("the script is not UTF-8; save it as UTF-8")
	}
	return source, nil
}

// configFile is config.json. Its script_alias and script keys are ignored: the names are bound directly, and the source
// is script.py.
type configFile struct {
	Name    string            `json:"name"`
	APIName string            `json:"api_name"`
	Runtime string            `json:"runtime"`
	Secrets []string          `json:"secrets"`
	Inputs  []configParameter `json:"inputs"`
	Outputs []configParameter `json:"outputs"`
}

type configParameter struct {
	Name     string `json:"name"`
	DataType string `json:"data_type"`
	Required bool   `json:"required"`
}

func parseConfig(data []byte) (Step, error) {
	var errs FieldErrors
	var config configFile
	if err := json.Unmarshal(data, &config); err != nil {
		addJSONError(&errs, data, err)
		return Step{}, errs.Err()
	}
	runtime, err := ParseRuntime(config.Runtime)
	errs.Merge(err, "runtime")
	for i, name := range config.Secrets {
		if name == "" {
			errs.Add("a secret needs a name", "secrets", fmt.Sprint(i))
		}
	}
	return Step{
		Name:    config.Name,
		APIName: config.APIName,
		Runtime: runtime,
		Secrets: config.Secrets,
		Inputs:  parseParameters(&errs, "inputs", config.Inputs, checkName),
		Outputs: parseParameters(&errs, "outputs", config.Outputs, checkOutputName),
	}, errs.Err()
}

// addJSONError adds a decoding error under its field, or with its line number.
func addJSONError(errs *FieldErrors, data []byte, err error) {
	var mistyped *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &mistyped) && mistyped.Field != "":
		errs.Add(fmt.Sprintf("must be %s, not %s", jsonKind(mistyped), mistyped.Value), mistyped.Field)
	case errors.As(err, &syntax):
		line := 1 + bytes.Count(data[:min(int(syntax.Offset), len(data))], []byte("\n"))
		errs.Add(fmt.Sprintf("is not JSON: line %d: %s", line, syntax))
	default:
		errs.Add("must be a JSON object")
	}
}

func jsonKind(err *json.UnmarshalTypeError) string {
	switch err.Type.Kind().String() {
	case "slice":
		return "a list"
	case "bool":
		return "true or false"
	case "struct":
		return "an object"
	}
	return "a string"
}

func parseParameters(errs *FieldErrors, field string, raw []configParameter, check func(string) error) []Parameter {
	var parameters []Parameter
	seen := map[string]bool{}
	for i, p := range raw {
		key := p.Name
		if key == "" {
			key = fmt.Sprint(i)
		}
		errs.Merge(check(p.Name), field, key, "name")
		if seen[p.Name] {
			errs.Add("is declared twice", field, key, "name")
		}
		seen[p.Name] = true
		t, err := ParseType(p.DataType)
		errs.Merge(err, field, key, "data_type")
		parameters = append(parameters, Parameter{Name: p.Name, Type: t, Required: p.Required})
	}
	return parameters
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
