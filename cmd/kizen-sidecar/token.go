package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kizen/kizen-sidecar/internal/serve"
	"github.com/kizen/kizen-sidecar/runner"
)

// defaultTokenFile is where serve keeps its token unless --token-file names another file. Its directory exists
// afterwards, for this user only.
func defaultTokenFile() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		var err error
		if dir, err = os.UserCacheDir(); err != nil {
			return "", usagef("the token of serve has no place: neither XDG_RUNTIME_DIR nor HOME is set; name a file with --token-file")
		}
	}
	dir = filepath.Join(dir, "kizen-sidecar")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make %q for the token of serve: %w; name a file with --token-file", dir, unwrapPath(err))
	}
	return filepath.Join(dir, "serve.token"), nil
}

// loadOrCreateToken reads the token in a file. If the file does not exist it is created with a new random token.
func loadOrCreateToken(name string) (runner.Secret, error) {
	err := createToken(name)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return runner.Secret{}, fmt.Errorf("--token-file %q cannot be created: %w", name, unwrapPath(err))
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return runner.Secret{}, fmt.Errorf("--token-file %q cannot be read: %w", name, unwrapPath(err))
	}
	text := strings.TrimSpace(string(data))
	if len(text) < serve.MinTokenBytes {
		return runner.Secret{}, usagef("the token in --token-file %q is shorter than %d bytes; remove the file to have one made", name, serve.MinTokenBytes)
	}
	return runner.NewSecret(text), nil
}

// createToken writes a new token. It fails with fs.ErrExist where the file exists, so of two processes that start at the same
// time one creates the file and both read it: the file is linked to its name when it is whole.
func createToken(name string) error {
	if _, err := os.Lstat(name); err == nil {
		return fs.ErrExist
	}
	temporary, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	_, err = temporary.WriteString(rand.Text() + "\n")
	if err = errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return err
	}
	return os.Link(temporary.Name(), name)
}
