// Package wholefile writes files of which a reader sees all or nothing.
//
// A file is written beside its place and then moved there. [Write] is for files that are worth nothing once their writer has ended,
// such as those that say where it listens: it does not wait for the disk, which takes 6 ms where a proxy starts within 20 ms.
// [Keep] and [Create] are for files that must survive a power failure: they do. github.com/google/renameio always waits.
package wholefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write puts content at path, in place of a file that is there. After a power failure the file may be empty.
func Write(path string, content []byte, mode fs.FileMode) error {
	return write(path, content, mode, false, os.Rename)
}

// Keep is Write for a file that must survive a power failure.
func Keep(path string, content []byte, mode fs.FileMode) error {
	return write(path, content, mode, true, os.Rename)
}

// Create puts content at path unless a file is there: the error is [fs.ErrExist] then. Of several that create the file at once, one
// does. The file survives a power failure.
func Create(path string, content []byte, mode fs.FileMode) error {
	if _, err := os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	return write(path, content, mode, true, os.Link)
}

func write(path string, content []byte, mode fs.FileMode, synced bool, place func(from, to string) error) error {
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }() // after os.Rename it has no such name any more
	_, err = file.Write(content)
	if mode != 0o600 {
		err = errors.Join(err, file.Chmod(mode))
	}
	if synced {
		err = errors.Join(err, file.Sync())
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := place(file.Name(), path); err != nil || !synced {
		return err
	}
	return syncFolder(dir)
}

// syncFolder waits until the names in a folder are on the disk.
func syncFolder(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Read reads a file that a person named; what says in an error what it is.
func Read(what, name string) ([]byte, error) {
	data, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no such %s %q; check the path", what, name)
	case err != nil:
		return nil, fmt.Errorf("cannot read %s %q: %w", what, name, Cause(err))
	}
	return data, nil
}

// Cause takes the name of the file out of an error, for a message that names it itself.
func Cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
