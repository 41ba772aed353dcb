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

// landlockRules lists the paths that a program may access in its own root, or, without one, in the host's root with
// only writable as writable directories.
func (t fileTree) landlockRules(readable, writable []string, own bool) *stage.Landlock {
	rules := &stage.Landlock{
		ReadDirs:   append([]string{"/proc"}, readable...),
		WriteFiles: append([]string(nil), deviceNodes...),
		WriteDirs:  writable,
	}
	if own {
		// The mounts decide what exists; Landlock additionally makes it read-only.
		rules.ReadDirs = []string{"/"}
		rules.WriteDirs = append(rules.WriteDirs, "/dev/shm")
		return rules
	}
	rules.ReadDirs = append(rules.ReadDirs, t.dirs...)
	rules.ReadFiles = t.files
	return rules
}
