package sandbox

import (
	"errors"
	"fmt"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// landlockSupport returns why Landlock cannot be used, or nil.
func landlockSupport() error {
	_, err := landlock.LandlockGetABIVersion()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSYS):
		return errors.New("the kernel was built without it (Linux 5.13 has it)")
	case errors.Is(err, unix.EOPNOTSUPP):
		return errors.New("the kernel was started without it (see lsm= on its command line)")
	}
	return fmt.Errorf("ask for its version: %w", err)
}

// landlockRules lists the paths that a program may access in its own root. Without its own root, it may access the
// host's root, in which only the paths in writable are writable.
func (t fileTree) landlockRules(readable, writable []string, own bool) *stage.Landlock {
	rules := &stage.Landlock{
		ReadDirs:   append([]string{"/proc"}, readable...),
		WriteFiles: append([]string(nil), deviceNodes...),
		WriteDirs:  writable,
	}
	if own {
		// The mounts determine which paths exist; Landlock also makes them read-only.
		rules.ReadDirs = []string{"/"}
		rules.WriteDirs = append(rules.WriteDirs, "/dev/shm")
		return rules
	}
	rules.ReadDirs = append(rules.ReadDirs, t.dirs...)
	rules.ReadFiles = t.files
	return rules
}
