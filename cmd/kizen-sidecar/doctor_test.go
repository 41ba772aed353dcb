package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDoctorMarksAPythonThatIsNotTheOneAskedFor(t *testing.T) {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string][2]string{"3.11": {"!", "!"}, "3.12": {"✓", "!"}, "3.13": {"!", "✓"}} {
		python := filepath.Join(t.TempDir(), "python"+version)
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
