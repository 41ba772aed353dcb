package serve

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/exit"
)

func TestTheLocalTokenIsCreatedOnceAndOnlyForItsOwner(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	tokens := make([]string, 8)
	var starting sync.WaitGroup
	for i := range tokens { // servers that start at the same time
		starting.Go(func() {
			token, err := LocalToken(file)
			if err != nil {
				t.Error(err)
			}
			tokens[i] = token.Reveal()
		})
	}
	starting.Wait()
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for _, token := range tokens {
		if token != tokens[0] || len(token) < MinTokenBytes {
			t.Errorf("tokens %q", tokens)
		}
	}
}

func TestAnUnusableLocalTokenIsAnError(t *testing.T) {
	dir := t.TempDir()
	short := filepath.Join(dir, "short")
	if err := os.WriteFile(short, []byte("  fifteen-letters\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		file, want string
		code       int
	}{
		{short, "is shorter than 16 bytes; remove the file, and serve will create a new one", exit.Usage},
		{filepath.Join(dir, "no", "token"), "cannot be created: no such file or directory", exit.Failed},
		{dir, "cannot be read: is a directory", exit.Failed},
	} {
		token, err := LocalToken(row.file)
		if err == nil || !strings.Contains(err.Error(), row.want) || exit.Code(err) != row.code || token.Reveal() != "" {
			t.Errorf("%s: %v, exit code %d", row.file, err, exit.Code(err))
		}
	}
}

func TestThePathOfTheLocalToken(t *testing.T) {
	home := t.TempDir()
	for _, row := range []struct{ runtime, home, want string }{
		{home + "/run", home, home + "/run/kizen-sidecar/serve.token"},
		{"", home, home + "/.cache/kizen-sidecar/serve.token"},
	} {
		t.Setenv("XDG_RUNTIME_DIR", row.runtime)
		t.Setenv("XDG_CACHE_HOME", "")
		t.Setenv("HOME", row.home)
		got, err := LocalTokenFile()
		if err != nil || got != row.want {
			t.Errorf("%q, %v; want %q", got, err, row.want)
		}
		if info, err := os.Stat(filepath.Dir(got)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", info, err)
		}
	}
	t.Setenv("HOME", "")
	if _, err := LocalTokenFile(); exit.Code(err) != exit.Usage {
		t.Errorf("without any: %v", err)
	}
	t.Setenv("HOME", filepath.Join(home, "file"))
	if err := os.WriteFile(filepath.Join(home, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LocalTokenFile(); exit.Code(err) != exit.Failed ||
		!strings.Contains(err.Error(), "name a file with --token-file") {
		t.Errorf("below a file: %v", err)
	}
}
