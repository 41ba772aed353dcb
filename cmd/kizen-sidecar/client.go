package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/wholefile"
	"github.com/kizen/kizen-sidecar/runner"
)

// clientCommand is kizen-sidecar client.
type clientCommand struct {
	Directory string `arg:"" help:"Folder in which Python finds modules. It is created if it does not exist." env:"KIZEN_CLIENT_DIRECTORY" placeholder:"DIR"`
	Force     bool   `help:"Overwrite an existing kizen.py that differs."`
}

// Help is the long text of kizen-sidecar client --help.
func (clientCommand) Help() string {
	return `Writes kizen.py into the folder, for Python programs that run beside kizen-sidecar proxy. It reads the proxy's address from KIZEN_API_URL and needs the requests package.

Examples:
  kizen-sidecar client /work/lib
  PYTHONPATH=/work/lib python3 -c 'import kizen; print(kizen.api.get("/custom-objects").json())'`
}

// Run is called by kong.
func (c *clientCommand) Run(app *app) error {
	if err := os.MkdirAll(c.Directory, 0o755); err != nil {
		return exit.Usagef("cannot make folder %q: %w", c.Directory, wholefile.Cause(err))
	}
	module, err := runner.ClientModule()
	if err != nil {
		return err
	}
	path := filepath.Join(c.Directory, "kizen.py")
	existing, err := os.ReadFile(path)
	switch {
	case err == nil && string(existing) == module:
		fmt.Fprintln(app.stdout, path)
		return nil
	case err == nil && !c.Force:
		return exit.Usagef("%s exists and differs; use --force to overwrite it", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return exit.Usagef("cannot read %q: %w", path, wholefile.Cause(err))
	}
	if err := wholefile.Keep(path, []byte(module), 0o644); err != nil {
		return exit.Usagef("cannot write %q: %w", path, wholefile.Cause(err))
	}
	fmt.Fprintln(app.stdout, path)
	return nil
}
