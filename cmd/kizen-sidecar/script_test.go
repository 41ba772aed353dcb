package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kizen/kizen-sidecar/internal/testkit/sidecartest"
)

// TestCommandLine runs each scenario in testdata/script against the built binary.
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(sidecartest.Program("kizen-sidecar"))+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"onejson": oneJSON,
			"oneline": oneLine,
		},
		RequireExplicitExec: true,
	})
}

// exits runs a program and checks its exit code: exits CODE PROGRAM ARGUMENT... The other checks read its output.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGUMENT...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	program := args[1]
	if !filepath.IsAbs(program) {
		program = sidecartest.Program(program)
	}
	command := exec.Command(program, args[2:]...)
	command.Dir = ts.Getenv("WORK")
	command.Env = scriptEnvironment(ts)
	if input, err := os.ReadFile(ts.MkAbs("stdin")); err == nil {
		command.Stdin = bytes.NewReader(input)
	}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := command.Run(); err != nil && !errors.As(err, &exit) {
		ts.Check(err)
	}
	ts.Check(os.WriteFile(ts.MkAbs("out"), stdout.Bytes(), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("err"), stderr.Bytes(), 0o644))
	if got := command.ProcessState.ExitCode(); got != want {
		ts.Fatalf("exit code %d, want %d\n%s\n%s", got, want, &stdout, &stderr)
	}
	for _, trace := range []string{"goroutine ", "panic:", "runtime/debug"} {
		if strings.Contains(stderr.String(), trace) {
			ts.Fatalf("standard error contains a stack trace:\n%s", &stderr)
		}
	}
}

// scriptEnvironment returns the variables that a scenario may set.
func scriptEnvironment(ts *testscript.TestScript) []string {
	var environment []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "ACME_KEY", "KIZEN_INPUT", "KIZEN_TIMEOUT", "KIZEN_API_ROOT",
		"KIZEN_LOG", "REDIS_URL"} {
		if value := ts.Getenv(name); value != "" {
			environment = append(environment, name+"="+value)
		}
	}
	return environment
}

// oneJSON checks that a file contains exactly one JSON document and nothing else: onejson FILE
func oneJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: onejson FILE")
	}
	if err := checkOneJSON([]byte(ts.ReadFile(args[0]))); err != nil {
		ts.Fatalf("%s: %v", args[0], err)
	}
}

// oneLine checks that a file contains exactly one line besides the log: oneline FILE
func oneLine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: oneline FILE")
	}
	if text := ts.ReadFile(args[0]); strings.Count(text, "\n") != 1 {
		ts.Fatalf("want one line:\n%s", text)
	}
}
