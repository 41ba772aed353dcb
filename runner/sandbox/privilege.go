package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// rooted reports whether this process can give programs their own user: it must be root with the necessary
// capabilities, in a user namespace that maps these users. Root in a container often lacks either, and then counts as
// an ordinary user.
func rooted() bool { return os.Geteuid() == 0 && whyNotRooted() == nil }

// whyNotRooted returns which privilege root lacks, or nil. The answer does not change while the process runs.
var whyNotRooted = sync.OnceValue(func() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var own [2]unix.CapUserData
	if err := unix.Capget(&header, &own[0]); err != nil {
		return fmt.Errorf("ask for the sidecar's capabilities: %w", err)
	}
	for _, needed := range []struct {
		name string
		bit  uint
	}{{"CAP_CHOWN", unix.CAP_CHOWN}, {"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE}, {"CAP_SETUID", unix.CAP_SETUID},
		{"CAP_SETGID", unix.CAP_SETGID}} {
		if own[0].Effective&(1<<needed.bit) == 0 {
			return fmt.Errorf("the sidecar is root and lacks %s", needed.name)
		}
	}
	return errors.Join(mapped("/proc/self/uid_map"), mapped("/proc/self/gid_map"))
})

// mapped returns an error if an ID map (user_namespaces(7)) lacks the IDs of programs. A kernel without user
// namespaces has no maps, so all IDs exist.
func mapped(path string) error {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var inside, outside, size uint64
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &size); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if inside <= firstUser && firstUser+users <= inside+size {
			return nil
		}
	}
	return fmt.Errorf("the sidecar's user namespace lacks the ids from %d to %d", firstUser, firstUser+users-1)
}
