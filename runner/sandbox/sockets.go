package sandbox

import (
	"os"
	"strconv"
)

// HoldsSocket reports whether a socket of this machine belongs to a step or one of its programs. If steps have their
// own users, it compares the socket's user. Otherwise it searches the descriptors of this process's descendants, as
// far as it may inspect them.
func (s *Sandbox) HoldsSocket(user, inode uint32) bool {
	if user >= firstUser && user < firstUser+users {
		return true
	}
	own := os.Geteuid()
	return own != 0 && int(user) == own && anyHolds(descendants(os.Getpid()),
		"socket:["+strconv.FormatUint(uint64(inode), 10)+"]")
}

// anyHolds reports whether one of the processes has this file open.
func anyHolds(processes []int, file string) bool {
	for _, process := range processes {
		dir := "/proc/" + strconv.Itoa(process) + "/fd/"
		descriptors, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, descriptor := range descriptors {
			if target, err := os.Readlink(dir + descriptor.Name()); err == nil && target == file {
				return true
			}
		}
	}
	return false
}
