package runner

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kizen/kizen-sidecar/internal/wholefile"
)

// The harness is Python source in this binary. An interpreter receives it over the job's socket, so that a step finds
// no file to alter. loader.py is the program on the command line; the first frame contains the rest.

//go:embed python/loader.py
var loaderSource string

//go:embed python/bundle.py
var bundlerSource string

//go:embed python/kizen_runtime/*.py
var harnessSources embed.FS

// sourceBundle packs the harness as source: a header, then the name and the text of every module, each preceded by its
// length.
var sourceBundle = sync.OnceValue(func() []byte {
	bundle := []byte("src\n")
	names, err := fs.Glob(harnessSources, "python/kizen_runtime/*.py")
	if err != nil {
		return bundle
	}
	for _, name := range names {
		source, err := harnessSources.ReadFile(name)
		if err != nil {
			return bundle
		}
		for _, field := range [][]byte{[]byte(strings.TrimPrefix(name, "python/")), source} {
			bundle = append(binary.BigEndian.AppendUint32(bundle, uint32(len(field))), field...)
		}
	}
	return bundle
})

// bundles keeps the compiled harness of each interpreter in memory, and on disk for the next run.
type bundles struct {
	// dir is the directory of compiled bundles; if empty, none are stored.
	dir string

	mu       sync.Mutex
	compiled map[string][]byte
}

// bundleDir returns the user's cache directory, or "" if it is not writable.
func bundleDir() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	dir := filepath.Join(cache, "kizen-sidecar")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return ""
	}
	return dir
}

// get returns the harness for an interpreter, compiled if possible and as source otherwise.
func (b *bundles) get(ctx context.Context, python Interpreter) []byte {
	key, err := bundleKey(python)
	if err != nil {
		return sourceBundle()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if bundle, ok := b.compiled[key]; ok {
		return bundle
	}
	bundle, err := b.load(key)
	if err != nil {
		if bundle, err = compileBundle(ctx, python.Path); err != nil {
			return sourceBundle()
		}
		b.store(key, bundle)
	}
	if b.compiled == nil {
		b.compiled = map[string][]byte{}
	}
	b.compiled[key] = bundle
	return bundle
}

// bundleKey identifies the sources and the current version of the interpreter and its libraries, so that an upgrade
// compiles again.
func bundleKey(python Interpreter) (string, error) {
	real, err := filepath.EvalSymlinks(python.Path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	hash.Write(sourceBundle())
	_, _ = fmt.Fprintf(hash, "%s\x00%s\x00%d\x00%d", python.Path, real, info.Size(), info.ModTime().UnixNano())
	for _, dir := range slices.Concat(libraries(python.Prefix, python.Version), libraries(python.Base, python.Version)) {
		if info, err := os.Stat(dir); err == nil {
			_, _ = fmt.Fprintf(hash, "\x00%s\x00%d", dir, info.ModTime().UnixNano())
		}
	}
	return hex.EncodeToString(hash.Sum(nil)[:16]), nil
}

func (b *bundles) path(key string) string { return filepath.Join(b.dir, "harness-"+key) }

// load reads a bundle, but only from a file that no other user can have written.
func (b *bundles) load(key string) ([]byte, error) {
	if b.dir == "" {
		return nil, fs.ErrNotExist
	}
	info, err := os.Lstat(b.path(key))
	if err != nil {
		return nil, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 || int(stat.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s may have been altered", b.path(key))
	}
	return os.ReadFile(b.path(key))
}

// store keeps a bundle for the next process. A failure only costs that process the time of compiling.
func (b *bundles) store(key string, bundle []byte) {
	if b.dir == "" {
		return
	}
	_ = wholefile.Write(b.path(key), bundle, 0o600)
}

// compileTimeout limits the run of an interpreter that compiles the harness.
const compileTimeout = 10 * time.Second

func compileBundle(ctx context.Context, python string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, compileTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, python, "-I", "-S", "-c", bundlerSource)
	command.Env = []string{}
	command.Stdin = bytes.NewReader(sourceBundle())
	compiled, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("compile the harness with %s: %w", python, err)
	}
	return compiled, nil
}
