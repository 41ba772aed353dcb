package sandbox

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// scratch is a program's private directory if it cannot have its own file system. It is locked while it is in use. The
// lock ends with the sidecar, even if it is killed, and distinguishes stale directories from those of other running
// sidecars, even in other PID namespaces.
type scratch struct {
	path string
	lock *os.File
}

// scratchPrefix is the prefix of these directories' names.
const scratchPrefix = "kizen-step-"

// giveScratch gives the program a directory in place of /tmp. The first call also removes the directories of dead
// sidecars.
func (s *Sandbox) giveScratch(p *Process) error {
	s.sweepScratch.Do(func() { s.removeStaleScratch(os.TempDir()) })
	made, err := newScratch()
	if err != nil {
		return fmt.Errorf("make a private directory: %w", err)
	}
	p.scratch, p.job.Dir, p.sourceDir = made, filepath.Join(made.path, "tmp"), filepath.Join(made.path, "step")
	if err := errors.Join(os.Mkdir(p.job.Dir, 0o700), os.Mkdir(p.sourceDir, 0o700)); err != nil {
		return fmt.Errorf("make a private directory: %w", err)
	}
	if id := p.job.Step; id != nil {
		for _, dir := range []string{made.path, p.job.Dir, p.sourceDir} {
			if err := os.Lchown(dir, int(id.UID), int(id.GID)); err != nil {
				return fmt.Errorf("hand over the private directory: %w", err)
			}
		}
	}
	p.job.Env = slices.DeleteFunc(slices.Clone(p.job.Env), func(variable string) bool {
		return strings.HasPrefix(variable, "HOME=") || strings.HasPrefix(variable, "TMPDIR=")
	})
	p.job.Env = append(p.job.Env, "HOME="+p.job.Dir, "TMPDIR="+p.job.Dir)
	return nil
}

// newScratch creates a directory and locks it. Until it is locked, another sidecar may consider it stale and remove
// it.
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

// lockScratch locks a directory. The error is fs.ErrNotExist if the directory no longer exists, and unix.EWOULDBLOCK
// if it is in use.
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

// remove removes the directory with all its contents, and then unlocks it.
func (s *scratch) remove() {
	_ = empty(s.lock)
	_ = os.Remove(s.path)
	_ = s.lock.Close()
}

// empty removes the contents of a directory. Unlike os.RemoveAll, it needs only two descriptors at any depth, and
// makes directories accessible whose permissions the owner has removed.
func empty(dir *os.File) error {
	for {
		if err := dir.Chmod(0o700); err != nil {
			return err
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := dir.Readdirnames(-1)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if err := removeEntry(dir, name); err != nil {
				return fmt.Errorf("remove %q: %w", name, err)
			}
		}
	}
}

// removeEntry removes a file or a directory. It first moves the directories inside a directory up to dir.
func removeEntry(dir *os.File, name string) error {
	if unix.Unlinkat(int(dir.Fd()), name, 0) == nil {
		return nil
	}
	if err := unlock(int(dir.Fd()), name); err != nil {
		return err
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	below := os.NewFile(uintptr(fd), name)
	defer func() { _ = below.Close() }()
	names, err := below.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, inner := range names {
		if unix.Unlinkat(fd, inner, 0) == nil {
			continue
		}
		// Moving a directory requires write permission on it.
		if err := unlock(fd, inner); err != nil {
			return err
		}
		if err := unix.Renameat(fd, inner, int(dir.Fd()), rand.Text()); err != nil {
			return err
		}
	}
	return unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
}

// unlock gives the owner access to a directory. Root needs no permission, and must not follow a link that meanwhile
// replaced the directory.
func unlock(dir int, name string) error {
	if rooted() {
		return nil
	}
	return unix.Fchmodat(dir, name, 0o700, 0)
}

// removeStaleScratch removes the directories of dead sidecars.
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
		_ = unlock(unix.AT_FDCWD, path) // the program may have removed the permissions
		if stale, err := lockScratch(path); err == nil {
			stale.remove()
		}
	}
}

// owns reports whether a file belongs to the sidecar's user or to one of its programs' users.
func (s *Sandbox) owns(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	owner := int(stat.Uid)
	return owner == os.Geteuid() || os.Geteuid() == 0 && owner >= firstUser && owner < firstUser+users
}
