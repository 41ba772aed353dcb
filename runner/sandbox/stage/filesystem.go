package stage

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// base is the directory in which the new root is assembled. Its previous contents are hidden meanwhile, only in this
// namespace.
const base = "/tmp"

// buildRoot builds a new root file system from the job's mounts and enters it. It opens all sources as detached mounts
// before it mounts anything, so that the new root may cover one of them.
func buildRoot(job *Job) error {
	if len(job.Mounts) == 0 {
		return os.Chdir(job.Dir)
	}
	// Mounts made here must not propagate to the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	sources, err := openSources(job.Mounts)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=4m"); err != nil {
		return fmt.Errorf("mount the new root: %w", err)
	}
	if err := os.Chdir(base); err != nil {
		return err
	}
	for i, m := range job.Mounts {
		if err := m.apply(sources[i]); err != nil {
			err = fmt.Errorf("%s %q: %w", m.Kind, m.Target, err)
			if m.Kind == MountProc {
				return &layerError{LayerProc, err}
			}
			return err
		}
	}
	return enterRoot(job.Dir)
}

// enterRoot makes the current directory the root and detaches the old one, see "pivot_root(".", ".")" in pivot_root(2).
func enterRoot(dir string) error {
	if err := unix.MountSetattr(unix.AT_FDCWD, ".", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the new root read-only: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return os.Chdir(dir)
}

// openSources clones the mounts' sources on the host. The descriptor is -1 if a mount has no source or the source does
// not exist.
func openSources(mounts []Mount) ([]int, error) {
	sources := make([]int, len(mounts))
	for i, m := range mounts {
		sources[i] = -1
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
		switch m.Kind {
		case MountBind:
			attr.Attr_set |= unix.MOUNT_ATTR_NODEV
		case MountDevice:
			attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
		default:
			continue
		}
		// Recursive, because a less privileged namespace must not reveal files that a mount of the host covers.
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("clone %q: %w", m.Source, err)
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return nil, fmt.Errorf("restrict %q: %w", m.Source, err)
		}
		sources[i] = fd
	}
	return sources, nil
}

// The flags of the new file systems for each program.
const (
	tmpfsFlags = unix.MS_NOSUID | unix.MS_NODEV
	procFlags  = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

// apply performs one mount below the current directory.
func (m Mount) apply(source int) error {
	target := "." + m.Target
	if err := os.MkdirAll(path.Dir(target), 0o755); err != nil {
		return err
	}
	switch m.Kind {
	case MountLink:
		return os.Symlink(m.Source, target)
	case MountFile:
		return os.WriteFile(target, []byte(m.Source), 0o444)
	case MountTmpfs:
		return mountOn(target, "tmpfs", tmpfsFlags, m.Source)
	case MountProc:
		flags := uintptr(procFlags)
		if m.Writable {
			flags &^= unix.MS_RDONLY
		}
		return mountOn(target, "proc", flags, m.Source)
	case MountBind, MountDevice:
		return bindOn(target, source)
	}
	return fmt.Errorf("unknown kind of mount %q", m.Kind)
}

func mountOn(target, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return unix.Mount(kind, target, kind, flags, options)
}

func bindOn(target string, source int) error {
	if source < 0 {
		return nil
	}
	var stat unix.Stat_t
	if err := unix.Fstat(source, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
	} else if err := os.WriteFile(target, nil, 0o444); err != nil {
		return err
	}
	if err := unix.MoveMount(source, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	return unix.Close(source)
}
