package runner_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/runner"
)

func writeProgram(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestALinkToAnInterpreterIsResolved(t *testing.T) {
	real, _, err := runner.FindInterpreter(runner.DefaultRuntime, "", false)
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	link := filepath.Join(t.TempDir(), "python3")
	if err := os.Symlink(real.Path, link); err != nil {
		t.Fatal(err)
	}
	found, _, err := runner.FindInterpreter(runner.DefaultRuntime, link, false)
	if err != nil || filepath.Dir(found.Path) == filepath.Dir(link) || found.Version != real.Version ||
		found.Base != real.Base {
		t.Errorf("%+v (%v), want the linked interpreter, %+v", found, err, real)
	}
}

func TestAPythonWhosePathShowsNoVersionIsAskedForIt(t *testing.T) {
	found, _, err := runner.FindInterpreter(runner.Python313, writeProgram(t, "echo 3.13"), false)
	if err != nil || found.Version != "3.13" {
		t.Errorf("%+v (%v)", found, err)
	}
}

func TestAProgramThatIsNoPython3IsRefused(t *testing.T) {
	for name, path := range map[string]string{
		"answers nothing": writeProgram(t, "true"), "fails": writeProgram(t, "exit 1"),
		"python 2": writeProgram(t, "echo 2.7"), "no file": "/nowhere/python3",
	} {
		if found, _, err := runner.FindInterpreter(runner.Python313, path, false); !errors.Is(err, runner.ErrNoPython) {
			t.Errorf("%s: %+v, %v", name, found, err)
		}
	}
}

func TestAPythonThatIsTooOldIsRefusedByName(t *testing.T) {
	for _, version := range []string{"3.10", "3.9", "2.7"} {
		path := writeProgram(t, "echo "+version)
		_, _, err := runner.FindInterpreter(runner.Python313, path, false)
		want := fmt.Sprintf("%q is python %s; steps need python 3.11 or newer", path, version)
		if !errors.Is(err, runner.ErrNoPython) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", version, err, want)
		}
	}
}

func TestANamedPythonWithoutRequestsGivesAWarning(t *testing.T) {
	python := func(version string, requests string) string {
		return writeProgram(t, `case "$*" in *requests*) echo `+requests+`;; *) echo `+version+`;; esac`)
	}
	for _, known := range []struct {
		version, requests string
		says              []string
	}{
		{"3.13", "True", nil},
		{"3.13", "False", []string{"has no requests package"}},
		{"3.12", "True", []string{"asks for python 3.13"}},
		{"3.12", "False", []string{"asks for python 3.13", "has no requests package"}},
	} {
		_, warning, err := runner.FindInterpreter(runner.Python313, python(known.version, known.requests), false)
		if err != nil || (warning == "") != (known.says == nil) {
			t.Errorf("%+v: got %q (%v)", known, warning, err)
		}
		for _, part := range known.says {
			if !strings.Contains(warning, part) {
				t.Errorf("%+v: got %q", known, warning)
			}
		}
	}
}

func TestAStepRunsOnAPythonBehindALink(t *testing.T) {
	python, err := exec.LookPath("/usr/bin/python3")
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	link := filepath.Join(t.TempDir(), "python3")
	if err := os.Symlink(python, link); err != nil {
		t.Fatal(err)
	}
	steps, err := runner.New(runner.Config{Python: link})
	if err != nil {
		t.Fatal(err)
	}
	result, err := steps.Run(t.Context(), runner.Execution{Script: []byte("outputs.log('ran')"),
		Runtime: runner.DefaultRuntime})
	if err != nil || !strings.Contains(strings.Join(result.Logs, ""), "ran") {
		t.Errorf("%+v (%v)", result, err)
	}
}
