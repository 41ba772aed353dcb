package wholefile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// ways are the functions that replace a file.
var ways = map[string]func(string, []byte, fs.FileMode) error{"Write": Write, "Keep": Keep}

func TestAFileIsReplacedWithItsMode(t *testing.T) {
	for name, way := range ways {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		for _, mode := range []fs.FileMode{0o600, 0o644, 0o440} {
			if err := way(path, []byte(mode.String()), mode); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			about, err := os.Stat(path)
			content, readErr := os.ReadFile(path)
			if err != nil || readErr != nil || about.Mode() != mode || string(content) != mode.String() {
				t.Errorf("%s: %v %q, %v, %v", name, about.Mode(), content, err, readErr)
			}
		}
		requireOnly(t, dir, "file")
	}
}

func TestAFailureKeepsTheOldFile(t *testing.T) {
	for name, way := range ways {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "folder", "full"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := way(filepath.Join(dir, "folder"), []byte("x"), 0o600); err == nil {
			t.Errorf("%s replaced a folder", name)
		}
		if err := way(filepath.Join(dir, "none", "file"), []byte("x"), 0o600); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s into no folder: %v", name, err)
		}
		requireOnly(t, dir, "folder")
	}
}

func TestAReaderSeesAllOfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	contents := [][]byte{bytes.Repeat([]byte("a"), 1<<20), bytes.Repeat([]byte("b"), 1<<20)}
	if err := Write(path, contents[0], 0o600); err != nil {
		t.Fatal(err)
	}
	var written atomic.Bool
	var reading routine.Group
	reading.Go(func() {
		for !written.Load() {
			read, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(read, contents[0]) && !bytes.Equal(read, contents[1]) {
				t.Errorf("%d bytes, %v", len(read), err)
				return
			}
		}
	})
	for i := range 100 {
		if err := Write(path, contents[i%2], 0o600); err != nil {
			t.Error(err)
		}
	}
	written.Store(true)
	reading.Wait()
}

func TestOnlyOneOfManyCreatesAFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	var created atomic.Int32
	var all routine.Group
	for i := range 16 {
		all.Go(func() {
			switch err := Create(path, []byte{byte(i)}, 0o600); {
			case err == nil:
				created.Add(1)
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	all.Wait()
	content, err := os.ReadFile(path)
	if created.Load() != 1 || err != nil || len(content) != 1 {
		t.Errorf("%d created it; %q, %v", created.Load(), content, err)
	}
	if err := Create(path, []byte("other"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created again: %v", err)
	}
	requireOnly(t, dir, "file")
}

func TestCauseRemovesTheFileName(t *testing.T) {
	_, err := os.Open("/none/such")
	if got := Cause(err); got != errors.Unwrap(err) {
		t.Errorf("%v", got)
	}
	if other := errors.New("other"); Cause(other) != other || Cause(nil) != nil {
		t.Error("an error without a name changed")
	}
}

func requireOnly(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("%v, %v", entries, err)
	}
}
