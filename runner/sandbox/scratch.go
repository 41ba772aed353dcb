package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// scratch is a program's private directory where it cannot have a file system of its own. It is locked for as long as it is
// in use: the lock goes when the sidecar does, however that comes about, and tells those that are left over from those
// of other sidecars, whatever process ids mean where those run.
type scratch struct {
	path string
	lock *os.File
}

// scratchPrefix is what the names of these directories begin with.
const scratchPrefix = "kizen-step-"

// giveScratch gives the program a directory in place of /tmp. The first one removes what dead sidecars left.
func (s *Sandbox) giveScratch(p *Process) error {
	s.sweepScratch.Do(func() { s.removeStaleScratch(os.TempDir()) })
	made, err := newScratch()
	if err != nil {
		return fmt.Errorf("make a private directory: %w", err)
	}
	p.scratch, p.job.Dir = made, made.path
	if id := p.job.Step; id != nil {
		if err := made.lock.Chown(int(id.UID), int(id.GID)); err != nil {
			return fmt.Errorf("hand over the private directory: %w", err)
		}
	}
	p.job.Env = slices.DeleteFunc(slices.Clone(p.job.Env), func(variable string) bool {
		return strings.HasPrefix(variable, "HOME=") || strings.HasPrefix(variable, "TMPDIR=")
	})
	p.job.Env = append(p.job.Env, "HOME="+made.path, "TMPDIR="+made.path)
	return nil
}

// newScratch makes a directory and locks it. Another sidecar may take it for a left one before it is locked.
func newScratch() (*scratch, error) {
	for {
		path, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", scratchPrefix, os.Getpid()))
		if err != nil {
			return nil, err
		}
		made, err := lockScratch(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EWOULDBLOCK) {
			return made, err
		}
	}
}

// lockScratch locks a directory; fs.ErrNotExist if it is not there any more, unix.EWOULDBLOCK if it is in use.
func lockScratch(path string) (*scratch, error) {
	dir, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	locked, err := dir.Stat()
	there, statErr := os.Lstat(path)
	if err := errors.Join(err, statErr); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	if !os.SameFile(locked, there) {
		return nil, errors.Join(fs.ErrNotExist, dir.Close())
	}
	return &scratch{path, dir}, nil
}

// remove removes the directory, and lets go of it then.
func (s *scratch) remove() {
	_ = os.RemoveAll(s.path)
	_ = s.lock.Close()
}

// removeStaleScratch removes the directories of ours that nobody uses.
func (s *Sandbox) removeStaleScratch(dir string) {
	left, err := filepath.Glob(filepath.Join(dir, scratchPrefix+"*"))
	if err != nil {
		return
	}
	for _, path := range left {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || !s.owns(info) {
			continue
		}
		if stale, err := lockScratch(path); err == nil {
			stale.remove()
		}
	}
}

// owns reports whether a file belongs to the sidecar's user or to one of those that it gives its programs.
func (s *Sandbox) owns(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	owner := int(stat.Uid)
	return owner == os.Geteuid() || os.Geteuid() == 0 && owner >= s.config.UID && owner < s.config.UID+uidRange
}
