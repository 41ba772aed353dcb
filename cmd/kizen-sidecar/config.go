package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"

	"github.com/kizen/kizen-sidecar/telemetry"
)

// configFlags let the flags of a command be written into a file.
type configFlags struct {
	Config      kong.ConfigFlag `help:"YAML file of flags: their names without dashes, and their values. The command line wins over the environment, which wins over the file." placeholder:"FILE" group:"Configuration"`
	PrintConfig bool            `help:"Print the effective configuration, secrets masked, and exit." group:"Configuration" env:"-"`
}

// configFile is a file of flags, as kong asks it.
type configFile struct{ values map[string]any }

// loadConfig reads a file of flags. It is kong's ConfigurationLoader.
func loadConfig(r io.Reader) (kong.Resolver, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	file := configFile{}
	if err := yaml.Unmarshal(data, &file.values); err != nil {
		return nil, fmt.Errorf("the configuration is not YAML of names and values: %s", telemetry.Redact(firstLine(err.Error())))
	}
	return file, nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// Validate refuses names that no flag has: a misspelt limit must not be
// ignored. Every unknown name is reported.
func (f configFile) Validate(app *kong.Application) error {
	known := map[string]bool{}
	_ = kong.Visit(app, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok {
			known[flag.Name] = true
		}
		return next(nil)
	})
	var unknown []string
	for name := range f.values {
		if !known[name] || slices.Contains([]string{"config", "print-config", "help", "version"}, name) {
			unknown = append(unknown, fmt.Sprintf("%q", name))
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return fmt.Errorf("the configuration file has unknown keys: %s; use the names of flags", strings.Join(unknown, ", "))
	}
	return nil
}

// Resolve gives a flag its value from the file, unless the environment has one.
func (f configFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return nil, nil
		}
	}
	value, ok := f.values[flag.Name]
	if !ok {
		return nil, nil
	}
	if list, ok := value.([]any); ok {
		texts := make([]any, len(list)) // kong takes this for a list, and nothing else
		for i, item := range list {
			texts[i] = fmt.Sprint(item)
		}
		return texts, nil
	}
	return fmt.Sprint(value), nil
}

// printConfig writes the effective value of every flag of a command, in a form
// that --config reads.
func printConfig(w io.Writer, command *kong.Context) error {
	var values yaml.MapSlice
	for _, flag := range command.Flags() {
		if slices.Contains([]string{"help", "version", "config", "print-config"}, flag.Name) {
			continue
		}
		value := any(fmt.Sprint(command.FlagValue(flag)))
		if list, ok := command.FlagValue(flag).([]string); ok {
			value = list
		}
		values = append(values, yaml.MapItem{Key: flag.Name, Value: value})
	}
	text, err := yaml.Marshal(values)
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	_, err = io.WriteString(w, telemetry.Redact(string(text)))
	return err
}
