package serve

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/runner"
)

// LocalTokenFile returns the default file of the local token. It creates the file's folder, for this user only.
func LocalTokenFile() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		var err error
		if dir, err = os.UserCacheDir(); err != nil {
			return "",
				exit.Usagef("the token of serve cannot be stored: neither XDG_RUNTIME_DIR nor HOME is set; name a file with --token-file")
		}
	}
	dir = filepath.Join(dir, "kizen-sidecar")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("create %q for the token of serve: %w; name a file with --token-file", dir,
			wholefile.Cause(err))
	}
	return filepath.Join(dir, "serve.token"), nil
}

// LocalToken reads the token in a file. If the file does not exist, LocalToken creates it with a new random token.
func LocalToken(name string) (runner.Secret, error) {
	err := wholefile.Create(name, []byte(rand.Text()+"\n"), 0o600)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return runner.Secret{}, fmt.Errorf("--token-file %q cannot be created: %w", name, wholefile.Cause(err))
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return runner.Secret{}, fmt.Errorf("--token-file %q cannot be read: %w", name, wholefile.Cause(err))
	}
	text := strings.TrimSpace(string(data))
	if len(text) < MinTokenBytes {
		return runner.Secret{}, exit.Usagef(
			"the token in --token-file %q is shorter than %d bytes; remove the file, and serve will create a new one", name, MinTokenBytes,
		)
	}
	return runner.NewSecret(text), nil
}
