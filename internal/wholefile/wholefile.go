// Package wholefile writes files atomically: a reader sees either the whole file or no file.
//
// It writes a temporary file in the same directory and renames it. [Write] is for files that are useless after the end
// of their writer, such as a file with its address. It does not wait for the disk: that takes 6 ms, and a proxy must
// start within 20 ms. [Keep] and [Create] are for files that must survive a power failure. github.com/google/renameio
// always waits.
package wholefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write writes content to path and replaces an existing file. After a power failure the file may be empty.
func Write(path string, content []byte, mode fs.FileMode) error {
	return write(path, content, mode, false, os.Rename)
}

// Keep is Write for a file that must survive a power failure.
func Keep(path string, content []byte, mode fs.FileMode) error {
	return write(path, content, mode, true, os.Rename)
}

// Create writes content to path unless the file exists; then the error is [fs.ErrExist]. If several callers create the
// file at once, one succeeds. The file survives a power failure.
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
	defer func() { _ = os.Remove(file.Name()) }() // after os.Rename, the name no longer exists
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

// Read reads a file named by a person; what is the kind of file, for the error.
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

// Cause removes the file name from an error, for a message that names the file itself.
func Cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
