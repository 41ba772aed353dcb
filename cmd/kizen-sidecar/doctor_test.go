package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDoctorMarksAPythonThatIsNotTheOneAskedFor(t *testing.T) {
	program, err := os.ReadFile(requireProgram(t, "true"))
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string][2]string{"3.11": {"!", "!"}, "3.12": {"✓", "!"}, "3.13": {"!", "✓"}} {
		prefix := t.TempDir()
		python := filepath.Join(prefix, "bin", "python"+version)
		requests := filepath.Join(prefix, "lib", "python"+version, "site-packages", "requests")
		for _, dir := range []string{filepath.Dir(python), requests} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		writeFile(t, requests, "__init__.py", "")
		if err := os.WriteFile(python, program, 0o755); err != nil {
			t.Fatal(err)
		}
		got := sidecar(t, "", nil, "doctor", "--python", python)
		for i, runtime := range []string{"python-3-12", "python-3-13"} {
			if row := want[i] + "  " + runtime; got.code != exitOK || !strings.Contains(got.stdout, "\n"+row) {
				t.Errorf("with %s: exit code %d, want a row %q in\n%s", version, got.code, row, got.stdout)
			}
		}
	}
}
