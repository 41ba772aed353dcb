// Package resident keeps a process's resident memory to what it uses.
package resident

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Trim unmaps the pages of the program's own file, its code and constants. Those that are still used come back from the page
// cache, sixteen at a time; those that only the start needed do not, and are the first that the kernel takes for something else.
func Trim() error {
	mappings, err := ofProgram()
	if err != nil {
		return fmt.Errorf("find the program's pages: %w", err)
	}
	for _, m := range mappings {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("give the program's pages back: %w", errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// ofProgram are the mappings of the program's file that hold what the file does: that cannot be written, nor have been before
// they were protected, as those of the dynamic linker are.
func ofProgram() (all []mapping, err error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return nil, err
	}
	var found bool // whether the mapping that is being read is the last of all
	for line := range strings.Lines(string(maps)) {
		name, value, _ := strings.Cut(line, " ")
		if strings.HasSuffix(name, ":") { // proc_pid_smaps(5): of the mapping above
			written := (name == "Anonymous:" || name == "Swap:") && strings.TrimSpace(value) != "0 kB"
			if found && written {
				all, found = all[:len(all)-1], false
			}
			continue
		}
		var m mapping
		var permissions string // proc_pid_maps(5): address perms offset dev inode pathname
		if _, err := fmt.Sscanf(line, "%x-%x %s", &m.start, &m.end, &permissions); err != nil {
			return nil, fmt.Errorf("/proc/self/smaps has the line %q: %w", line, err)
		}
		found = !strings.Contains(permissions, "w") && strings.HasSuffix(line, " "+program+"\n")
		if found {
			all = append(all, m)
		}
	}
	return all, nil
}
