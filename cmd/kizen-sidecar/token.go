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
	"github.com/kizen/kizen-sidecar/internal/wholefile"
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
		return "", fmt.Errorf("make %q for the token of serve: %w; name a file with --token-file", dir, wholefile.Cause(err))
	}
	return filepath.Join(dir, "serve.token"), nil
}

// loadOrCreateToken reads the token in a file. If the file does not exist it is created with a new random token.
func loadOrCreateToken(name string) (runner.Secret, error) {
	err := wholefile.Create(name, []byte(rand.Text()+"\n"), 0o600)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return runner.Secret{}, fmt.Errorf("--token-file %q cannot be created: %w", name, wholefile.Cause(err))
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return runner.Secret{}, fmt.Errorf("--token-file %q cannot be read: %w", name, wholefile.Cause(err))
	}
	text := strings.TrimSpace(string(data))
	if len(text) < serve.MinTokenBytes {
		return runner.Secret{}, usagef("the token in --token-file %q is shorter than %d bytes; remove the file to have one made", name, serve.MinTokenBytes)
	}
	return runner.NewSecret(text), nil
}
