package sandbox

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Conceal makes the calling process undumpable: other processes of the same user cannot read its memory, environment or
// descriptors through /proc or ptrace(2), and it leaves no core file. The sidecar calls it once, before it holds a
// secret.
func Conceal() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	return nil
}
