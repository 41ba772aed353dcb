// Package flagfile reads the flags of a command from a YAML file, and writes them into one.
package flagfile

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"

	"github.com/kizen/kizen-sidecar/internal/redacted"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/telemetry"
)

// Path names a file of flags.
type Path string

// BeforeResolve is called by kong. The values of the file apply to flags that neither the command line nor the
// environment sets.
func (Path) BeforeResolve(command *kong.Context, trace *kong.Path) error {
	name := command.FlagValue(trace.Flag).(Path)
	data, err := wholefile.Read("file", string(name))
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	read, err := load(data)
	if err == nil {
		err = read.check(command.Flags())
	}
	if err != nil {
		return fmt.Errorf("--config %q: %w", name, err)
	}
	command.AddResolver(read)
	return nil
}

// file is a kong.Resolver with the values of a file.
type file struct{ values map[string]any }

func load(data []byte) (file, error) {
	var read file
	if err := yaml.Unmarshal(data, &read.values); err != nil {
		return read, fmt.Errorf("it is not YAML of names and values: %s", telemetry.Redact(firstLine(err.Error())))
	}
	return read, nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// unlisted are the flags that a file cannot set.
var unlisted = []string{"config", "print-config", "help", "version"}

// check rejects unknown names, because a misspelt limit must not be ignored, and values that no flag can have. It
// reports all errors together.
func (f file) check(flags []*kong.Flag) error {
	known := map[string]*kong.Flag{}
	for _, flag := range flags {
		if !slices.Contains(unlisted, flag.Name) {
			known[flag.Name] = flag
		}
	}
	var unknown, wrong []string
	for _, name := range slices.Sorted(maps.Keys(f.values)) {
		flag, ok := known[name]
		if !ok {
			unknown = append(unknown, fmt.Sprintf("%q", name))
		} else if _, ok := flagValue(f.values[name], flag.IsSlice()); !ok {
			wrong = append(wrong, fmt.Sprintf("%q has an invalid value", name))
		}
	}
	if len(unknown) > 0 {
		wrong = append(wrong, fmt.Sprintf("unknown keys: %s; use the names of the command's flags",
			strings.Join(unknown, ", ")))
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

// flagValue returns a value in the form that kong takes: a string, or a list of strings if the flag is repeatable.
func flagValue(value any, repeatable bool) (any, bool) {
	switch value := value.(type) {
	case string, bool, int64, uint64, float64:
		return fmt.Sprint(value), true
	case []any:
		texts := make([]any, len(value))
		for i, item := range value {
			text, ok := flagValue(item, false)
			if !ok {
				return nil, false
			}
			texts[i] = text
		}
		return texts, repeatable
	}
	return nil, false
}

// Validate implements kong.Resolver.
func (f file) Validate(*kong.Application) error { return nil }

// Resolve gives a flag its value from the file, unless the environment has one.
func (f file) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return nil, nil
		}
	}
	if value, ok := flagValue(f.values[flag.Name], flag.IsSlice()); ok {
		return value, nil
	}
	return nil, nil
}

// Print writes the effective value of every flag of a command, in the format of --config.
func Print(w io.Writer, command *kong.Context) error {
	var values yaml.MapSlice
	for _, flag := range command.Flags() {
		if slices.Contains(unlisted, flag.Name) {
			continue
		}
		var shown any
		switch value := flag.Target.Interface().(type) {
		case []string:
			shown = value
		case string:
			shown = maskURL(value)
		default:
			shown = fmt.Sprint(value)
		}
		values = append(values, yaml.MapItem{Key: flag.Name, Value: shown})
	}
	text, err := yaml.Marshal(values)
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	_, err = io.WriteString(w, telemetry.Redact(string(text)))
	return err
}

// maskURL masks the password of a URL. A password may contain any character, so it ends at the last @.
func maskURL(text string) string {
	scheme, rest, found := strings.Cut(text, "://")
	end := strings.LastIndex(rest, "@")
	if !found || end < 0 {
		return text
	}
	user, _, named := strings.Cut(rest[:end], ":")
	if !named {
		return scheme + "://" + redacted.Mark + rest[end:]
	}
	return scheme + "://" + user + ":" + redacted.Mark + rest[end:]
}
