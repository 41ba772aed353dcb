package platform

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// projectRoot is where docs stands.
const projectRoot = "../.."

// patchBlock is a block of a page that changes a file: lines that begin with a plus are added behind the others, which
// stand in the file one after the other, once.
var patchBlock = regexp.MustCompile("(?ms)^ *```diff (\\S+)\n(.*?)^ *```$")

// TestTheWorkedExampleOfExtendingPasses follows docs/extending.md in a copy of the tree: a type that the platform
// provisions beside the Code Account, and an endpoint. The copy has to build, and to pass the tests that walk through
// types and operations.
func TestTheWorkedExampleOfExtendingPasses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, folder := range []string{"minter", "policy", "telemetry", "internal", "cmd/kizen-platform"} {
		if err := os.CopyFS(filepath.Join(dir, folder), os.DirFS(filepath.Join(projectRoot, folder))); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(projectRoot, file))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, file), text, 0o600))
	}
	page, err := os.ReadFile(filepath.Join(projectRoot, "docs/extending.md"))
	must(t, err)
	blocks := patchBlock.FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 6 {
		t.Fatalf("docs/extending.md has %d changes of files", len(blocks))
	}
	for _, block := range blocks {
		applyBlock(t, filepath.Join(dir, block[1]), block[2])
	}
	for _, arguments := range [][]string{
		{"build", "-trimpath", "-o", os.DevNull, "./cmd/kizen-platform"},
		{"test", "-trimpath", "-vet=off", "-count=1", "-run", "Matrix|Described|Agree|EveryEntry", "./policy",
			"./internal/platform"},
	} {
		command := exec.CommandContext(t.Context(), "go", arguments...)
		command.Dir = dir
		command.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build, whose cache it then uses
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(arguments, " "), err, out)
		}
	}
}

// applyBlock changes a file as a block says.
func applyBlock(t *testing.T, file, block string) {
	t.Helper()
	var before, after strings.Builder
	for line := range strings.Lines(block) {
		if added, ok := strings.CutPrefix(line, "+"); ok {
			after.WriteString(added)
			continue
		}
		kept := strings.TrimPrefix(line, " ")
		before.WriteString(kept)
		after.WriteString(kept)
	}
	text, err := os.ReadFile(file)
	must(t, err)
	if n := strings.Count(string(text), before.String()); n != 1 {
		t.Fatalf("%s has %d times\n%s", file, n, before.String())
	}
	must(t, os.WriteFile(file, []byte(strings.Replace(string(text), before.String(), after.String(), 1)), 0o600))
}
