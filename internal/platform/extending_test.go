package platform

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// projectRoot is the folder that contains docs.
const projectRoot = "../.."

// patchBlock is a block of a page that changes a file. The lines without a plus occur in the file exactly once, one
// after the other; the lines that begin with a plus are added after them.
var patchBlock = regexp.MustCompile("(?ms)^ *```diff (\\S+)\n(.*?)^ *```$")

// TestTheWorkedExampleOfExtendingPasses follows docs/extending.md in a copy of the tree. The page adds a type of
// account that the platform provisions beside the Code Account, and an endpoint. The copy must build, and pass the
// tests that walk through types and operations.
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
		command.Env = append(os.Environ(), "CGO_ENABLED=0") // as in make build, to use its cache
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(arguments, " "), err, out)
		}
	}
}

// applyBlock changes a file as a block describes.
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
