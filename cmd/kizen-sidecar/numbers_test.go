package main

import (
	"bytes"
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// TestEveryNumberHasAMinimum gives every number and duration of every command a negative value. The error names the flag
// and the value, and no command starts.
func TestEveryNumberHasAMinimum(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel() // a command that starts nevertheless ends immediately
	for _, command := range grammar(t).Model.Leaves(true) {
		for _, flag := range command.Flags {
			if flag.Target.Kind() != reflect.Int && flag.Target.Kind() != reflect.Int64 {
				continue
			}
			value := "-2"
			if flag.Target.Type() == reflect.TypeFor[time.Duration]() {
				value = "-2s"
			}
			path := strings.Fields(command.Path())
			var stdout, stderr bytes.Buffer
			code := run(ended, append(append(path, required(command)...), "--"+flag.Name, value),
				streams{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr})
			want := "kizen-sidecar: --" + flag.Name + " " + value + " "
			if got := stderr.String(); code != exitUsage || !strings.HasPrefix(got, want) {
				t.Errorf("%s --%s %s: %d %s", command.FullPath(), flag.Name, value, code, got)
			}
		}
	}
}

// required returns values for the arguments and flags that a command requires.
func required(command *kong.Node) (arguments []string) {
	for _, positional := range command.Positional {
		if positional.Required {
			arguments = append(arguments, "x")
		}
	}
	alternatives := map[string]bool{}
	for _, flag := range command.Flags {
		if flag.Required && !alternatives[strings.Join(flag.Xor, " ")] {
			alternatives[strings.Join(flag.Xor, " ")] = len(flag.Xor) > 0
			arguments = append(arguments, "--"+flag.Name, "x")
		}
	}
	return arguments
}

// TestNoHelpNamesAVariableThatDoesNotExist: kong reads the tag env:"-" as no variable for a flag, but as a variable
// named "-" for an argument.
func TestNoHelpNamesAVariableThatDoesNotExist(t *testing.T) {
	for _, command := range grammar(t).Model.Leaves(true) {
		for _, positional := range command.Positional {
			if slices.Contains(positional.Tag.Envs, "-") {
				t.Errorf("the help of %s names a variable \"-\" for %s", command.FullPath(), positional.Summary())
			}
		}
	}
}
