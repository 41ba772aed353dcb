package sidecartest

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

// RequireFlags checks a command line's program, subcommand and flags against the help of the built binary.
func RequireFlags(t testing.TB, command []string) {
	t.Helper()
	help := []string{"--help"}
	if len(command) > 1 && !strings.HasPrefix(command[1], "-") {
		help = []string{command[1], "--help"}
	}
	var out bytes.Buffer
	program := Command(t.Context(), nil, help...)
	program.Path = Program(command[0])
	program.Stdout = &out
	if err := program.Run(); err != nil {
		t.Fatalf("%s %v: %v", command[0], help, err)
	}
	for _, argument := range command[1:] {
		flag, _, _ := strings.Cut(argument, "=")
		if strings.HasPrefix(flag, "--") && !regexp.MustCompile(regexp.QuoteMeta(flag)+`[\s=,]`).MatchString(out.String()) {
			t.Errorf("%s %s has no flag %s", command[0], help[0], flag)
		}
	}
}
